"""The audit of a scheme is run once; cells refer to it and check their own trained models."""

import copy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_suite import modbench_says, write_suite
from torch import Tensor, nn

import modbench
from modbench.audit import Finding
from modbench.data.token_data import TokenData
from modbench.data.tokenizer import Tokenizer
from modbench.ledger import Ledger, Workload
from modbench.measure.config import MeasureConfig
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.records.record import cell_key
from modbench.records.store import finished, read_suite
from modbench.routing.build import build_model
from modbench.routing.router import Router
from modbench.sweep.cell import CellRun
from modbench.sweep.cells import by_key, cells_left
from modbench.sweep.lock import audit_lock
from modbench.sweep.stage import Stage
from modbench.sweep.steps import audit as audit_step
from modbench.sweep.steps.audit import scheme_of
from modbench.sweep.steps.train import _checks
from modbench.train.config import TrainConfig
from modbench.train.loop import StoppedError, Trained


def small(folder: Path) -> tuple[dict[str, Any], TokenData]:
    tokenizer = Tokenizer()
    text_N = (np.arange(4000) * 7 % 97).astype(np.uint16)
    data = TokenData(
        train_N=text_N,
        heldout_N=text_N[:500],
        token_bytes_V=np.ones(257, dtype=np.int64),
        tokenizer=tokenizer,
        sha256=64 * "0",
    )
    cell = {
        "router": {"name": "vanilla", "options": {}, "plugin_sha256": None, "label": "vanilla"},
        "model": asdict(ModelConfig(vocabulary=257, width=16, layers=1, heads=2)),
        "data": {},
        "train": asdict(TrainConfig(budget=10**8, sequence=16, batch=2)),
        "measure": asdict(MeasureConfig(heldout_tokens=64, curve_tokens=64, downstream=())),
        "seed": 0,
    }
    spec = {
        "suite": {"name": "s", "version": 1, "rank_by": "heldout_loss"},
        "cell": cell,
        "plugins": [],
        "results": str(folder),
        "folder": str(folder),
        "threads": 1,
    }
    return spec, data


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))


def take_audit(cell: dict[str, Any], folder: Path, stage: Stage | None = None) -> CellRun:
    """Take the step of ``cell``, as its own process does."""
    spec, data = small(folder)
    spec |= {"cell": cell, "results": str(folder / "s")}
    run = CellRun(spec, data, stage or Stage(lambda event: None))
    assert audit_step.audit(None, run) == {}
    return run


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
        (audit_step, "code_sha256", lambda file: "ab" * 32),
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

    monkeypatch.setattr(audit_step, "findings", found)
    cells = (cell, changed(cell, "seed", to=1), changed(cell, "train", "batch", to=3))
    keys = [take_audit(one, tmp_path).found["audit_key"] for one in cells]
    assert keys[0] == keys[1]
    assert {*read_suite(tmp_path / "s").audits} == {*keys}
    shapes = [(3, 63), (16, 16)]
    assert run == [
        {"shapes": shapes, "trained": (2, 16), "seed": 0},
        {"shapes": shapes, "trained": (3, 16), "seed": 0},
    ]


@pytest.mark.parametrize(("verdict", "decodes"), [("passed", True), ("failed", False)])
def test_a_stored_verdict_tells_whether_the_cache_is_measured(
    tmp_path: Path,
    cell: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    decodes: bool,
) -> None:
    one = Finding(probe=3, name="decode parity", verdict=verdict, figure="", ranks=True)
    monkeypatch.setattr(audit_step, "findings", lambda model, **options: iter([one]))
    assert [take_audit(cell, tmp_path).decodes for _ in range(2)] == [decodes, decodes]


def test_two_cells_that_begin_together_share_one_audit(
    tmp_path: Path, cell: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, runs = threading.Barrier(2), []

    def found(model: object, **options: Any) -> Iterator[Finding]:
        runs.append(options)
        time.sleep(0.5)  # the other one now waits
        yield Finding(probe=1, name="causal", verdict="passed", figure="", ranks=True)

    def audit(seed: int) -> str | None:
        both.wait()
        return take_audit(changed(cell, "seed", to=seed), tmp_path).found["audit_key"]

    monkeypatch.setattr(audit_step, "findings", found)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(audit, (0, 1))
    assert first == second
    assert len(runs) == 1
    (shard,) = (path for path in (tmp_path / "s" / "records").iterdir() if path.stat().st_size)
    assert len(shard.read_text().splitlines()) == 1


def test_a_cell_that_waits_for_an_audit_can_be_stopped(
    tmp_path: Path, cell: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_step, "warmed", lambda *_: pytest.fail("it did not wait"))
    told: list[dict[str, Any]] = []
    stage = Stage(told.append, lambda: bool(told))
    with (
        audit_lock(tmp_path / "s", cell_key(scheme_of(cell)), waiting=lambda: None),
        pytest.raises(StoppedError),
    ):
        take_audit(cell, tmp_path, stage)
    assert told == [{"event": "phase", "phase": "waiting for another cell to audit this scheme"}]


def test_three_seeds_of_a_scheme_are_audited_once(tmp_path: Path) -> None:
    write_suite(
        tmp_path,
        "seeds",
        "mod",
        model={"layers": 2},
        train={"batch": 2},
        measure={"steps": ["audit", "train", "heldout"], "heldout_tokens": 64, "curve_tokens": 64},
        sweep={"budgets": [1e8], "seeds": [0, 1, 2]},
    )
    code, out = modbench_says(tmp_path, "run", "suite.toml", "--workers", "2")
    assert code == 0, out
    folder = tmp_path / "my-results" / "seeds"
    written = [
        line for shard in folder.glob("records/*.jsonl") for line in shard.read_text().splitlines()
    ]
    assert len(written) == 4
    stored = read_suite(folder)
    records, audits = stored.cells, stored.audits
    assert {record.audit_key for record in records} == set(audits)
    for record in records:
        assert [finding["name"] for finding in record.audit] == ["causal", "batch-invariant", "count"]
        assert {finding["verdict"] for finding in record.audit} == {"passed"}
        assert record.flops_source == "closed form"
    (audit,) = audits.values()
    assert [finding["probe"] for finding in audit.audit] == list(range(1, 12))
    cells = by_key(record.cell for record in records)
    assert cells_left(cells, finished(folder)) == {}
    (shard,) = (path for path in folder.glob("records/*.jsonl") if '"kind":"audit"' in path.read_text())
    lines = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join(line for line in lines if '"kind":"audit"' not in line))
    assert cells_left(cells, finished(folder)) == cells  # cells whose audit is lost are run again
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
        counted_steps=3,
        unseen_steps=0,
        miscounted="",
        recharged="",
        curve=[],
    )
    causal, _, count = _checks(model, trained)
    assert (causal.probe, causal.ranks, causal.verdict) == (1, True, verdict)
    assert causal.figure.startswith("trained weights: ")
    assert (count.probe, count.verdict) == (9, "passed")
