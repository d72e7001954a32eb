"""What each cell checks of its own trained model; all else belongs to the audit of its scheme."""

from collections.abc import Iterator
from dataclasses import replace

from modbench.measure.audit import PROBES, Finding, findings
from modbench.measure.audit.warmed import ODD
from modbench.routing.build import RoutedDecoder
from modbench.train.loop import Trained

_CAUSAL = next(probe for probe in PROBES if probe.name == "causal")
_COUNT = next(probe for probe in PROBES if probe.name == "count")


def checks(model: RoutedDecoder, trained: Trained) -> Iterator[Finding]:
    """Findings of probe 1 on the trained weights, and of probe 9 on the first and last training step."""
    for finding in findings(model, shapes=(ODD,), probes=(_CAUSAL,)):
        yield replace(finding, figure=f"trained weights: {finding.figure}")
    yield counted_steps(trained)


def counted_steps(trained: Trained) -> Finding:
    """What counting real training steps found."""
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
        probe=_COUNT.number,
        name=_COUNT.name,
        verdict="failed" if wrong else "passed" if counted else "not asked",
        figure="; ".join(figures),
        ranks=_COUNT.ranks,
    )


def _steps(number: int) -> str:
    return "1 training step" if number == 1 else f"{number} training steps"
