"""The worker protocol: environment, events, results, ends."""

import sys
import time
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from modbench.sweep.process import (
    ALLOCATOR,
    EVENTS,
    MEMORY_ALLOCATOR,
    DiedError,
    Events,
    run_worker,
)

pytestmark = pytest.mark.processes

#: A worker whose answer to a question ``body`` finds, with the function that sends events.
BODY = """
import json, os, signal, sys, time
from modbench.sweep import worker
def answer(spec, say):
{body}
    return result
worker.QUESTIONS = {{"machine": "answering:answer"}}
sys.modules["answering"] = sys.modules[__name__]
sys.exit(worker.main(sys.argv[1:]))
"""


def run(body: str, place: Path, kind: str = "time", **settings: Any) -> dict[str, Any]:
    command = (sys.executable, "-c", BODY.format(body=indent(body, "    ")))
    spec = {"job": "machine", "measures": kind, "threads": 3}
    return run_worker(spec, log=place / "log", command=command, **settings)


@pytest.mark.parametrize("kind", ["training", "ceiling", "training_memory", "inference_memory"])
def test_memory_is_measured_with_an_allocator_of_its_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "77")
    chosen = {**ALLOCATOR, "MALLOC_TOP_PAD_": "77"}
    expected = MEMORY_ALLOCATOR if "memory" in kind else chosen
    found = run("result = dict(os.environ)", tmp_path, kind)
    assert {name: found[name] for name in ALLOCATOR} == expected
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"


def test_what_is_printed_is_no_event_and_goes_to_the_log(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    printed = '{"event": "end", "answer": {"status": "forged"}}'
    sends = "say({'event': 'phase', 'phase': 'p'}); result = {}"
    body = f"print('{printed}'); os.write(2, b'to stderr'); {sends}"
    assert run(body, tmp_path, hear=heard.append) == {}
    assert heard == [{"event": "phase", "phase": "p"}]
    assert sorted((tmp_path / "log").read_text().split("to stderr")) == ["", f"{printed}\n"]


@pytest.mark.parametrize("end", ["result = {}", "os._exit(7)"])
def test_what_a_worker_forked_ends_with_it(end: str, tmp_path: Path) -> None:
    late = tmp_path / "late"
    body = f"if os.fork() == 0:\n    time.sleep(3)\n    open('{late}', 'w')\n    os._exit(0)\n{end}"
    started = time.monotonic()
    if end == "result = {}":
        assert run(body, tmp_path) == {}
    else:
        with pytest.raises(DiedError, match="exit code 7, nothing in its log"):
            run(body, tmp_path)
    time.sleep(max(0.0, started + 4 - time.monotonic()))
    assert not late.exists()


def test_a_worker_with_progress_is_not_ended(tmp_path: Path) -> None:
    body = "for _ in range(12): time.sleep(1); say({'event': 'phase', 'phase': 'p'})\nresult = {}"
    assert run(body, tmp_path, timeout=10) == {}


def test_events_are_read_as_they_come_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    """Also from a file that has begun anew since it had become large."""
    written, read = Events(tmp_path), Events(tmp_path)
    assert read.new() == []
    written.say({"event": "phase", "phase": "train"})
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"event": "st')  # a full disk
    assert read.new() == [{"event": "phase", "phase": "train"}]
    written.say({"event": "lost", "with": "the line that it follows"})
    steps = [{"event": "step", "step": step, "text": "x" * 400} for step in range(200)]
    seen = []
    for step in steps:
        written.say(step)
        seen += [event for event in read.new() if event["event"] == "step"]
    assert [event["step"] for event in seen] == [*range(200)]
    assert (tmp_path / EVENTS).stat().st_size < 40_000
    assert Events(tmp_path).new()[0] == {"event": "phase", "phase": "train"}
