"""Which variables a process is started with: the allocator's, those of whoever started it, threads."""

import sys
from pathlib import Path

import pytest

from modbench.measure.memory import MEMORY_ENV
from modbench.sweep.process import ALLOCATOR, child_environment
from modbench.sweep.timing_process import run_worker

SAYS = """
import json, os, sys
sys.stdin.readline()
print(json.dumps({"status": "ok", **os.environ}))
"""


def started(kind: str, place: Path) -> dict[str, str]:
    """The environment of a process that measures ``kind``."""
    spec = {"kind": kind, "threads": 3}
    return run_worker([sys.executable, "-c", SAYS], spec, place / "log", lambda event: None)


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("kind", ["time", "ceiling", "training_memory", "inference_memory"])
def test_memory_is_weighed_where_buffers_go_back_and_timed_where_they_are_kept(
    kind: str, tmp_path: Path
) -> None:
    expected = MEMORY_ENV if "memory" in kind else ALLOCATOR
    found = started(kind, tmp_path)
    assert expected.keys() == ALLOCATOR.keys() == MEMORY_ENV.keys()
    assert {name: found[name] for name in expected} == expected
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"


def test_an_allocator_that_somebody_chose_is_used_but_for_weighing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "77")
    assert child_environment(1)["MALLOC_TOP_PAD_"] == "77"
    assert child_environment(1)["MALLOC_TRIM_THRESHOLD_"] == ALLOCATOR["MALLOC_TRIM_THRESHOLD_"]
    assert started("time", tmp_path)["MALLOC_TOP_PAD_"] == "77"
    assert started("training_memory", tmp_path)["MALLOC_TOP_PAD_"] == MEMORY_ENV["MALLOC_TOP_PAD_"]
