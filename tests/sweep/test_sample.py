"""Text from a run, and what is said of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trained_runs import RUNS, add_records, model_of, record_of, save_trained

from modbench.cli.options import Trained
from modbench.cli.sample import Drawing, sample_run
from modbench.data import token_data
from modbench.train.checkpoint import save_weights


class Letters:
    """A tokenizer of bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(32 + token % 90) for token in tokens)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    add_records(tmp_path, *(record_of(*run) for run in RUNS))
    fake = type("Text", (), {"tokenizer": Letters()})
    monkeypatch.setattr(token_data, "load", lambda config: fake)
    return tmp_path


@pytest.fixture
def sample(results: Path) -> Callable[..., list[str]]:
    def run(name: str = "tiny/mod", prompt: str = "And", **drawing: Any) -> list[str]:
        drawn = Drawing(**{"tokens": 3, **drawing})
        return sample_run(name, [prompt], Trained(results=results), drawn)

    return run


def test_what_is_said_has_the_size_of_the_cache(
    results: Path, sample: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = save_trained(results, "tiny/mod") / "model.safetensors", model_of("mod")
    # Five tokens are read, the last of the three new ones isn't; each is 16 numbers of key and of value.
    one_layer = 5 * 2 * 16 * 4
    for threshold, layers in ((-1e9, 2), (1e9, 1)):  # all enter the second layer, and none
        model.layers[1].threshold.value.fill_(threshold)
        save_weights(path, model, key=path.parent.name)
        sample()
        kept, dense = f"{layers * one_layer:,}", f"{2 * one_layer:,}"
        said = capsys.readouterr().err
        assert f" s with a cache of {kept} bytes ({dense} in a dense model of its shape)\n" in said


def test_a_text_longer_than_any_trained_is_told(
    results: Path, sample: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    save_trained(results, "tiny/mod")
    sample(tokens=7)
    assert "positions" not in capsys.readouterr().err
    sample(tokens=8)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "modbench: positions from 10 to 11 were never trained"
