"""The audit: twelve probes that a model of a router must pass, in float64 so that a difference is a bug
rather than rounding.

A router that fails probe 1, 2, 3 or 9 is not ranked. A probe that does not apply to a router is ``not
asked`` and gives the reason; one that applies to a layer but cannot be evaluated there is ``unchecked``.

B sequences, T tokens.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from modbench.audit.capacity import capacity
from modbench.audit.counting import count
from modbench.audit.decoding import decode_parity
from modbench.audit.depth import bypass, order_and_position, saving, unit_gate
from modbench.audit.derivative import derivative
from modbench.audit.finding import (
    ROUNDING,
    Finding,
    ModelSubject,
    Outcome,
    Subject,
    Unchecked,
    Verdict,
    device_of,
)
from modbench.audit.leaks import batch_invariant, causal
from modbench.audit.learning import gradient
from modbench.audit.state import state
from modbench.errors import FAULTS, UserError
from modbench.model.config import ModelConfig
from modbench.model.language_model import LanguageModel
from modbench.records.probes import PROBE_TEXTS, ProbeText
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.plugin_fault import raised
from modbench.train.out_of_memory import failed_allocation

__all__ = ["PROBES", "ROUNDING", "Finding", "audit", "findings"]


@dataclass(frozen=True, kw_only=True)
class Probe(ProbeText):
    """A probe, and where it runs. ``once``: at one shape only. ``trained``: at the shape of a training
    step, too. ``grouped``: on a small model with grouped-query attention and a GELU MLP, too.
    ``any_model``: it asks nothing of a router, and is run on a model of transformers, too."""

    run: Callable[[Any, Tensor], Outcome]
    once: bool = False
    trained: bool = False
    grouped: bool = False
    any_model: bool = False


_ONCE = {"once": True}
_LEAK = {"any_model": True}
#: The function of each probe, in the order of `PROBE_TEXTS`, and where it runs.
_RUNS: tuple[tuple[Callable[[Any, Tensor], Outcome], dict[str, Any]], ...] = (
    (causal, _LEAK),
    (batch_invariant, _LEAK),
    (decode_parity, _LEAK),
    (capacity, {}),
    (bypass, _ONCE),
    (unit_gate, _ONCE),
    (order_and_position, _ONCE),
    (gradient, _ONCE),
    (count, {"trained": True, "grouped": True, "any_model": True}),
    (state, _ONCE),
    (saving, _ONCE),
    (derivative, _ONCE),
)
PROBES = tuple(
    Probe(**vars(text), run=run, **where) for text, (run, where) in zip(PROBE_TEXTS, _RUNS, strict=True)
)

#: Why a probe of routers is not asked of a model.
NO_ROUTER = "a model of transformers has no router of modbench"
NO_BLOCKS = "the probe reads blocks of modbench's decoder, and this is a model of transformers"
#: The shape of a small model with grouped-query attention and a GELU MLP, and its tokens: few, since
#: they run in addition to the audited shapes.
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
    model: LanguageModel,
    *,
    shapes: Sequence[tuple[int, int]] = ((3, 63),),
    trained: tuple[int, int] | None = None,
) -> list[Finding]:
    """Return the `findings` of all probes."""
    return list(findings(model, shapes=shapes, trained=trained))


def findings(
    model: LanguageModel,
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
    subject = _subject(model, seed, tuple(shapes))
    no_router = getattr(model, "router", None) is None
    asked = [probe for probe in PROBES if probe.number in only]
    grouped = _grouped(model, seed) if any(probe.grouped for probe in asked) else None
    for probe in asked:
        if not (probe.any_model or isinstance(subject, Subject)):
            yield _finding(probe, None, NO_ROUTER if no_router else NO_BLOCKS)
            continue
        cases = [(subject, shape) for shape in (shapes[:1] if probe.once else shapes)]
        if probe.trained and trained is not None and trained not in shapes:
            cases.append((subject, trained))
        if probe.grouped and grouped is not None:
            cases.append((grouped, GROUPED_TOKENS))
        passed: bool | Unchecked | None = None
        figure = ""
        for variant, shape in cases:
            verdict, detail = _outcome(probe, variant, variant.tokens(*shape))
            if verdict is False and not probe.once:
                where = ", grouped-query attention, GELU MLP" if variant is grouped else ""
                detail += f" (at {shape[0]} x {shape[1]} tokens{where})"
            if not figure or _RISING.index(verdict) > _RISING.index(passed):
                passed, figure = verdict, detail
            if passed is False:
                break
        subject.forget()
        yield _finding(probe, passed, figure)


def printed(found: Iterable[Finding]) -> list[Finding]:
    """Print a line of each finding as it is made: aligned columns, or what a failure means. Return
    all."""
    results = []
    wide = max(len(probe.name) for probe in PROBES)
    for finding in found:
        line = f"{finding.probe:>2}  {finding.name:<{wide}}  {finding.verdict:<9}  {finding.figure}"
        if finding.failed:
            means = PROBE_TEXTS[finding.probe - 1].means
            line = (
                f"FAILED {finding.probe} {finding.name}: {finding.figure}; {means} (`modbench docs "
                f"audit`).{' Not ranked.' * finding.ranks}"
            )
        print(line, flush=True)
        results.append(finding)
    return results


def finding_of(name: str, model: LanguageModel, shape: tuple[int, int]) -> Finding:
    """Run the probe called ``name`` alone, at one shape of ``model``."""
    (probe,) = (probe for probe in PROBES if probe.name == name)
    subject = _subject(model)
    return _finding(probe, *_outcome(probe, subject, subject.tokens(*shape)))


def _finding(probe: Probe, passed: bool | Unchecked | None, figure: str) -> Finding:
    verdict = _VERDICTS[passed]
    return Finding(
        probe=probe.number, name=probe.name, verdict=verdict, figure=figure, ranks=probe.ranks
    )


def _subject(
    model: LanguageModel, seed: int = 0, shapes: tuple[tuple[int, int], ...] = ()
) -> ModelSubject:
    if isinstance(model, RoutedDecoder):
        return Subject(model, seed, shapes)
    return ModelSubject(model, seed, shapes)


def _grouped(model: LanguageModel, seed: int) -> Subject | None:
    """A small model with grouped-query attention and a GELU MLP; None if the router does not accept its
    shape, or if ``model`` has both already."""
    if not isinstance(model, RoutedDecoder):
        return None
    config = model.config
    if config.mlp == "gelu" and config.key_heads < config.heads:
        return None
    try:
        other = build_model(replace(GROUPED, layers=config.layers), model.router, seed)
    except UserError:  # the router rejects the shape
        return None
    other = other.to(device=device_of(model), dtype=next(model.parameters()).dtype)
    return Subject(other.eval(), seed, (GROUPED_TOKENS,), brief=True)


def _outcome(probe: Probe, subject: ModelSubject, tokens_BT: Tensor) -> Outcome:
    try:
        return probe.run(subject, tokens_BT)
    except FAULTS as error:  # a router's own code runs here; what it raises is the finding
        if failed_allocation(error) is not None:
            raise  # too little memory is not the router's fault
        return False, raised(error, remedy="")
