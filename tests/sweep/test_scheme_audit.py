"""The audit of a scheme is run once; cells refer to it and check their own trained models."""

import copy
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cell_lets_go import small
from torch import Tensor, nn

import modbench
from modbench.ledger import Ledger, Workload
from modbench.measure.audit import Finding
from modbench.measure.machine_lock import MachineLock
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.report.line import cell_key
from modbench.report.record import AuditRecord
from modbench.report.store import ShardWriter, read_suite
from modbench.routing.build import build_model
from modbench.routing.router import Router
from modbench.sweep import scheme_audit
from modbench.sweep.cell_checks import checks
from modbench.sweep.engine import cells_left
from modbench.sweep.lock import audit_lock
from modbench.sweep.scheme_audit import audit_of, scheme_of
from modbench.sweep.stage import Stage
from modbench.train.loop import StoppedError, Trained

SUITE = """
[suite]
name = "seeds"
[model]
width = 16
layers = 2
heads = 2
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
sequence = 16
batch = 2
[measure]
heldout_tokens = 64
curve_tokens = 64
timing_repeats = 3
downstream = []
[sweep]
budgets = [1e8]
seeds = [0, 1, 2]
[[schemes]]
router = "mod"
"""


@pytest.fixture
def cell(tmp_path: Path) -> dict[str, Any]:
    return small(tmp_path)[0]["cell"]


def changed(cell: dict[str, Any], *path: str, to: object) -> dict[str, Any]:
    other = copy.deepcopy(cell)
    inner = other
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    return other


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("seed",), 7),
        (("train", "budget"), 5),
        (("train", "learning_rate"), 0.5),
        (("router", "label"), "another name"),
        (("measure", "heldout_tokens"), 1),
    ],
)
def test_cells_of_one_scheme_share_an_audit(
    cell: dict[str, Any], path: tuple[str, ...], to: object
) -> None:
    assert scheme_of(changed(cell, *path, to=to)) == scheme_of(cell)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("router", "name"), "mod"),
        (("router", "options"), {"capacity": 0.5}),
        (("router", "plugin_sha256"), "ab" * 32),
        (("model", "width"), 32),
        (("train", "sequence"), 32),
        (("train", "batch"), 3),
    ],
)
def test_another_router_or_shape_has_an_audit_of_its_own(
    cell: dict[str, Any], path: tuple[str, ...], to: object
) -> None:
    assert cell_key(scheme_of(changed(cell, *path, to=to))) != cell_key(scheme_of(cell))


