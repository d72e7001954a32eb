"""The audit: twelve probes that a model of a router must pass, in float64 so that a difference is a bug
rather than rounding.

A router that fails probe 1, 2, 3 or 9 is not ranked. A probe that does not apply to a router is ``not
asked`` and gives the reason; one that applies to a layer but cannot be evaluated there is ``unchecked``.

B sequences, T tokens, D model width.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modbench.audit.capacity import capacity
from modbench.audit.counting import count
from modbench.audit.decoding import decode_parity
from modbench.audit.depth import bypass, order_and_position, unit_gate
from modbench.audit.derivative import derivative
from modbench.audit.finding import (
    NO_SKIPPING,
    ROUNDING,
    RULES,
    Finding,
    ModelSubject,
    Outcome,
    Subject,
    Unchecked,
    Verdict,
    device_of,
    few,
    plain_block,
    selected,
)
from modbench.audit.leaks import batch_invariant, causal
from modbench.audit.learning import gradient
from modbench.audit.state import state
from modbench.counting.counter import FlopCounter
from modbench.errors import FAULTS, UserError
from modbench.ledger import Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.records.probes import PROBE_TEXTS, ProbeText
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.plugin_fault import raised
from modbench.train.out_of_memory import failed_allocation

#: Components computed for every token, those not linear in the number of tokens, and matmuls that carry
#: no label, as in the scores of a layer that states no ledger.
NOT_BY_TOKEN = ("router", "predictor", "attention.scores", "other")


def saving(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 11: in a layer that skips tokens, matmuls run for no more rows than the selected tokens fill
    when padded: the sequences with any, times the most that one of them has. The training rule is tested
    in training mode. Routers and predictors may see every token; attention scores are probe 9's."""
    if not subject.skipping:
        return None, NO_SKIPPING
    tokens_BT = few(tokens_BT)
    model = subject.twin()
    skipped, spent, everything = 0, 0, 0
    measured = False
    for rule in RULES:
        model.train(rule == "topk")
        context = Context(selection=rule)
        ledgers = list[Ledger]()

        def run_counted(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
            with FlopCounter() as counter, torch.set_grad_enabled(context.selection == "topk"):
                out_BTD: Tensor = layer(x_BTD, context)
            ledgers.append(counter.ledger)  # noqa: B023
            return out_BTD

        for number, layer, before_BTD, after_BTD in model.layer_by_layer(
            tokens_BT, context, run_counted
        ):
            selected_BT = selected(context, number, before_BTD, after_BTD)
            block = plain_block(layer)
            if selected_BT is None or block is None:
                continue
            measured = True
            sent = [n for n in selected_BT.sum(1).tolist() if n]
            inner = {
                key: n for key, n in context.trace.counts.items() if key[1] not in ("depth", "past")
            }
            workload = Workload(lengths=(max(sent, default=0),) * max(1, len(sent)), counts=inner)
            flops = _by_token(ledgers[-1])
            allowed = _by_token(block.ledger(workload)) if sent else 0
            if flops > allowed:
                return False, (
                    f"layer {number} spends {flops / max(1, allowed):.2f} times the FLOPs of the "
                    f"{sum(sent)} of {selected_BT.numel()} tokens that it selects ({rule})"
                )
            skipped += int((~selected_BT).sum())
            spent += flops
            everything += _by_token(block.ledger(Workload.uniform(*tokens_BT.shape)))
    if not measured or not skipped:
        return subject.held(None, "no layer skips tokens")
    share = spent / everything
    return subject.held(True, f"routed layers spend {share:.3f} of the FLOPs of all tokens")


def _by_token(ledger: Ledger) -> int:
    """Forward FLOPs of the components that are linear in the number of tokens."""
    return sum(
        flops.full
        for (_, component, direction), flops in ledger
        if direction == "forward" and component not in NOT_BY_TOKEN
    )


__all__ = ["PROBES", "ROUNDING", "Finding", "audit", "findings"]


@dataclass(frozen=True)
class Probe:
    """A probe and its description. ``once``: run at one shape only. ``trained``: run at the shape of a
    training step, too. ``grouped``: run on a small model with grouped-query attention and a GELU MLP,
    too. ``any_model``: asks nothing of a router, and is run on a model of transformers, too."""

    text: ProbeText
    run: Callable[[Any, Tensor], Outcome]
    once: bool = False
    trained: bool = False
    grouped: bool = False
    any_model: bool = False

    @property
    def number(self) -> int:
        return self.text.number

    @property
    def name(self) -> str:
        return self.text.name

    @property
    def ranks(self) -> bool:
        return self.text.ranks


#: The function of each probe, in the order of `PROBE_TEXTS`, and where it runs.
_RUNS: tuple[tuple[Callable[[Any, Tensor], Outcome], dict[str, bool]], ...] = (
    (causal, {"any_model": True}),
    (batch_invariant, {"any_model": True}),
    (decode_parity, {"any_model": True}),
    (capacity, {}),
    (bypass, {"once": True}),
    (unit_gate, {"once": True}),
    (order_and_position, {"once": True}),
    (gradient, {"once": True}),
    (count, {"trained": True, "grouped": True, "any_model": True}),
    (state, {"once": True}),
    (saving, {"once": True}),
    (derivative, {"once": True}),
)
PROBES = tuple(Probe(text, run, **where) for text, (run, where) in zip(PROBE_TEXTS, _RUNS, strict=True))

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
    asked = [probe for probe in PROBES if probe.number in only]
    grouped = _grouped(model, seed) if any(probe.grouped for probe in asked) else None
    for probe in asked:
        if not (probe.any_model or isinstance(subject, Subject)):
            yield _finding(probe, None, _reason(model))
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


def _reason(model: LanguageModel) -> str:
    """Return why a probe of routers is not asked of ``model``."""
    if getattr(model, "router", None) is None:
        return "a model of transformers has no router of modbench"
    return "the probe reads blocks of modbench's decoder, and this is a model of transformers"


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
