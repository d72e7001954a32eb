"""The whole road on a small text: train, audit, measure, record, rank, plot; resumed after a kill."""

import contextlib
import csv
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from inline import processes
from safetensors.torch import load_file
from small_suite import modbench_says, start, suite_text

from modbench.data.token_data import load
from modbench.measure.loss import heldout_loss, heldout_windows
from modbench.records.result import Result, results_of
from modbench.records.store import read_suite
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

pytestmark = pytest.mark.figures

TRAINED = ["audit", "train", "heldout"]
MEASURED = ["train", "heldout", "memory", "timing"]

LEAKY = """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.model.context import Context
from modbench.routing.registry import register_router
from modbench.model.layer import Layer
from modbench.routing.router import Router

@register_router("leaky")
@dataclass(frozen=True, kw_only=True)
class Leaky(Router):
    def build_layer(self, model, layer):
        return Mean(Block(model, layer))

class Mean(Layer):
    def __init__(self, block):
        super().__init__()
        self.block = block
    def forward(self, x_BTD, context):
        return self.block(x_BTD + 0.1 * x_BTD.mean(1, keepdim=True), context)
    def ledger(self, load):
        return self.block.ledger(load)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    words = [f"the {a} {b} of a {c}." for a in ("red", "old", "wet") for b in "pqrs" for c in "xyz"]
    lines = [" ".join(words[(7 * i + j) % len(words)] for j in range(30)) for i in range(120)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    (tmp_path / "leaky.py").write_text(LEAKY)
    return tmp_path


def suite(budget: float, steps: list[str]) -> str:
    return suite_text(
        "road",
        "vanilla",
        "mod",
        model={"width": 32, "layers": 2, "heads": 4},
        train={"sequence": 64, "batch": 4, "learning_rate": 1e-2, "checkpoint_seconds": 0.05},
        measure={"steps": steps, "heldout_tokens": 1024, "curve_tokens": 256},
        time={"samples": 3},
        sweep={"budgets": [budget]},
    )


def untimed(folder: Path) -> dict[str, Any]:
    """The parts of results that must repeat: all except times, memory and dates."""
    return {
        result.label: (result.metrics, result.curve, result.audit, result.status)
        for result in results_of(read_suite(folder))
    }


def scored_again(place: Path, result: Result) -> tuple[float, float]:
    """The held-out loss under both rules, from the weights that the run left."""
    weights = place / "my-results" / "road" / "runs" / result.key / "model.safetensors"
    run = result.run
    model = build_model(run.model, build_router(run.router.name, run.router.options))
    model.load_state_dict(load_file(weights))
    with contextlib.chdir(place):
        data = load(run.data, cache=place / "cache")
    windows_WT = heldout_windows(data.heldout_N, sequence=64, tokens=1024)
    causal, leaky = (
        heldout_loss(model, windows_WT, data.token_bytes_V, selection=rule).nats_per_token
        for rule in ("causal", "topk")
    )
    return causal, leaky


def test_one_command_gives_records_a_table_and_plots_even_after_a_kill(place: Path) -> None:
    (place / "suite.toml").write_text(suite(5e9, TRAINED))
    code, out = modbench_says(place, "run", "suite.toml", "--plugin", "leaky.py")
    assert code == 0, out
    folder = place / "my-results" / "road"
    stored = read_suite(folder)
    audits = stored.audits
    records = {result.label: result for result in results_of(stored)}
    assert set(records) == {"vanilla", "mod", "leaky"}
    assert len(audits) == 3
    for label, record in records.items():
        metrics = record.metrics
        assert record.status == "ok"
        assert metrics["heldout_loss"] < metrics["unigram_loss"] or label == "leaky"
        assert metrics["train_flops"] <= 5e9 < metrics["train_flops"] * 1.05
        assert [finding.probe for finding in audits[record.audit_key].audit] == list(range(1, 13))
        assert [finding.probe for finding in record.audit] == [1, 2, 9]
        assert str(place) not in record.record.line().replace(str(place / "text.txt"), "")
        assert (folder / "runs" / record.key / "model.safetensors").exists()
        assert not (folder / "runs" / record.key / "checkpoint.pt").exists()
    assert records["mod"].metrics["train_steps"] > records["vanilla"].metrics["train_steps"]
    for label, differs in (("vanilla", False), ("mod", True)):
        causal, leaky = scored_again(place, records[label])
        metrics = records[label].metrics
        assert metrics["heldout_loss"] == causal
        assert metrics["heldout_loss_leaky"] == leaky
        assert (causal != leaky) == differs
        assert metrics["leak"] == causal - leaky
    leaky = records["leaky"]
    for findings, failed in ((audits[leaky.audit_key].audit, [1, 2, 3]), (leaky.audit, [1, 2])):
        # The mean is over padding, too.
        assert [one.probe for one in findings if one.verdict == "failed"] == failed
    page = (folder / "leaderboard.md").read_text()
    table = page[: page.index("## ")] if "## " in page else page
    assert "† | leaky |" in table.split("\n\n")[3]
    assert len(list(folder.glob("*.svg"))) == 4

    files = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, out = modbench_says(place, "report")
    assert code == 0, out
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files

    resumes_to_the_same_record_after_a_kill(place)
    refuses_text_that_changed_since_its_records(place)


def resumes_to_the_same_record_after_a_kill(place: Path) -> None:
    """With time and memory measured, too."""
    (place / "timed.toml").write_text(suite(5e9, MEASURED))
    process = start(place, "run", "timed.toml", "--results", "parts", "--only", "mod")
    runs = place / "parts" / "road" / "runs"
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/checkpoint.pt")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(read_suite(place / "parts" / "road").runs) == 0
    with processes():
        code, out = modbench_says(place, "run", "timed.toml", "--results", "parts", "--only", "mod")
    assert code == 0, out
    (result,) = results_of(read_suite(place / "parts" / "road"))
    with (place / "parts" / "road" / "leaderboard.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert row["train_step_seconds_n"] == "3"
    assert float(row["peak_memory_bytes_median"]) > 4 * 4 * result.metrics["parameters"]
    metrics, *resumed = untimed(place / "parts" / "road")["mod"]
    whole, *once = untimed(place / "my-results" / "road")["mod"]
    assert resumed == once
    both = whole.keys() & metrics.keys()
    assert {"heldout_loss", "heldout_loss_leaky", "train_flops"} < both
    assert [whole[name] for name in both] == [metrics[name] for name in both]


def refuses_text_that_changed_since_its_records(place: Path) -> None:
    before = {path: path.read_bytes() for path in (place / "my-results").rglob("*.jsonl")}
    with (place / "text.txt").open("a") as text:
        text.write("\n\nAnd one more line of it.\n" * 9)
    code, out = modbench_says(place, "run", "suite.toml", "--only", "vanilla")
    assert code == 2, out
    assert "made from other text" in out
    assert "Traceback" not in out
    assert {path: path.read_bytes() for path in (place / "my-results").rglob("*.jsonl")} == before


def test_a_budget_smaller_than_one_step_is_refused_before_anything_runs(place: Path) -> None:
    (place / "suite.toml").write_text(suite(1000, TRAINED))
    code, out = modbench_says(place, "run", "suite.toml")
    assert code == 2
    assert "smaller than one training step of 'vanilla'" in out
    assert not list(place.glob("my-results/**/*.jsonl"))
