"""What the sessions of the noxfile make of their arguments."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile", Path(__file__).parents[1] / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # a second time it would register its sessions twice
    return module


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--again --only mod", "--only mod"),
        ("--repetitions 3 --results here", "--results here"),
        ("--plugin a.py --repetitions=3", "--plugin a.py"),
        ("", ""),
    ],
)
def test_training_is_not_told_what_only_timing_knows(words: str, kept: str, noxfile: ModuleType) -> None:
    assert noxfile.of_training(words.split()) == kept.split()
