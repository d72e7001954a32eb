"""What a router must show before it is ranked: probes on a model of that router, in float64 so that a
difference is a bug and not rounding.

Numbered as the design numbers them. A router that fails 1, 2, 3 or 9 is not ranked. A probe that has
nothing to ask of a router is ``not asked`` and says why: it has neither passed nor failed. One that has
something to ask and no way to, of some layer, is ``unchecked``.

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
from modbench.train.out_of_memory import failed_allocation

__all__ = ["PROBES", "ROUNDING", "Finding", "audit", "findings"]


@dataclass(frozen=True)
class Probe:
    """``ranks``: a failure keeps the router out of the ranking. ``once``: it has a shape of its own.
    ``trained``: it is asked at the shape of a training step, too. ``reads``: it goes by what layers tell
    the trace."""

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
#: What is found at one shape counts more than what stands before it here, found at another.
_RISING = list(_VERDICTS)


def audit(
    model: RoutedDecoder,
    *,
    shapes: Sequence[tuple[int, int]] = ((3, 63),),
    trained: tuple[int, int] | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Run the probes on ``model`` with random tokens, for each of ``shapes`` (sequences, tokens): an odd
    length, and whatever length and batch it is scored at; the count at that of a step it was ``trained``
    with, too, for this decides how many steps a budget buys. A probe passes if it does at all of them
    where it is asked and fails at none; one that raises has failed, unless it was memory that ran out:
    that is raised. The model itself is not changed."""
    return list(findings(model, shapes=shapes, trained=trained, seed=seed))


def findings(
    model: RoutedDecoder,
    *,
    shapes: Sequence[tuple[int, int]] = ((3, 63),),
    trained: tuple[int, int] | None = None,
    seed: int = 0,
) -> Iterator[Finding]:
    """`audit`, one finding as soon as it is known."""
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
            if probe.reads and here is False:  # what else it says then comes of that
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
    except FAULTS as error:  # a router's own code runs here: whatever it raises is its finding
        if failed_allocation(error) is not None:
            raise  # that there is too little memory here is no fault of the router's
        return False, f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
