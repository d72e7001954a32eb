"""Steps of a run: which a suite may choose, and what training costs and finds."""

import pytest

from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.measure.config import STEPS, MeasureConfig
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.sweep.steps.train import _costs, counted_steps
from modbench.train.config import TrainConfig
from modbench.train.loop import Trained

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
TRAIN = TrainConfig(sequence=32, batch=2)
OFF = "ledger minus counter, FLOPs: "
EQUAL = "training steps in which the ledger equals the counter:"
UNSEEN = "steps not counted, for want of memory:"


def kinds(*steps: str) -> list[str]:
    return [kind for kind, _ in MeasureConfig(steps=steps).wanted()]


def test_a_suite_chooses_what_is_measured() -> None:
    assert kinds("train") == kinds("audit", "train", "timing") == []
    assert kinds(*STEPS) == ["heldout", "downstream"]
    assert kinds("heldout", "train") == ["heldout"]


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (("train", "heldouts"), "'heldouts', which is not known; did you mean 'heldout'"),
        (("train", "timing", "timing"), "names 'timing' twice"),
        (("heldout",), "'train' must be there"),
    ],
)
def test_steps_that_can_not_be_taken_are_refused(steps: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        MeasureConfig(steps=steps)


def trained(miscounted: str = "", counted: int = 3, unseen: int = 0, recharged: str = "") -> Trained:
    return Trained(
        ends=(),
        left_behind=0,
        counted_steps=counted,
        unseen_steps=unseen,
        miscounted=miscounted,
        recharged=recharged,
        curve=[],
        earlier_seconds=0.0,
    )


@pytest.mark.parametrize(
    ("miscounted", "counted", "unseen", "verdict", "figure"),
    [
        ("", 3, 0, "passed", f"{EQUAL} 3"),
        ("", 1, 2, "passed", f"{EQUAL} 1; {UNSEEN} 2"),
        ("", 0, 3, "not asked", f"{EQUAL} 0; {UNSEEN} 3"),
        ("+3 in training step 1", 3, 0, "failed", f"{OFF}+3 in training step 1"),
        ("+3 in x", 1, 2, "failed", f"{OFF}+3 in x; {UNSEEN} 2"),
    ],
)
def test_counted_training_steps_are_a_finding_of_probe_9(
    miscounted: str, counted: int, unseen: int, verdict: str, figure: str
) -> None:
    finding = counted_steps(trained(miscounted, counted, unseen))
    assert (finding.probe, finding.name, finding.ranks) == (9, "count", True)
    assert (finding.verdict, finding.figure) == (verdict, figure)


def test_a_ledger_that_answers_differently_when_asked_again_fails_probe_9() -> None:
    finding = counted_steps(trained(recharged="-4 for training step 2"))
    assert (finding.verdict, finding.ranks) == ("failed", True)
    assert finding.figure == (
        f"{EQUAL} 3; ledger asked again minus what it charged, FLOPs: -4 for training step 2"
    )


def test_nominal_costs_are_those_of_the_ledger() -> None:
    model = build_model(SHAPE, build_router("mod"))
    costs = _costs(model, TRAIN)
    for phase in ("forward", "train"):
        ledger = model.ledger(Workload.uniform(2, 32, phase))
        assert costs[f"{phase}_flops_per_token"] == ledger.total() / 64
