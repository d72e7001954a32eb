"""The measuring process: its input, its output, and when it ends."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "modbench.measure.worker"]
CELL = {
    "router": {"name": "mod", "options": {}},
    "model": {"vocabulary": 97, "width": 32, "layers": 2, "heads": 4},
    "train": {"sequence": 16, "batch": 1, "precision": "float32"},
    "time": {"samples": 3, "warm_up": 0, "decode_past": [4], "decode_batches": [1], "prefill": [8]},
}


#: A router that says or does something each time that it is asked.
TALKATIVE = """
import sys
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

class Talkative(Block):
    def forward(self, x, context):
        {does}
        return super().forward(x, context)

@register_router("talkative")
@dataclass(frozen=True, kw_only=True)
class Talks(Router):
    def build_layer(self, model, layer):
        return Talkative(model, layer)
"""


def talkative(folder: Path, does: str) -> tuple[list[str], dict[str, Any]]:
    """Its plugin file, and a cell's router of that."""
    file = folder / "talks.py"
    file.write_text(TALKATIVE.format(does=does))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return [str(file)], {"name": "talkative", "options": {}, "plugin_sha256": digest}


def spec(kind: str, plugins: Sequence[str] = (), **changes: Any) -> str:
    cell = {**CELL, **changes}
    return json.dumps({"kind": kind, "cell": cell, "plugins": list(plugins), "threads": 1}) + "\n"


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
def test_the_last_line_is_the_result(kind: str) -> None:
    code, documents, said = run(spec(kind))
    assert (code, said) == (0, "")
    *events, found = documents
    assert all(event["event"] in ("phase", "step") for event in events)
    assert (found["status"], found["error"], found["asked_bytes"]) == ("ok", None, None)
    assert found["environment"]["threads"] == 1
    expected = {"time": "cases"}.get(kind, "predicted")
    assert found["measured"][expected]


def test_out_of_memory_is_a_result_with_the_size() -> None:
    code, documents, _ = run(spec("time", model={**CELL["model"], "vocabulary": 10**10}))
    assert code == 0
    found = documents[-1]
    assert found["status"] == "oom"
    assert found["asked_bytes"] == 4 * 32 * 10**10
    assert f"asked for {4 * 32 * 10**10:,} bytes" in found["error"]
    assert found["measured"] == {}


def test_a_case_that_runs_out_of_memory_leaves_the_others_timed() -> None:
    code, documents, _ = run(spec("time", time={**CELL["time"], "decode_past": [10**13, 4]}))
    found = documents[-1]
    assert (code, found["status"]) == (0, "oom")
    assert found["asked_bytes"] > 8 * 10**13
    assert found["error"].startswith("decode after 10000000000000 x 1: out of memory, asked for ")
    measured = found["measured"]
    assert [case["name"] for case in measured["cases"]] == [
        *("forward", "train", "prefill 8 x 1"),
        "decode after 4 x 1",
    ]
    (lack,) = measured["ran_out"]
    assert (lack["name"], lack["past"]) == ("decode after 10000000000000 x 1", 10**13)
    assert lack["asked_bytes"] == found["asked_bytes"]
    assert measured["machine"]["nvml"] == "no GPU"
    assert measured["balance"] == "forced"


def test_cases_that_fail_leave_the_others_timed(tmp_path: Path) -> None:
    cached = "if context.cache is not None: raise KeyError('no cache yet')"
    plugins, talks = talkative(tmp_path, cached)
    code, documents, said = run(spec("time", plugins, router=talks))
    found = documents[-1]
    assert (code, found["status"], found["asked_bytes"]) == (0, "failed", None)
    assert found["error"] == (
        "2 cases, the first prefill 8 x 1 raised KeyError: 'no cache yet' (talks.py, line 10); fix it"
    )
    assert [case["name"] for case in found["measured"]["cases"]] == ["forward", "train"]
    assert "failed" not in found["measured"]
    assert said.count("Traceback") == 2


def test_a_user_error_is_one_sentence() -> None:
    code, documents, said = run(spec("time", router={"name": "mood", "options": {}}))
    assert (code, documents) == (2, [])
    assert said.startswith("modbench: router 'mood' is not known")
    assert said.count("\n") == 1


def test_output_of_a_plugin_goes_to_the_log(tmp_path: Path) -> None:
    plugins, talks = talkative(tmp_path, "print('{\"status\": 1}.', end='')")
    code, documents, said = run(spec("time", plugins, router=talks))
    assert (code, documents[-1]["status"]) == (0, "ok")
    assert said.startswith('{"status": 1}.{"status": 1}.')


def test_a_plugin_that_exits_is_an_error(tmp_path: Path) -> None:
    plugins, talks = talkative(tmp_path, "sys.exit(0)")
    code, documents, said = run(spec("peak", plugins, router=talks))
    assert code == 1
    assert not any("status" in document for document in documents)
    last = "modbench: router 'talkative' raised SystemExit: 0 (talks.py, line 10); fix it"
    assert said.splitlines()[-1] == last


def test_a_plugin_that_was_changed_since_is_not_measured(tmp_path: Path) -> None:
    plugins, talks = talkative(tmp_path, "pass")
    talkative(tmp_path, "pass  # and more")
    code, documents, said = run(spec("time", plugins, router=talks))
    assert (code, documents) == (2, [])
    assert said.startswith(
        "modbench: router 'talkative': its plugin file, or its package, has changed since"
    )


def test_it_ends_with_its_parent() -> None:
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
