"""The converter of older results.

``schema_3.jsonl`` holds a run of expert_choice and its audit, as they were committed before schema 4.
"""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_records import plain
from timings_made_up import make_case

from modbench.model.config import ModelConfig
from modbench.records.line import key_of, sha256
from modbench.records.result import results_of
from modbench.records.store import read_suite
from modbench.report.page import write_report
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.checkpoint import save_weights
from modbench.trained.load import load_trained

TOOL = Path(__file__).parents[2] / "tools" / "convert_records.py"
LINES = Path(__file__).with_name("schema_3.jsonl").read_text().splitlines()
(CELL,) = (json.loads(line) for line in LINES if '"kind":"cell"' in line)


def convert(*folders: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(TOOL), *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def converter(folder: Path) -> Any:
    """The converter of ``folder``, in this process."""
    spec = importlib.util.spec_from_file_location("convert_records", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Folder(folder)


def older(folder: Path, *lines: str) -> Path:
    (folder / "records").mkdir(parents=True)
    (folder / "records" / "old.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def signed(value: dict[str, Any]) -> str:
    value = value | {"digest": ""}
    return plain(value | {"digest": sha256(plain(value))})


def timing(
    measurement: str, router: dict[str, Any] | None, measured: dict[str, Any], **fields: Any
) -> str:
    """A line of a timing of schema 3."""
    train = {name: CELL["cell"]["train"][name] for name in ("sequence", "batch", "precision")}
    cell = {"router": router, "model": CELL["cell"]["model"], "train": train, "time": {"samples": 4}}
    value = {name: CELL[name] for name in ("code", "environment", "started", "finished", "schema")}
    value |= {"kind": "timing", "measurement": measurement, "cell": cell, "key": key_of(cell)}
    value |= {"suite": {"name": "quick", "version": 3}, "run": "session-7", "repetition": 2}
    value |= {"measured": measured, "asked_bytes": None, "status": "ok", "error": None}
    return signed(value | fields)


ROUTER = CELL["cell"]["router"]
CASES = {
    "cases": [make_case(name) for name in ("forward", "train", "prefill 64", "decode after 8")],
    "balance": "forced",
    "compiled": False,
    "machine": {"overloaded": False},
}


def test_a_converted_run_has_the_metrics_routing_and_curve_that_it_had(tmp_path: Path) -> None:
    folder = older(tmp_path / "quick", *LINES)
    done = convert(folder)
    assert (done.returncode, done.stdout) == (0, f"{folder}: 4 records\n"), done.stderr
    records = read_suite(folder)
    (result,) = results_of(records)
    assert result.metrics == CELL["metrics"]
    assert (result.routing, result.curve, result.audit) == (
        CELL["routing"],
        CELL["curve"],
        CELL["audit"],
    )
    assert (result.label, result.seed, result.budget) == ("expert_choice", 0, 1_600_000_000_000)
    assert (result.status, result.flops_source) == ("ok", "closed form")
    assert result.record.audit_key in records.audits
    assert (result.data, result.environment) == (CELL["data"], CELL["environment"])
    assert (result.record.started, result.record.finished) == (CELL["started"], CELL["finished"])
    seconds = result.record.seconds, result.measurements[0].seconds
    assert {**seconds[0], **seconds[1]} == CELL["seconds"]
    assert result.run.key == result.key
    train = result.run.as_json()["train"] | result.run.as_json()["schedule"]
    old = CELL["cell"]["train"]
    assert {name: train[name] for name in old.keys() & train} == {n: old[n] for n in old.keys() & train}
    assert result.run.as_json()["router"]["options"] == ROUTER["options"]
    assert {name: result.suite[name] for name in CELL["suite"]} == CELL["suite"]


def test_a_report_of_converted_records_shows_the_same_figures(tmp_path: Path) -> None:
    folder = older(tmp_path / "quick", *LINES)
    converter(folder).convert()
    write_report(folder)
    (row,) = csv.DictReader((folder / "leaderboard.csv").read_text().splitlines())
    for name, value in CELL["metrics"].items():
        assert float(row[name]) == value, name
    shown = {
        name: row[name] for name in ("position", "label", "status", "seeds", "audit", "budget_spent")
    }
    assert shown == {
        "position": "1",
        "label": "expert_choice",
        "status": "ok",
        "seeds": "1",
        "audit": "passed 7, not asked 4",
        "budget_spent": "0.99823386624",
    }
    assert row["corpus_sha256"] == CELL["data"]["sha256"]


def test_a_run_that_failed_is_converted_with_its_error(tmp_path: Path) -> None:
    failed = CELL | {"status": "diverged", "error": "the loss is nan", "metrics": {}, "routing": {}}
    folder = older(tmp_path / "quick", signed(failed))
    converter(folder).convert()
    (result,) = results_of(read_suite(folder))
    assert (result.status, result.error, result.measurements) == ("diverged", "the loss is nan", ())


def test_scores_of_tasks_become_measurements_of_their_own(tmp_path: Path) -> None:
    cloze = {"modbench_cloze": 0.4, "modbench_cloze_untrained": 0.26, "modbench_cloze_chance": 0.25}
    names = ("items", "few_shot", "truncated", "tokens")
    score = dict.fromkeys(names, 1) | {"metrics": {}, "version": "1.0", "rule": "causal"}
    unknown = ("answer_bits_per_byte", "answer_margin", "nominal_flops_per_token", "share_routed")
    score |= dict.fromkeys((*unknown, "realised_flops_per_token", "sha256"))
    score |= {"seconds_per_token": 1.0, "part_of": "modbench_cloze"}
    steps = [*CELL["cell"]["measure"]["steps"], "downstream"]
    measure = CELL["cell"]["measure"] | {"steps": steps, "downstream_limit": 9}
    cell = CELL["cell"] | {"measure": measure}
    scored = CELL | {"cell": cell, "key": key_of(cell), "downstream": {"modbench_cloze": score}}
    scored["metrics"] = CELL["metrics"] | cloze
    folder = older(tmp_path / "quick", signed(scored))
    converter(folder).convert()
    (result,) = results_of(read_suite(folder))
    assert result.metrics == scored["metrics"]
    assert result.downstream == scored["downstream"]
    settings = {"task": "modbench_cloze", "limit": 9}
    assert result.settings["downstream"] == {"modbench_cloze": settings}
    (suite,) = read_suite(folder).suites
    assert suite.suite["wanted"]["downstream"] == [settings]


def test_times_of_a_process_are_split_into_training_and_inference(tmp_path: Path) -> None:
    folder = older(tmp_path / "quick", LINES[0], timing("time", ROUTER, CASES))
    converter(folder).convert()
    timings = {record.measures: record for record in read_suite(folder).timings}
    cases = {kind: [case["name"] for case in of.measured["cases"]] for kind, of in timings.items()}
    assert cases == {"training": ["forward", "train"], "inference": ["prefill 64", "decode after 8"]}
    assert {(of.session, of.repetition, of.status) for of in timings.values()} == {
        ("session-7", 2, "ok")
    }
    (suite,) = read_suite(folder).suites
    (row,) = suite.suite["rows"]
    assert row["timed"] == [timings["training"].key] == [timings["inference"].key]
    assert row["label"] == "expert_choice"


def test_a_folder_with_timings_alone_is_converted(tmp_path: Path) -> None:
    machine = {"gemm": [], "copy_bytes_per_second": 1.0, "machine": {"overloaded": False}, "gpu": None}
    lines = (timing("time", ROUTER, CASES), timing("ceiling", None, machine))
    folder = older(tmp_path / "quick", *lines)
    converter(folder).convert()
    records = read_suite(folder)
    assert sorted(t.measures for t in records.timings) == ["ceiling", "inference", "training"]
    (suite,) = records.suites
    assert (suite.suite["name"], suite.suite["version"]) == ("quick", 3)
    assert [row["label"] for row in suite.suite["rows"]] == ["expert_choice"]


def test_weights_move_to_the_folder_of_their_run_and_load(tmp_path: Path) -> None:
    folder = older(tmp_path / "quick", *LINES)
    old = folder / "cells" / CELL["key"]
    old.mkdir(parents=True)
    cell = CELL["cell"]
    model = build_model(ModelConfig(**cell["model"]), build_router("expert_choice", ROUTER["options"]))
    save_weights(old / "model.safetensors", model, key=CELL["key"])
    merges = [[104, 101]] * (cell["model"]["vocabulary"] - 257)
    (old / "modbench.json").write_text(json.dumps({"format": 1, "merges": merges}))
    converter(folder).convert()
    assert not old.exists()
    (record,) = read_suite(folder).runs
    for path in (folder / "expert_choice", folder / "runs" / record.key):
        loaded = load_trained(path)
        assert (loaded.label, loaded.key) == ("quick/expert_choice", record.key)
        assert len(loaded.tokenizer.merges) == len(merges)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_a_line_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = older(tmp_path / "quick", *LINES)
    (folder / "records" / "killed.jsonl").write_text(LINES[0][:-9])
    assert converter(folder).convert() == 4
    assert len(read_suite(folder).runs) == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (LINES[0].replace("5.327432400577663", "1.0"), "a record was changed after it was written"),
        (LINES[0].replace('"schema":3', '"schema":4'), "schema is 4; only 3 is converted"),
        (LINES[0].replace('"schema":3', '"schema":2'), "schema is 2; only 3 is converted"),
    ],
)
def test_a_line_that_is_not_of_an_older_modbench_leaves_the_folder(
    tmp_path: Path, line: str, sentence: str
) -> None:
    folder = older(tmp_path / "quick", LINES[1], line)
    done = convert(folder)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    text = (folder / "records" / "old.jsonl").read_text()
    assert text == f"{LINES[1]}\n{line}\n"
    assert len(list((folder / "records").iterdir())) == 1
