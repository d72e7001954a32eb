"""The probes of the audit: numbers, names, which of them rank, and what a failure means; docs/audit.md
says what to do about it. Without torch, since reports of records need the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modbench.records.record import Finding


@dataclass(frozen=True)
class ProbeText:
    """``means``: what a failure means. ``ranks``: a failure keeps the router out of the ranking.
    ``of_leaks``: run on trained weights, too."""

    number: int
    name: str
    means: str
    ranks: bool = False
    of_leaks: bool = False


#: How pages and commands show a verdict of records that a reader would not know.
SHOWN = {"not asked": "n/a"}
_CAUSAL = "a prediction depends on later tokens: validation losses are too low, no text can be generated"
PROBE_TEXTS = (
    ProbeText(1, "causal", _CAUSAL, ranks=True, of_leaks=True),
    ProbeText(
        2,
        "batch-invariant",
        "a prediction depends on padding or on other sequences of the batch",
        ranks=True,
        of_leaks=True,
    ),
    ProbeText(3, "decode parity", "generated text differs from scored text", ranks=True),
    ProbeText(4, "capacity", "the layer routes another number of tokens: nominal FLOPs are wrong"),
    ProbeText(5, "bypass", "tokens shown as skipped are changed"),
    ProbeText(6, "unit gate", "at gate 1 the layer does not equal its block"),
    ProbeText(7, "order and position", "selected tokens are processed in another order or place"),
    ProbeText(8, "gradient", "the router does not learn, or learns from padding or one sequence only"),
    ProbeText(9, "count", "stated and executed FLOPs differ: equal compute is not equal", ranks=True),
    ProbeText(10, "state", "a resumed run differs from an uninterrupted one, or from its repetition"),
    ProbeText(11, "saving", "skipped tokens are computed and discarded: skipping saves no FLOPs"),
    ProbeText(12, "derivative", "the gradient of a layer is not the derivative of its output"),
)
#: Start of the figure of a failed probe that an error stopped: of the router's code, it is no finding.
COULD_NOT_RUN = "could not run"
#: Start of the figure where that error is the one of an earlier probe.
AS_BEFORE = f"{COULD_NOT_RUN}, as probe"
#: Probes that every run must pass to be ranked.
RANKING_PROBES = tuple(probe.number for probe in PROBE_TEXTS if probe.ranks)
#: Probes that a leak fails.
LEAK_PROBES = tuple(probe.number for probe in PROBE_TEXTS if probe.of_leaks)


def leak_verdict(findings: Sequence["Finding"]) -> str:
    """Return ``passed``; ``failed`` with the probe and its figure; or ``not audited``, also if an error
    stopped a probe. ``findings``: of the audit of the scheme, and of the trained weights."""
    probes = [finding for finding in findings if finding.probe in LEAK_PROBES]
    for finding in probes:
        if finding.verdict == "failed" and not finding.figure.startswith(COULD_NOT_RUN):
            return f"failed probe {finding.probe} {finding.name}: {finding.figure}"
    passed = {finding.probe for finding in probes if finding.verdict == "passed"}
    stopped = any(finding.verdict == "failed" for finding in probes)
    return "passed" if passed == set(LEAK_PROBES) and not stopped else "not audited"
