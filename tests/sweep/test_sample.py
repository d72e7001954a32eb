"""Text from a run: which run is meant, and weights that aren't its own."""

import shutil
from pathlib import Path

import pytest

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.decoder import build_model
from modbench.model.registry import build_router
from modbench.report.record import Record
from modbench.sweep.sample import Drawing, find_record, sample_run
from modbench.train.checkpoint import save_weights

COMMITTED = Path(__file__).parent.parent.parent / "results" / "quick" / "records"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    shutil.copytree(COMMITTED, tmp_path / "quick" / "records")
    return tmp_path


def weights(results: Path, record: Record) -> Path:
    path = results / "quick" / "cells" / record.key / "model.safetensors"
    path.parent.mkdir(parents=True)
    return path


def sample(results: Path) -> list[str]:
    return sample_run("quick/mod", ["And"], results=results, plugins=[], drawing=Drawing(tokens=3))


def test_a_run_is_named_by_label_or_by_the_start_of_its_key(results: Path) -> None:
    record = find_record("quick/mod", results)
    assert record.cell["router"]["label"] == "mod"
    assert find_record(f"quick/{record.key[:8]}", results) == record


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("quick/mdo", "run 'quick/mdo' is not known; did you mean 'mod'?"),
        ("quick", "must be SUITE/LABEL"),
        ("quik/mod", "did you mean 'quick'?"),
        ("quick/", "must be SUITE/LABEL"),
    ],
)
def test_a_run_that_is_none_is_refused(run: str, words: str, results: Path) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        find_record(run, results)


def test_several_runs_of_a_label_are_told_apart_by_their_keys(results: Path) -> None:
    keys = {find_record(f"quick/{name}", results).key[:1] for name in ("mod", "vanilla")}
    shortest = next(iter(keys))
    alike = [
        line
        for shard in COMMITTED.glob("*.jsonl")
        for line in shard.read_text().splitlines()
        if Record.from_line(line).key.startswith(shortest)
    ]
    if len(alike) == 1:
        assert find_record(f"quick/{shortest}", results).key.startswith(shortest)
    else:
        with pytest.raises(UserError, match=f"is one of {len(alike)} runs; name one of quick/"):
            find_record(f"quick/{shortest}", results)


def test_weights_that_are_gone_broken_or_anothers_are_told(results: Path) -> None:
    record = find_record("quick/mod", results)
    with pytest.raises(UserError, match="are not here; results keep them on the machine that trained"):
        sample(results)
    path = weights(results, record)
    save_weights(path, build_model(ModelConfig(**record.cell["model"]), build_router("vanilla")))
    with pytest.raises(UserError, match=r"no weights of router 'mod' \(.*Missing key"):
        sample(results)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="no weights of router 'mod'"):
        sample(results)
