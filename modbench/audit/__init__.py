"""The audit: eleven probes that a model of a router must pass, in float64 so that a difference is a bug
rather than rounding.

A router that fails probe 1, 2, 3 or 9 is not ranked. A probe that does not apply to a router is ``not
asked`` and gives the reason; one that applies to a layer but cannot be evaluated there is ``unchecked``.

B sequences, T tokens.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from modbench.audit.capacity import capacity
from modbench.audit.counting import count
from modbench.audit.decoding import decode_parity
from modbench.audit.depth import bypass, order_and_position, unit_gate
from modbench.audit.finding import (
    ROUNDING,
    Finding,
    Outcome,
    Subject,
    Unchecked,
    Verdict,
    device_of,
)
from modbench.audit.leaks import batch_invariant, causal
from modbench.audit.learning import gradient
from modbench.audit.saving import saving
from modbench.audit.state import state
from modbench.errors import FAULTS, UserError
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.plugin_fault import raised
from modbench.train.out_of_memory import failed_allocation

__all__ = ["PROBES", "ROUNDING", "Finding", "audit", "findings"]


@dataclass(frozen=True)
class Probe:
    """``means``: what a failure means, and what usually causes it. ``ranks``: a failure keeps the router
    out of the ranking. ``once``: run at one shape only. ``trained``: run at the shape of a training
    step, too. ``grouped``: run on a small model with grouped-query attention and a GELU MLP, too."""

    number: int
    name: str
    run: Callable[[Subject, Tensor], Outcome]
    means: str
    ranks: bool = False
    once: bool = False
    trained: bool = False
    grouped: bool = False


PROBES = (
    Probe(
        1,
        "causal",
        causal,
        "A prediction depends on later tokens, so held-out losses are too low and text cannot be "
        "generated; usually a top-k, a mean or a softmax over the sequence is used under the causal "
        "rule.",
        ranks=True,
    ),
    Probe(
        2,
        "batch-invariant",
        batch_invariant,
        "A prediction depends on padding or on other sequences of the batch; usually a threshold, "
        "capacity or statistic is computed over the whole batch, or padding is not masked.",
        ranks=True,
    ),
    Probe(
        3,
        "decode parity",
        decode_parity,
        "Generated text differs from what is scored; usually positions, the decision for a single "
        "token, or cached keys differ with a cache, or state is kept on the module instead of in the "
        "cache.",
        ranks=True,
    ),
    Probe(
        4,
        "capacity",
        capacity,
        "The layer does not route as many tokens as it declares, so nominal FLOPs are wrong; usually "
        "the number is rounded differently, padding is selected, or a threshold selects all tokens or"
        " none.",
    ),
    Probe(
        5,
        "bypass",
        bypass,
        "Tokens shown as skipped are changed; usually the layer shows another selection than it uses,"
        " writes into its input, or processes skipped tokens in part.",
        once=True,
    ),
    Probe(
        6,
        "unit gate",
        unit_gate,
        "At gate 1 the layer does not equal its block; usually the residual is added twice or scaled by "
        "the gate, or the gate is normalised over tokens.",
        once=True,
    ),
    Probe(
        7,
        "order and position",
        order_and_position,
        "Selected tokens are processed in another order or at other positions than in the text; "
        "usually the indices of top-k are not sorted, or positions are counted from 0 among the "
        "selected tokens.",
        once=True,
    ),
    Probe(
        8,
        "gradient",
        gradient,
        "The router does not learn, or learns from padding or from one sequence only; usually the "
        "output is not multiplied by a gate that depends on the scores, or the gate is detached.",
        once=True,
    ),
    Probe(
        9,
        "count",
        count,
        "The FLOPs in the table are not those that are executed, so the comparison at equal compute "
        "is wrong; usually the ledger or active_parameters misses a matmul, padding, or the cached "
        "tokens.",
        ranks=True,
        trained=True,
        grouped=True,
    ),
    Probe(
        10,
        "state",
        state,
        "A resumed run differs from an uninterrupted one, or a run from its repetition; usually a "
        "counter or threshold is not a buffer, is updated outside training or twice under activation "
        "checkpointing, or initial weights do not follow from the seed.",
        once=True,
    ),
    Probe(
        11,
        "saving",
        saving,
        "Skipped tokens are computed and then discarded, so skipping saves no FLOPs; usually the "
        "block runs for all tokens and a mask chooses afterwards.",
        once=True,
    ),
)

#: The shape of a small model with grouped-query attention and a GELU MLP, and its tokens.
GROUPED = ModelConfig(vocabulary=97, width=48, heads=6, kv_heads=2, mlp="gelu")
GROUPED_TOKENS = (2, 19)


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
) -> list[Finding]:
    """Return the `findings` of all probes."""
    return list(findings(model, shapes=shapes, trained=trained))


def findings(
    model: RoutedDecoder,
    *,
    shapes: Sequence[tuple[int, int]] = ((3, 63),),
    trained: tuple[int, int] | None = None,
    seed: int = 0,
    only: Collection[int] = range(1, len(PROBES) + 1),
) -> Iterator[Finding]:
    """Run the probes on ``model`` with random tokens of each of ``shapes`` (sequences, tokens): an odd
    length by default, plus those it is scored with. The count is also run at the shape it was
    ``trained`` with, since it decides how many steps a budget buys. ``model`` is not changed. Yield each
    finding as soon as it is known; ``only``: of the probes with these numbers.

    A probe fails if it fails, or raises, at any shape. Running out of memory is raised."""
    subject = Subject(model, seed, tuple(shapes))
    asked = [probe for probe in PROBES if probe.number in only]
    grouped = _grouped(model, seed) if any(probe.grouped for probe in asked) else None
    for probe in asked:
        cases = [(subject, shape) for shape in (shapes[:1] if probe.once else shapes)]
        if probe.trained and trained is not None and trained not in shapes:
            cases.append((subject, trained))
        if probe.grouped and grouped is not None:
            cases.append((grouped, GROUPED_TOKENS))
        passed: bool | Unchecked | None = None
        figure = ""
        for one, shape in cases:
            here, said = _outcome(probe, one, one.tokens(*shape))
            if here is False and not probe.once:
                where = ", grouped-query attention, GELU MLP" if one is grouped else ""
                said += f" (at {shape[0]} x {shape[1]} tokens{where})"
            if not figure or _RISING.index(here) > _RISING.index(passed):
                passed, figure = here, said
            if passed is False:
                break
        yield _finding(probe, passed, figure)


def finding_of(name: str, model: RoutedDecoder, shape: tuple[int, int]) -> Finding:
    """Run the probe called ``name`` alone, at one shape of ``model``."""
    (probe,) = (probe for probe in PROBES if probe.name == name)
    subject = Subject(model)
    return _finding(probe, *_outcome(probe, subject, subject.tokens(*shape)))


def _finding(probe: Probe, passed: bool | Unchecked | None, figure: str) -> Finding:
    verdict = _VERDICTS[passed]
    return Finding(
        probe=probe.number, name=probe.name, verdict=verdict, figure=figure, ranks=probe.ranks
    )


def _grouped(model: RoutedDecoder, seed: int) -> Subject | None:
    """A small model with grouped-query attention and a GELU MLP; None if the router does not accept its
    shape, or if ``model`` has both already."""
    config = model.config
    if config.mlp == "gelu" and config.key_heads < config.heads:
        return None
    try:
        other = build_model(replace(GROUPED, layers=config.layers), model.router, seed)
    except UserError:  # the router rejects the shape
        return None
    other = other.to(device=device_of(model), dtype=next(model.parameters()).dtype)
    return Subject(other.eval(), seed, (GROUPED_TOKENS,), brief=True)


def _outcome(probe: Probe, subject: Subject, tokens_BT: Tensor) -> Outcome:
    try:
        return probe.run(subject, tokens_BT)
    except FAULTS as error:  # a router's own code runs here; what it raises is the finding
        if failed_allocation(error) is not None:
            raise  # too little memory is not the router's fault
        return False, raised(error, remedy="")
