"""The worker protocol: environment, events, results, ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import modbench
from modbench.model.config import ModelConfig
from modbench.records.run import RouterCode, Timed
from modbench.sweep import worker
from modbench.sweep.worker import (
    ALLOCATOR,
    COMMAND,
    MEMORY_ALLOCATOR,
    DiedError,
    run_worker,
)

pytestmark = pytest.mark.processes

#: A stand-in for the worker: runs ``body`` with its specification and the function that sends events.
BODY = """
import json, os, signal, sys, time
from modbench.sweep.worker import event_writer, follow_parent
spec = json.loads(sys.stdin.readline())
follow_parent()
say = event_writer()
{body}
say({{"event": "result", "result": result}})
"""


def run(body: str, place: Path, kind: str = "time", **settings: Any) -> dict[str, Any]:
    command = (sys.executable, "-c", BODY.format(body=body))
    spec = {"job": "timing", "measures": kind, "threads": 3}
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
    printed = '{"event": "result", "result": {"status": "forged"}}'
    sends = "say({'event': 'phase', 'phase': 'p'}); result = {}"
    body = f"print('{printed}'); os.write(2, b'to stderr'); {sends}"
    assert run(body, tmp_path, hear=heard.append) == {}
    assert heard == [{"event": "phase", "phase": "p"}]
    assert sorted((tmp_path / "log").read_text().split("to stderr")) == ["", f"{printed}\n"]


def test_a_long_result_comes_whole(tmp_path: Path) -> None:
    assert run("result = {'text': 10**6 * 'o'}", tmp_path) == {"text": 10**6 * "o"}


def test_a_process_that_reads_standard_input_finds_it_empty(tmp_path: Path) -> None:
    assert run("result = {'read': sys.stdin.read()}", tmp_path) == {"read": ""}


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


def test_a_worker_without_progress_is_ended(tmp_path: Path) -> None:
    body = f"open('{tmp_path}/pid', 'w').write(str(os.getpid()))\nwhile True: time.sleep(1)"
    with pytest.raises(DiedError, match="no progress for 2 s"):
        run(body, tmp_path, timeout=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_worker_with_progress_is_not_ended(tmp_path: Path) -> None:
    body = "for _ in range(15): time.sleep(0.2); say({'event': 'phase', 'phase': 'p'})\nresult = {}"
    assert run(body, tmp_path, timeout=2) == {}


def test_a_worker_whose_parent_was_killed_is_asked_to_stop(tmp_path: Path) -> None:
    body = (
        f"def stop(*_):\n    open('{tmp_path}/stopped', 'w'); os._exit(0)\n"
        f"signal.signal(signal.SIGTERM, stop)\nopen('{tmp_path}/ready', 'w')\ntime.sleep(60)"
    )
    code = (
        "from pathlib import Path\nimport sys\nfrom modbench.sweep.worker import run_worker\n"
        f"run_worker({{'job': 'run', 'threads': 1}}, log=Path({str(tmp_path)!r}, 'log'), "
        f"command=(sys.executable, '-c', {BODY.format(body=body)!r}))"
    )
    path = str(Path(modbench.__file__).parent.parent)
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    _until((tmp_path / "ready").exists)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _until((tmp_path / "stopped").exists)


def _until(happens: Any) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_real_worker_gives_a_users_mistake_as_one_sentence(tmp_path: Path) -> None:
    model = ModelConfig(vocabulary=97, width=16, layers=1, heads=2)
    router = RouterCode(name="mood", options={})
    timed = Timed(router=router, model=model, sequence=16, batch=1, precision="float32")
    spec = {"job": "machine", "timed": timed.as_json(), "time": {}, "plugins": [], "threads": 1}
    with pytest.raises(DiedError, match=r"^router 'mood' is not known") as death:
        run_worker(spec, log=tmp_path / "log")
    assert death.value.code == 2
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_a_job_is_known_to_the_worker() -> None:
    assert COMMAND[1:] == ("-m", "modbench.sweep.worker")
    for place in worker.JOBS.values():
        module, _, function = place.partition(":")
        assert hasattr(__import__(module, fromlist=["_"]), function)
