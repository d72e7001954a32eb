"""The audit: eleven probes that a model of a router must pass, in float64 so that a difference is a bug
rather than rounding.

A router that fails probe 1, 2, 3 or 9 is not ranked. A probe that does not apply to a router is ``not
asked`` and gives the reason; one that applies to a layer but cannot be evaluated there is ``unchecked``.

B sequences, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from modbench.errors import FAULTS
from modbench.measure.audit.capacity import capacity
from modbench.measure.audit.counting import count
from modbench.measure.audit.decoding import decode_parity
from modbench.measure.audit.depth import bypass, order_and_position, unit_gate
from modbench.measure.audit.finding import (
    ROUNDING,
    Finding,
    Outcome,
    Subject,
    Unchecked,
    Verdict,
)
from modbench.measure.audit.leaks import batch_invariant, causal
from modbench.measure.audit.learning import gradient
from modbench.measure.audit.saving import saving
from modbench.measure.audit.state import state
from modbench.routing.build import RoutedDecoder
from modbench.routing.plugin_fault import raised
from modbench.train.out_of_memory import failed_allocation

__all__ = ["PROBES", "ROUNDING", "Finding", "audit", "findings"]


@dataclass(frozen=True)
class Probe:
    """``ranks``: a failure keeps the router out of the ranking. ``once``: run at one shape only.
    ``trained``: run at the shape of a training step, too. ``reads``: relies on the trace."""

    number: int
    name: str
    run: Callable[[Subject, Tensor], Outcome]
    ranks: bool = False
    once: bool = False
    trained: bool = False
    reads: bool = True


PROBES = (
    Probe(1, "causal", causal, ranks=True, reads=False),
    Probe(2, "batch-invariant", batch_invariant, ranks=True, reads=False),
    Probe(3, "decode parity", decode_parity, ranks=True),
    Probe(4, "capacity", capacity),
    Probe(5, "bypass", bypass),
    Probe(6, "unit gate", unit_gate),
    Probe(7, "order and position", order_and_position),
    Probe(8, "gradient", gradient, once=True),
    Probe(9, "count", count, ranks=True, trained=True),
    Probe(10, "state", state, once=True, reads=False),
    Probe(11, "saving", saving),
)


_VERDICTS: dict[bool | Unchecked | None, Verdict] = {
    None: "not asked",
    True: "passed",
    "unchecked": "unchecked",
    False: "failed",
}
#: The verdict over several shapes is the last of these found at any of them.
_RISING = list(_VERDICTS)


def audit(
    model: RoutedDecoder,
    *,
    shapes: Sequence[tuple[int, int]] = ((3, 63),),
    trained: tuple[int, int] | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Run the probes on ``model`` with random tokens of each of ``shapes`` (sequences, tokens): an odd
    length by default, plus those it is scored with. The count is also run at the shape it was
    ``trained`` with, since it decides how many steps a budget buys. ``model`` is not changed.

    A probe fails if it fails, or raises, at any shape. Running out of memory is raised."""
    return list(findings(model, shapes=shapes, trained=trained, seed=seed))


def findings(
    model: RoutedDecoder,
    *,
    shapes: Sequence[tuple[int, int]] = ((3, 63),),
    trained: tuple[int, int] | None = None,
    seed: int = 0,
) -> Iterator[Finding]:
    """Like `audit`, but yield each finding as soon as it is known."""
    subject = Subject(model, seed)
    for probe in PROBES:
        asked = list(shapes[:1] if probe.once else shapes)
        if probe.trained and trained is not None and trained not in asked:
            asked.append(trained)
        passed: bool | Unchecked | None = None
        figure = ""
        for shape in asked:
            tokens_BT = subject.tokens(*shape)
            here, said = _outcome(probe, subject, tokens_BT)
            if probe.reads and here is False:  # a wrong trace explains other failures
                said = subject.misreported(tokens_BT) or said
            if here is False and not probe.once:
                said += f" (at {shape[0]} x {shape[1]} tokens)"
            if _RISING.index(here) >= _RISING.index(passed):
                passed, figure = here, said
            if passed is False:
                break
        verdict = _VERDICTS[passed]
        yield Finding(
            probe=probe.number, name=probe.name, verdict=verdict, figure=figure, ranks=probe.ranks
        )


def _outcome(probe: Probe, subject: Subject, tokens_BT: Tensor) -> Outcome:
    try:
        return probe.run(subject, tokens_BT)
    except FAULTS as error:  # a router's own code runs here; what it raises is the finding
        if failed_allocation(error) is not None:
            raise  # too little memory is not the router's fault
        return False, raised(error, remedy="", router=subject.model.router)


def finding_of(name: str, model: RoutedDecoder, shape: tuple[int, int], seed: int = 0) -> Finding:
    """Run the probe called ``name`` alone, at one shape."""
    (probe,) = (probe for probe in PROBES if probe.name == name)
    subject = Subject(model, seed)
    passed, figure = _outcome(probe, subject, subject.tokens(*shape))
    return Finding(
        probe=probe.number,
        name=name,
        verdict=_VERDICTS[passed],
        figure=figure,
        ranks=probe.ranks,
    )
