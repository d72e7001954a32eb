"""Text from a run: which run is meant, weights that aren't its own, and what is said of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from modbench.data import token_data
from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.mlp import MLP
from modbench.report.record import CellRecord, Status, cell_key
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_names
from modbench.sweep.sample import Drawing, find_record, load_model, sample_run
from modbench.train.checkpoint import save_weights

SHAPE = {"vocabulary": 257, "width": 16, "layers": 2, "heads": 2}
OPTIONS: dict[str, dict[str, Any]] = {"mod": {"causal": "ema_threshold"}, "vanilla": {}}
#: Two rows of one suite, and the second seed of one of them.
RUNS = [("mod", "mod", 0), ("vanilla", "vanilla", 0), ("twice", "mod", 0), ("twice", "mod", 1)]


class Letters:
    """A tokenizer of bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(32 + token % 90) for token in tokens)


def record_of(label: str, router: str, seed: int, status: Status = "ok") -> CellRecord:
    cell: dict[str, Any] = {
        "router": {"name": router, "options": OPTIONS[router], "plugin_sha256": None, "label": label},
        "model": SHAPE,
        "data": {"tokenizer": "bytes"},
        "train": {"budget": 1, "sequence": 10},
        "measure": {},
        "seed": seed,
    }
    return CellRecord(
        suite={"name": "tiny", "version": 1, "rank_by": "heldout_loss"},
        cell=cell,
        key=cell_key(cell),
        code={"version": "0", "commit": None, "dirty": None},
        environment={"cpu": None, "gpu": None, "threads": 1, "torch": "2"},
        data={"sha256": "ab", "train_tokens": 1, "heldout_tokens": 1},
        audit=[],
        metrics={},
        curve=[],
        routing={},
        status=status,
        error=None if status == "ok" else "the loss is nan at step 3",
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:01+00:00",
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shard = tmp_path / "tiny" / "records" / "a.jsonl"
    shard.parent.mkdir(parents=True)
    shard.write_text("".join(record_of(*run).line() + "\n" for run in RUNS))
    fake = type("Text", (), {"tokenizer": Letters()})
    monkeypatch.setattr(token_data, "load", lambda config: fake)
    return tmp_path


def weights_at(results: Path, record: CellRecord) -> Path:
    path = results / "tiny" / "cells" / record.key / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def model_of(router: str) -> Decoder:
    return build_model(ModelConfig(**SHAPE), build_router(router, OPTIONS[router]))


def save_trained(results: Path, router: str) -> None:
    path = weights_at(results, find_record(f"tiny/{router}", results))
    save_weights(path, model_of(router), key=path.parent.name)


@pytest.fixture
def sample(results: Path) -> Callable[..., list[str]]:
    def run(name: str = "tiny/mod", prompt: str = "And", **drawing: Any) -> list[str]:
        drawn = Drawing(**{"tokens": 3, **drawing})
        return sample_run(name, [prompt], results=results, plugins=[], drawing=drawn)

    return run


def test_a_run_is_named_by_label_or_by_the_start_of_its_key(results: Path) -> None:
    record = find_record("tiny/mod", results)
    assert record.cell["router"]["label"] == "mod"
    assert find_record(f"tiny/{record.key[:8]}", results) == record


def test_a_label_that_begins_another_runs_key_names_its_own_run(results: Path) -> None:
    label = record_of("mod", "mod", 0).key[:4]
    with (results / "tiny" / "records" / "a.jsonl").open("a") as shard:
        shard.write(record_of(label, "vanilla", 0).line() + "\n")
    assert find_record(f"tiny/{label}", results).cell["router"]["label"] == label


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("tiny/mdo", "run 'tiny/mdo' is not known; did you mean 'tiny/mod'?"),
        ("tiny", "run 'tiny' is not known; .*known: tiny/mod, tiny/twice, tiny/vanilla"),
        ("tinny/mod", "did you mean 'tiny'?"),
        ("tiny/", "run 'tiny/' is not known; .*known: tiny/mod"),
        ("tiny/twice", "is one of 2 trained runs; name one of tiny/"),
    ],
)
def test_a_run_that_is_none_is_refused(run: str, words: str, results: Path) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        find_record(run, results)