def test_other_versions_and_other_code_of_a_built_in_router_have_audits_of_their_own(
    cell: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {cell_key(scheme_of(cell))}
    for place, name, value in (
        (torch, "__version__", "9.9"),
        (modbench, "__version__", "9.9"),
        (scheme_audit, "code_sha256", lambda file: "ab" * 32),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            keys.add(cell_key(scheme_of(cell)))
    assert len(keys) == 4


def test_a_stored_audit_is_not_run_again(
    tmp_path: Path, cell: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[dict[str, Any]] = []

    def found(model: object, **options: Any) -> Iterator[Finding]:
        run.append(options)
        yield Finding(probe=1, name="causal", verdict="passed", figure="", ranks=True)

    monkeypatch.setattr(scheme_audit, "findings", found)
    with closing(MachineLock(tmp_path)) as lock:
        stage = Stage(lambda event: None, lambda: False, lock)
        audits = []
        for one in (cell, changed(cell, "seed", to=1), changed(cell, "train", "batch", to=3)):
            with ShardWriter(tmp_path / "s") as shard:  # each cell has a process and a shard of its own
                audits.append(audit_of(one, tmp_path / "s", shard, stage))
    assert audits[0] == audits[1]
    assert read_suite(tmp_path / "s").audits == {audit.key: audit for audit in audits}
    shapes = [(3, 63), (16, 16)]
    assert run == [
        {"shapes": shapes, "trained": (2, 16), "seed": 0},
        {"shapes": shapes, "trained": (3, 16), "seed": 0},
    ]


def test_two_cells_that_begin_together_share_one_audit(
    tmp_path: Path, cell: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, runs = threading.Barrier(2), []

    def found(model: object, **options: Any) -> Iterator[Finding]:
        runs.append(options)
        time.sleep(0.5)  # the other one now waits
        yield Finding(probe=1, name="causal", verdict="passed", figure="", ranks=True)

    def audit(seed: int) -> AuditRecord:
        with closing(MachineLock(tmp_path)) as lock, ShardWriter(tmp_path / "s") as shard:
            stage = Stage(lambda event: None, lambda: False, lock)
            both.wait()
            return audit_of(changed(cell, "seed", to=seed), tmp_path / "s", shard, stage)

    monkeypatch.setattr(scheme_audit, "findings", found)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(audit, (0, 1))
    assert first == second
    assert len(runs) == 1
    (shard,) = (tmp_path / "s" / "records").iterdir()
    assert len(shard.read_text().splitlines()) == 1


def test_a_cell_that_waits_for_an_audit_can_be_stopped(
    tmp_path: Path, cell: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheme_audit, "warmed", lambda *_: pytest.fail("it did not wait"))
    stops = iter((False, False, True))
    with (
        closing(MachineLock(tmp_path)) as lock,
        ShardWriter(tmp_path / "s") as shard,
        audit_lock(tmp_path / "s", cell_key(scheme_of(cell)), waiting=lambda: None),
    ):
        stage = Stage(lambda event: None, lambda: next(stops), lock)
        with pytest.raises(StoppedError):
            audit_of(cell, tmp_path / "s", shard, stage)


def test_three_seeds_of_a_scheme_are_audited_once(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "text.txt").write_text("\n\n".join(f"one line and another, {n}." for n in range(200)))
    done = subprocess.run(
        [sys.executable, "-m", "modbench", "run", "suite.toml", "--workers", "2"],
        cwd=tmp_path,
        env={
            **os.environ,
            "MODBENCH_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(Path(modbench.__file__).parent.parent),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "seeds"
    written = [
        line for shard in folder.glob("records/*.jsonl") for line in shard.read_text().splitlines()
    ]
    assert len(written) == 4
    records, audits = read_suite(folder).cells, read_suite(folder).audits
    assert {record.audit_key for record in records} == set(audits)
    for record in records:
        assert [finding["name"] for finding in record.audit] == ["causal", "count"]
        assert {finding["verdict"] for finding in record.audit} == {"passed"}
        assert record.flops_source == "closed form"
    (audit,) = audits.values()
    assert [finding["probe"] for finding in audit.audit] == list(range(1, 12))
    cells = [record.cell for record in records]
    assert cells_left(cells, folder) == []
    (shard,) = (path for path in folder.glob("records/*.jsonl") if '"kind":"audit"' in path.read_text())
    lines = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join(line for line in lines if '"kind":"audit"' not in line))
    assert cells_left(cells, folder) == cells  # cells whose audit is lost are run again
    row = (folder / "leaderboard.csv").read_text().splitlines()[1]
    assert row.startswith("1,1,mod,ok,3,passed 11,")


@dataclass(frozen=True, kw_only=True)
class Late(Router):
    name = "late"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Peeking(Block(model, layer))


class Peeking(Layer):
    """Adds the mean of all tokens once ``mix`` exceeds a threshold that few steps do not reach."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block, self.mix = block, nn.Parameter(torch.zeros(()))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.block(x_BTD + (self.mix - 0.5).relu() * x_BTD.mean(1, keepdim=True), context)

    def ledger(self, workload: Workload) -> Ledger:
        return self.block.ledger(workload)


@pytest.mark.parametrize(("mix", "verdict"), [(0.0, "passed"), (1.0, "failed")])
def test_a_leak_that_training_opens_is_found_in_the_trained_weights(mix: float, verdict: str) -> None:
    model = build_model(ModelConfig(vocabulary=97, width=16, layers=1, heads=2), Late())
    with torch.no_grad():
        model.layers[0].mix.fill_(mix)
    trained = Trained(
        steps=9,
        tokens=576,
        flops=1,
        flops_nominal=1,
        counted_steps=2,
        unseen_steps=0,
        miscounted="",
        curve=[],
    )
    causal, count = checks(model, trained)
    assert (causal.probe, causal.ranks, causal.verdict) == (1, True, verdict)
    assert causal.figure.startswith("trained weights: ")
    assert (count.probe, count.verdict) == (9, "passed")
