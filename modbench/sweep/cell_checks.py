"""The checks of a cell's own trained model; all others belong to the audit of its scheme."""

from dataclasses import replace

from modbench.measure.audit import Finding, finding_of
from modbench.measure.audit.warmed import ODD
from modbench.routing.build import RoutedDecoder
from modbench.train.loop import Trained


def checks(model: RoutedDecoder, trained: Trained) -> list[Finding]:
    """Findings of probe 1 on the trained weights, and of probe 9 on the first and last training step."""
    causal = finding_of("causal", model, ODD)
    return [replace(causal, figure=f"trained weights: {causal.figure}"), counted_steps(trained)]


def counted_steps(trained: Trained) -> Finding:
    """The finding from counting real training steps."""
    counted, unseen, wrong = trained.counted_steps, trained.unseen_steps, trained.miscounted
    figures = []
    if wrong:
        figures.append(f"ledger minus counter, FLOPs: {wrong}")
    elif counted:
        figures.append(f"ledger equals counter in {_steps(counted)}")
    if unseen:
        were = "was" if unseen == 1 else "were"
        figures.append(f"{_steps(unseen)} {were} not counted, for want of memory")
    return Finding(
        probe=9,
        name="count",
        verdict="failed" if wrong else "passed" if counted else "not asked",
        figure="; ".join(figures),
        ranks=True,
    )


def _steps(number: int) -> str:
    return "1 training step" if number == 1 else f"{number} training steps"