@pytest.mark.parametrize("status", ["failed", "oom", "diverged"])
def test_a_run_that_failed_is_told_as_such(results: Path, status: Status) -> None:
    shard = results / "tiny" / "records" / "b.jsonl"
    shard.write_text(
        "".join(record_of("broken", "mod", seed, status).line() + "\n" for seed in (5, 6))
        + record_of("half", "mod", 7, status).line()
        + "\n"
        + record_of("half", "mod", 8).line()
        + "\n"
    )
    words = rf"no trained model, it is recorded as {status} \(the loss is nan at step 3\)"
    with pytest.raises(UserError, match=words):
        find_record("tiny/broken", results)
    key = record_of("half", "mod", 8).key[:8]
    for run in ("tiny/half", f"tiny/{key}"):  # of two runs of a label, one was trained
        assert find_record(run, results).cell["seed"] == 8


@pytest.mark.parametrize(
    ("drawing", "words"),
    [
        ({"tokens": 0}, "tokens is 0; it must be 1 or more"),
        ({"temperature": float("nan")}, "temperature is nan; it must be 0 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_drawing_that_cannot_be_is_refused_before_a_model_is_built(
    drawing: dict[str, Any], words: str, sample: Callable[..., list[str]]
) -> None:
    with pytest.raises(UserError, match=words):
        sample(**drawing)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a\udcff", r"prompt 'a\\udcff' is empty or not UTF-8"),
        ("", "prompt '' is empty or not UTF-8"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(
    prompt: str, words: str, results: Path, sample: Callable[..., list[str]]
) -> None:
    save_trained(results, "mod")
    with pytest.raises(UserError, match=words):
        sample(prompt=prompt)


def test_weights_that_are_gone_or_broken_are_told(
    results: Path, sample: Callable[..., list[str]]
) -> None:
    with pytest.raises(UserError, match="are not here; results keep them on the machine that trained"):
        sample()
    path = weights_at(results, find_record("tiny/mod", results))
    save_weights(path, model_of("mod"), key=path.parent.name)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"damaged or of another run"):
        sample()


def test_damaged_weights_and_those_of_another_run_are_refused(
    results: Path, sample: Callable[..., list[str]]
) -> None:
    path = weights_at(results, find_record("tiny/mod", results))
    for router, key in (("vanilla", path.parent.name), ("mod", "another")):
        save_weights(path, model_of(router), key=key)
        with pytest.raises(UserError, match=r"damaged or of another run \(it is of another run\)"):
            sample()
    save_weights(path, model_of("mod"), key=path.parent.name)
    content = bytearray(path.read_bytes())
    for changed in (-1, 20):  # of a tensor, of the header
        content[changed] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights \S+ are damaged or of another run \("):
            sample()
        content[changed] ^= 1
    path.write_bytes(content)
    assert sample()[0].startswith("And")


def test_equal_weights_are_equal_bytes_and_say_whose_they_are(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for path in (one, other):
        save_weights(path, model_of("mod"), key="ab12")
    assert one.read_bytes() == other.read_bytes()
    size = int.from_bytes(one.read_bytes()[:8], "little")
    assert list(json.loads(one.read_bytes()[8 : 8 + size])["__metadata__"]) == ["modbench"]


def test_what_is_said_has_the_size_of_the_cache(
    results: Path, sample: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = weights_at(results, find_record("tiny/mod", results)), model_of("mod")
    # Five tokens are read, the last of the three new ones isn't; each is 16 numbers of key and of value.
    one_layer = 5 * 2 * 16 * 4
    for threshold, layers in ((-1e9, 2), (1e9, 1)):  # all enter the second layer, and none
        model.layers[1].threshold.value.fill_(threshold)
        save_weights(path, model, key=path.parent.name)
        sample()
        kept, dense = f"{layers * one_layer:,}", f"{2 * one_layer:,}"
        said = capsys.readouterr().err
        assert f" s with a cache of {kept} bytes ({dense} in a dense model of its shape)\n" in said


def test_a_cache_with_state_of_a_schemes_own_is_held_against_a_dense_model(
    results: Path,
    sample: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = MLP.forward

    def keeps_its_input(mlp: MLP, x_BTD: Tensor, context: Context) -> Tensor:
        if context.cache is not None:
            number, state_B1TD = SHAPE["layers"] + mlp.layer, x_BTD[:, None]
            lengths = context.lengths(x_BTD)
            context.cache.extend(number, state_B1TD, state_B1TD, lengths, context.rows)
        return plain(mlp, x_BTD, context)

    monkeypatch.setattr(MLP, "forward", keeps_its_input)
    save_trained(results, "vanilla")
    sample("tiny/vanilla")
    dense = 5 * 2 * 2 * 16 * 4  # what no skipping gives, and the state takes as much again
    said = capsys.readouterr().err
    assert f" s with a cache of {2 * dense:,} bytes ({dense:,} in a dense model of its shape)\n" in said


def test_a_text_longer_than_any_trained_is_told(
    results: Path, sample: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    save_trained(results, "mod")
    sample(tokens=7)
    assert "positions" not in capsys.readouterr().err
    sample(tokens=8)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "modbench: positions from 10 to 11 were never trained"


def plugin_at(file: Path, *lines: str) -> Path:
    """A plugin whose router has the file's name."""
    file.write_text(
        "\n".join(lines)
        + "\nfrom modbench.routing.registry import register_router\n"
        + "from modbench.routers.vanilla import Vanilla\n"
        + "from dataclasses import dataclass\n"
        + f"@register_router('{file.stem}')\n"
        + "@dataclass(frozen=True, kw_only=True)\n"
        + "class Mine(Vanilla): ...\n"
    )
    return file


def trained_with(results: Path, name: str, digest: str | None) -> CellRecord:
    """A record of router ``name``, with weights of the dense model."""
    record = record_of("mine", "vanilla", 0)
    router = record.cell["router"] | {"name": name, "plugin_sha256": digest}
    cell = record.cell | {"router": router}
    record = replace(record, cell=cell, key=cell_key(cell))
    path = weights_at(results, record)
    save_weights(path, model_of("vanilla"), key=path.parent.name)
    return record


def test_the_plugin_of_the_router_is_loaded(results: Path) -> None:
    files = [plugin_at(results / f"sampled_{name}.py") for name in ("first", "second")]
    load_model(trained_with(results, "vanilla", None), "tiny/mine", results / "tiny", files)
    assert not {file.stem for file in files} & set(router_names())
    digest = sha256(files[1].read_bytes()).hexdigest()
    record = trained_with(results, "sampled_second", digest)
    with pytest.raises(UserError, match="damaged or of another run"):  # weights of the dense model
        load_model(record, "tiny/mine", results / "tiny", files)
    assert "sampled_second" in router_names()


@pytest.mark.parametrize(
    ("name", "given"),
    [("sampled_edited", True), ("sampled_nowhere", False), ("vanilla", False)],
    ids=["changed", "not-given", "an-installed-router-has-its-name"],
)
def test_a_plugin_other_than_the_run_was_trained_with_is_refused(
    name: str, given: bool, results: Path
) -> None:
    files = [plugin_at(results / f"{name}.py")] if given else []
    words = f"its router '{name}' is of a plugin file with sha256 ab{10 * '0'}; give that file"
    with pytest.raises(UserError, match=words):
        load_model(trained_with(results, name, "ab" + 62 * "0"), "tiny/mine", results / "tiny", files)
