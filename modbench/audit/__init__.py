"""The audit: twelve probes that a model of a router must pass, in float64 so that a difference is a bug
rather than rounding.

A router that fails probe 1, 2, 3 or 9 is not ranked. A probe that does not apply to a router is ``not
asked`` and gives the reason; one that applies to a layer but cannot be evaluated there is ``unchecked``.

B sequences, T tokens.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

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
)
from modbench.audit.leaks import batch_invariant, causal
from modbench.audit.learning import gradient
from modbench.audit.state import state
from modbench.errors import FAULTS, UserError
from modbench.model.config import ModelConfig
from modbench.model.language_model import LanguageModel
from modbench.records.probes import AS_BEFORE, COULD_NOT_RUN, PROBE_TEXTS, SHOWN, ProbeText
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.plugin_fault import at, raised
from modbench.train.out_of_memory import failed_allocation

__all__ = ["PROBES", "ROUNDING", "Finding", "audit", "findings"]


@dataclass(frozen=True, kw_only=True)
class Probe(ProbeText):
    """A probe, and where it runs. ``once``: at one shape only. ``any_model``: it asks nothing of a
    router, and is run on a model of transformers, too."""

    run: Callable[[Any, Tensor], Outcome]
    once: bool
    any_model: bool


#: The functions of the probes of leaks, and of all in the order of `PROBE_TEXTS`.
_LEAKS = (causal, batch_invariant, decode_parity)
_DEPTH = (bypass, unit_gate, order_and_position)
_RUNS = (*_LEAKS, capacity, *_DEPTH, gradient, count, state, saving, derivative)
PROBES = tuple(
    Probe(
        **vars(text),
        run=run,
        once=run not in (*_LEAKS, capacity, count),
        any_model=run in (*_LEAKS, count),
    )
    for text, run in zip(PROBE_TEXTS, _RUNS, strict=True)
)

#: Why a probe of routers is not asked of a model.
NO_ROUTER = "a model of transformers has no router of modbench"
NO_BLOCKS = "the probe reads blocks of modbench's decoder, and this is a model of transformers"
#: The shape of a small model with grouped-query attention and a GELU MLP, and its tokens: few, since
#: they run in addition to the audited shapes.
GROUPED = ModelConfig(vocabulary=97, width=48, heads=6, kv_heads=2, mlp="gelu")
GROUPED_TOKENS = (2, 19)

#: Return values of a probe for each verdict, in the same order; over several shapes the last one counts.
_RISING: tuple[bool | Unchecked | None, ...] = (None, True, "unchecked", False)
_VERDICTS = get_args(Verdict)


def audit(model: LanguageModel, **options: Any) -> list[Finding]:
    """Return the `findings` of all probes."""
    return list(findings(model, **options))


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

    A probe fails if it fails, or raises, at any shape. The error is described once, with the first probe
    that meets it. Running out of memory is raised."""
    routed = isinstance(model, RoutedDecoder)
    subject = (Subject if routed else ModelSubject)(model, seed, tuple(shapes))  # type: ignore[arg-type]
    errors: dict[tuple[str, str], int] = {}
    for probe in (probe for probe in PROBES if probe.number in only):
        cases: list[tuple[ModelSubject, tuple[int, int]]] = []
        if routed or probe.any_model:
            cases += [(subject, shape) for shape in (shapes[:1] if probe.once else shapes)]
        if probe.run is count and trained and trained not in shapes:
            cases.append((subject, trained))
        if probe.run is count and (grouped := _grouped(model, seed)):
            cases.append((grouped, GROUPED_TOKENS))
        passed: bool | Unchecked | None = None
        figure = "" if cases else NO_ROUTER if getattr(model, "router", None) is None else NO_BLOCKS
        for variant, shape in cases:
            verdict, detail = _outcome(probe, variant, variant.tokens(*shape), errors)
            if verdict is False and not probe.once and not detail.startswith(AS_BEFORE):
                where = "" if variant is subject else ", grouped-query attention, GELU MLP"
                detail += f" (at {shape[0]} x {shape[1]} tokens{where})"
            if not figure or _RISING.index(verdict) > _RISING.index(passed):
                passed, figure = verdict, detail
            if passed is False:
                break
        subject.forget()
        yield Finding(
            probe=probe.number,
            name=probe.name,
            verdict=_VERDICTS[_RISING.index(passed)],
            figure=figure,
            ranks=probe.ranks,
        )


def printed(found: Iterable[Finding]) -> list[Finding]:
    """Print a line of each finding as it is made: aligned columns, or what a failure means; at the end
    one of all probes that an error stopped which an earlier one met. Return all."""
    results, stopped = [], defaultdict(list)
    wide = max(len(probe.name) for probe in PROBES)
    for finding in found:
        verdict = SHOWN.get(finding.verdict, finding.verdict)
        line = f"{finding.probe:>2}  {finding.name:<{wide}}  {verdict:<9}  {finding.figure}"
        if finding.failed:
            line = f"FAILED {finding.probe} {finding.name}: {finding.figure}"
            if not finding.figure.startswith(COULD_NOT_RUN):
                line += f"; {PROBE_TEXTS[finding.probe - 1].means} (`modbench docs audit`)"
            line += "." + " Not ranked." * finding.ranks
        if finding.figure.startswith(AS_BEFORE):
            stopped[finding.figure].append(finding)
        else:
            print(line, flush=True)
        results.append(finding)
    for figure, others in stopped.items():
        names = ", ".join(f"{finding.probe} {finding.name}" for finding in others)
        print(f"FAILED {names}: {figure}." + " Not ranked." * any(finding.ranks for finding in others))
    return results


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
    other = other.to(next(model.parameters())).eval()
    return Subject(other, seed, (GROUPED_TOKENS,), brief=True)


def _outcome(
    probe: Probe, subject: ModelSubject, tokens_BT: Tensor, errors: dict[tuple[str, str], int]
) -> Outcome:
    """Run ``probe``. ``errors``: the first probe that met each error, by its text without numbers, which
    may be those of a shape, and its line."""
    try:
        return probe.run(subject, tokens_BT)
    except FAULTS as error:  # a router's own code runs here; what it raises is the finding
        if failed_allocation(error) is not None:
            raise  # too little memory is not the router's fault
        text = str(error)
        if not isinstance(error, UserError):
            text = raised(error, remedy="").removeprefix("raised ")
        first = errors.setdefault((re.sub(r"\d+", "", text), at(error)), probe.number)
        return False, f"{COULD_NOT_RUN}: {text}" if first == probe.number else f"{AS_BEFORE} {first}"
