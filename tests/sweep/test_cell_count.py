"""What a cell's probe 9 says once real training steps were counted."""

from typing import Any

import pytest

from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.sweep.cell_steps import _add_counted_steps, _costs
from modbench.train.config import TrainConfig
from modbench.train.loop import Trained

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
TRAIN = TrainConfig(budget=1, sequence=32, batch=2)
OFF = "ledger minus counter, FLOPs: "


def trained(miscounted: str = "", counted: int = 2, unseen: int = 0) -> Trained:
    return Trained(
        steps=9,
        tokens=576,
        flops=1,
        flops_nominal=1,
        counted_steps=counted,
        unseen_steps=unseen,
        miscounted=miscounted,
        curve=[],
    )


def probes(verdict: str, figure: str) -> list[dict[str, Any]]:
    causal = {"probe": 1, "name": "causal", "verdict": "passed", "figure": "", "ranks": True}
    return [causal, causal | {"probe": 9, "name": "count", "verdict": verdict, "figure": figure}]


@pytest.mark.parametrize(
    ("verdict", "figure", "miscounted", "after"),
    [
        ("passed", "ledger equals counter", "", "ledger equals counter; and in 2 steps of training"),
        ("passed", "ledger equals counter", "+3 in training step 1", f"{OFF}+3 in training step 1"),
        ("failed", f"{OFF}+1 in z", "", f"{OFF}+1 in z"),
        ("failed", f"{OFF}+1 in z", "+3 in x", f"{OFF}+1 in z; +3 in x"),
    ],
)
def test_counted_steps_are_added_to_probe_9(
    verdict: str, figure: str, miscounted: str, after: str
) -> None:
    audit = probes(verdict, figure)
    _add_counted_steps(audit, trained(miscounted))
    assert audit[1]["verdict"] == ("failed" if miscounted else verdict)
    assert audit[1]["figure"] == after
    assert audit[0] == probes(verdict, figure)[0]


@pytest.mark.parametrize(
    ("miscounted", "counted", "unseen", "after"),
    [
        ("", 0, 1, "ledger equals counter; 1 step was"),
        ("+3 in x", 1, 2, f"{OFF}+3 in x; 2 steps were"),
    ],
)
def test_steps_that_memory_did_not_hold_under_the_counter_are_stated(
    miscounted: str, counted: int, unseen: int, after: str
) -> None:
    audit = probes("passed", "ledger equals counter")
    _add_counted_steps(audit, trained(miscounted, counted, unseen))
    assert audit[1]["figure"] == f"{after} not counted in training, for want of memory"


def test_nominal_costs_are_those_of_the_ledger() -> None:
    model = build_model(SHAPE, build_router("mod"))
    costs = _costs(model, TRAIN)
    for phase in ("forward", "train"):
        ledger = model.ledger(Workload.uniform(2, 32, phase))
        assert costs[f"{phase}_flops_per_token"] == ledger.total() / 64
