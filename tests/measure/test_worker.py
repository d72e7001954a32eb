"""A process that measures: what it is told, what it prints, when it ends."""

import json
import subprocess
import sys
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "modbench.measure.worker"]
CELL = {
    "router": {"name": "mod", "options": {}},
    "model": {"vocabulary": 97, "width": 32, "layers": 2, "heads": 4},
    "train": {"sequence": 16, "batch": 1, "precision": "float32"},
    "time": {"samples": 3, "warm_up": 0, "decode_past": [4], "decode_batches": [1], "prefill": [8]},
}


def spec(kind: str, **changes: Any) -> str:
    return json.dumps({"kind": kind, "cell": {**CELL, **changes}, "plugins": [], "threads": 1}) + "\n"


def run(text: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, documents, and what it said on standard error; its standard input stays open."""
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(text)
        process.stdin.flush()
        lines = process.stdout.read().splitlines()
        said = process.stderr.read()
        return process.wait(), [json.loads(line) for line in lines], said


@pytest.mark.parametrize("kind", ["time", "training_memory", "inference_memory"])
def test_the_last_line_is_what_it_found(kind: str) -> None:
    code, documents, said = run(spec(kind))
    assert (code, said) == (0, "")
    *events, found = documents
    assert all(event["event"] in ("phase", "step") for event in events)
    assert (found["status"], found["error"], found["asked_bytes"]) == ("ok", None, None)
    assert found["environment"]["threads"] == 1
    expected = {"time": "cases"}.get(kind, "predicted")
    assert found["measured"][expected]


def test_want_of_memory_is_a_result_with_the_size() -> None:
    code, documents, _ = run(spec("time", model={**CELL["model"], "vocabulary": 10**13}))
    assert code == 0
    found = documents[-1]
    assert found["status"] == "oom"
    assert found["asked_bytes"] == 4 * 32 * 10**13
    assert f"asked for {4 * 32 * 10**13:,} bytes" in found["error"]
    assert found["measured"] == {}


def test_cases_before_memory_ran_out_are_kept() -> None:
    code, documents, _ = run(spec("time", time={**CELL["time"], "decode_past": [4, 10**13]}))
    found = documents[-1]
    assert (code, found["status"]) == (0, "oom")
    assert found["asked_bytes"] > 8 * 10**13
    measured = found["measured"]
    assert [case["name"] for case in measured["cases"]][:2] == ["forward", "train"]
    assert measured["cases"][-1]["name"] == "decode after 4 x 1"
    assert measured["machine"]["nvml"] == "no GPU"
    assert measured["balance"] == "forced"


def test_a_mistake_is_a_sentence() -> None:
    code, documents, said = run(spec("time", router={"name": "mood", "options": {}}))
    assert (code, documents) == (2, [])
    assert said.startswith("modbench: router 'mood' is not known")
    assert said.count("\n") == 1


def test_it_ends_when_whoever_started_it_is_gone() -> None:
    long = {**CELL["time"], "samples": 10**9}
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(spec("time", time=long))
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["event"] == "step"
            assert process.poll() is None
            process.stdin.close()
            assert process.wait(timeout=30) == 1
        finally:
            process.kill()
