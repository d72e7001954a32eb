"""What a cell's probe 9 says once real training steps were counted."""

from dataclasses import dataclass
from typing import Any

import pytest

from modbench.ledger import Flops, Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.layer import Layer
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_names
from modbench.routing.router import Router
from modbench.sweep.cell import _add_counted_steps, _costs
from modbench.train.config import TrainConfig
from modbench.train.loop import Trained

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
TRAIN = TrainConfig(budget=1, sequence=32, batch=2)
OFF = "ledger minus counter, FLOPs: "


@dataclass(frozen=True, kw_only=True)
class Lies(Router):
    """Half the truth in training mode."""

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return LyingBlock(model, layer)


class LyingBlock(Block):
    def ledger(self, load: Workload) -> Ledger:
        ledger, by = super().ledger(load), 2 if self.training else 1
        return Ledger({k: Flops(f.model // by, f.full // by, f.executed // by) for k, f in ledger})


def trained(miscounted: str = "", counted: int = 5, unseen: int = 0) -> Trained:
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
    ("verdict", "figure", "miscounted", "elsewise", "after"),
    [
        ("passed", "ledger equals counter", "", "", "ledger equals counter; and in 5 steps of training"),
        (
            "passed",
            "ledger equals counter",
            "+3 in training step 64",
            "",
            f"{OFF}+3 in training step 64",
        ),
        ("passed", "ledger equals counter", "+3 in x", "-1 in y", f"{OFF}+3 in x, -1 in y"),
        ("failed", f"{OFF}+1 in z", "", "", f"{OFF}+1 in z"),
        ("failed", f"{OFF}+1 in z", "+3 in x", "", f"{OFF}+1 in z; +3 in x"),
    ],
)
def test_steps_that_were_counted_go_to_probe_9(
    verdict: str, figure: str, miscounted: str, elsewise: str, after: str
) -> None:
    audit = probes(verdict, figure)
    _add_counted_steps(audit, trained(miscounted), elsewise)
    failed = bool(miscounted or elsewise) or verdict == "failed"
    assert audit[1]["verdict"] == ("failed" if failed else "passed")
    assert audit[1]["figure"] == after
    assert audit[0] == probes(verdict, figure)[0]


@pytest.mark.parametrize(
    ("miscounted", "counted", "unseen", "after"),
    [
        ("", 0, 1, "ledger equals counter; 1 step was"),
        ("", 5, 2, "ledger equals counter; and in 5 steps of training; 2 steps were"),
        ("+3 in x", 5, 2, f"{OFF}+3 in x; 2 steps were"),
    ],
)
def test_steps_that_memory_kept_from_being_counted_are_told(
    miscounted: str, counted: int, unseen: int, after: str
) -> None:
    audit = probes("passed", "ledger equals counter")
    _add_counted_steps(audit, trained(miscounted, counted, unseen), "")
    assert audit[1]["figure"] == f"{after} not counted in training, for want of memory"
    assert audit[1]["verdict"] == ("failed" if miscounted else "passed")


@pytest.mark.parametrize("name", router_names())
def test_built_in_ledgers_say_the_same_in_both_modes(name: str) -> None:
    assert _costs(build_model(SHAPE, build_router(name)), TRAIN)[1] == ""


def test_a_ledger_that_says_less_in_training_mode_is_told_and_forward_is_asked_where_it_scores() -> None:
    costs, elsewise = _costs(build_model(SHAPE, Lies()), TRAIN)
    honest = build_model(SHAPE, build_router("vanilla")).ledger(Workload.uniform(2, 32))
    assert costs["forward_flops_per_token"] == honest.total() / 64
    assert elsewise.startswith("-")
    assert elsewise.endswith(" in nominal forward in training mode")
