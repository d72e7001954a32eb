"""Steps of a run: which a suite may choose, and what training costs and finds."""

import pytest

from modbench.measure.config import STEPS, MeasureConfig, Step
from modbench.sweep.steps.train import counted_steps
from modbench.train.loop import End, Trained

OFF = "ledger minus counter, FLOPs: "
EQUAL = "training steps in which the ledger equals the counter:"
UNSEEN = "steps not counted, for want of memory:"


def kinds(*steps: Step) -> list[str]:
    return [kind for kind, _ in MeasureConfig(steps=steps).wanted()]


def test_a_suite_chooses_what_is_measured() -> None:
    assert kinds("train") == kinds("audit", "train", "timing") == []
    assert kinds(*STEPS) == ["heldout", "downstream"]
    assert kinds("heldout", "train") == ["heldout"]


def trained(miscounted: str = "", counted: int = 3, unseen: int = 0, recharged: str = "") -> Trained:
    return Trained(
        end=End(budget=1, steps=1, tokens=1, flops=1, flops_nominal=1),
        counted_steps=counted,
        unseen_steps=unseen,
        miscounted=miscounted,
        recharged=recharged,
        curve=[],
    )


@pytest.mark.parametrize(
    ("miscounted", "counted", "unseen", "verdict", "figure"),
    [
        ("", 1, 2, "passed", f"{EQUAL} 1; {UNSEEN} 2"),
        ("", 0, 3, "not asked", f"{EQUAL} 0; {UNSEEN} 3"),
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
