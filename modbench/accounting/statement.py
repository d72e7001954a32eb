"""States what a model spends by its closed form, without allocating or running it; and, if asked, what
counters see when it runs on the meta device.

docs/counters.md compares the counters, and more, on cases of known cost. B sequences, T tokens.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modbench.accounting.count import count
from modbench.accounting.literature import ALL_CONVENTIONS, Reading, check_known, flops_under, reading
from modbench.counting.restore_state import untouched
from modbench.errors import FAULTS, UserError
from modbench.hf import passes as hugging_face
from modbench.ledger import CONVENTIONS, Ledger, Phase, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.shape import shape_json
from modbench.routing.build import RoutedDecoder
from modbench.routing.plugin_fault import raised

#: A model's ledger, and what the papers' formulas read off it.
Model = tuple[Ledger, Reading]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Statement of FLOPs: under one ``convention``, or compared under all; ``profile`` also counts
    them as the model runs, which no paper's formula allows. ``update`` gives the FLOPs of the
    optimizer's step; None: they are left out."""

    convention: str = "model"
    compare: bool = False
    profile: bool = False
    update: Callable[[LanguageModel], Ledger] | None = None

    def __post_init__(self) -> None:
        check_known(self.convention)
        if self.profile and self.convention not in CONVENTIONS:
            raise UserError(
                f"convention '{self.convention}' is a formula, and --profile counts what runs; "
                f"use one of {', '.join(CONVENTIONS)}"
            )


@dataclass(frozen=True, kw_only=True)
class Statement:
    """FLOPs of one model under one convention, with nominal routing. ``components`` is empty under the
    conventions of papers, ``conventions`` has the totals under all. ``counters``: what each counter
    reports, or why it reports nothing."""

    name: str
    workload: Workload
    convention: str
    flops: int
    components: Mapping[str, int]
    parameters: int
    active_parameters: int
    dense_flops: int
    conventions: Mapping[str, int]
    counters: Mapping[str, int | str]
    described: Mapping[str, Any]  #: the model's shape and options
    ignored: Sequence[str] = ()  #: keys of a config.json that are not read
    defaults: Mapping[str, Any] = field(default_factory=dict)  #: of keys that it leaves out
    source: str = "closed form"  #: how the FLOPs were found; ``counted`` if a layer has no closed form
    #: of the optimizer's step and of all that a step executes
    update: tuple[int, int] | None = None

    def difference(self, counter: str) -> float | None:
        """Per cent by which ``counter`` differs from the closed form."""
        counted = self.counters[counter]
        return 100 * (counted - self.flops) / self.flops if isinstance(counted, int) else None


def _stated(
    built: Any, model: Model, dense: Model, workload: Workload, asked: Asked, **others: Any
) -> Statement:
    has_components = asked.convention in CONVENTIONS
    compared = ALL_CONVENTIONS if asked.compare else ()
    return Statement(
        workload=workload,
        convention=asked.convention,
        flops=flops_under(asked.convention, *model, workload),
        components=model[0].by_component(asked.convention) if has_components else {},
        parameters=model[1].parameters,
        active_parameters=model[1].active_parameters,
        dense_flops=flops_under(asked.convention, *dense, workload),
        conventions={name: flops_under(name, *model, workload) for name in compared},
        counters=_counters(built, workload, asked) if asked.profile else {},
        **others,
    )


def router_statement(
    router: str,
    options: Mapping[str, Any],
    model: ModelConfig,
    workload: Workload,
    asked: Asked,
) -> Statement:
    """State a router (``NAME`` or ``NAME:PRESET``) next to the dense decoder of the same shape. Raise a
    `UserError` if its name or an option is unknown, or the shape impossible."""
    from modbench.routing.build import meta_decoder

    routed, dense = meta_decoder(router, options, model), meta_decoder("vanilla", {}, model)
    described = {"router": routed.router.name, "options": routed.router.options()}
    ledgers = [decoder.ledger(workload) for decoder in (routed, dense)]
    update = None
    if asked.update:
        updates = [asked.update(decoder) for decoder in (routed, dense)]
        ledgers = [of_passes + of_step for of_passes, of_step in zip(ledgers, updates, strict=True)]
        update = updates[0].total("executed"), ledgers[0].total("executed")
    return _stated(
        routed,
        (ledgers[0], reading(routed)),
        (ledgers[1], reading(dense)),
        workload,
        asked,
        name=router,
        described={**described, "shape": shape_json(model)},
        source=routed.flops_source,
        update=update,
    )


def family_statement(
    config: Mapping[str, Any], workload: Workload, asked: Asked, *, name: str
) -> Statement:
    """State a Hugging Face causal LM next to its dense variant, which has an MLP of the config's
    ``intermediate_size`` in place of experts. Loads torch only to profile. Raise a `UserError` if the
    family is unknown or the config impossible."""
    from modbench.hf.families import defaults_taken, family_ledger, family_reading, ignored_keys

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the statement names ignored keys
        model, dense = (
            (family_ledger(config, workload, dense=twin), family_reading(config, dense=twin))
            for twin in (False, True)
        )
        return _stated(
            config,
            model,
            dense,
            workload,
            asked,
            name=name,
            described={"config": dict(config)},
            ignored=ignored_keys(config),
            defaults=defaults_taken(config),
        )


def _counters(model: Any, workload: Workload, asked: Asked) -> dict[str, int | str]:
    from modbench.accounting.count import count

    inputs = (workload.sequences, workload.lengths[0])
    phase = workload.phase
    past = workload.past[0]
    try:
        counted = count(model, inputs, phase=phase, past=past)
    except UserError:
        raise
    except FAULTS as error:  # a router's own code runs here
        what = raised(error, "a run on the meta device", "fix it, or leave --profile out")
        raise UserError(f"--profile: the model {what}") from error
    ours = counted.ledger.total(asked.convention)
    return {"modbench": ours, **other_counts(model, inputs, phase, past)}


FORWARD_ONLY = "n/a: forward only"


def other_counts(model: Any, inputs: tuple[int, int], phase: Phase, past: int) -> dict[str, int | str]:
    """Return the FLOPs that each counter reports for what `modbench.count` counts, or in a few words why
    it reports none.

    ``model``: a decoder of modbench, or the dict of a config.json.
    """

    def torchs() -> int:
        counter = FlopCounterMode(display=False)
        count(model, inputs, phase=phase, past=past, around=counter)
        return counter.get_total_flops()

    def fvcores() -> int:
        built = model if isinstance(model, nn.Module) else hugging_face.build(model, "meta")
        tokens_BT = torch.zeros(*inputs, dtype=torch.long, device=next(built.parameters()).device)
        fit = nullcontext() if built is model else hugging_face.fit_for_meta(built)
        with untouched(built, train=False), fit, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # It counts multiply-accumulates.
            return 2 * int(fvcore_analysis(Traced(built), (tokens_BT,)).total())

    other_phase = phase != "forward" or past > 0
    return {
        "fvcore": FORWARD_ONLY if other_phase else _or_reason(fvcores),
        "FlopCounterMode": _or_reason(torchs),
    }


def _or_reason(counter: Callable[[], int]) -> int | str:
    try:
        return counter()
    except Exception as error:  # whatever another library raises is shown in its column
        return f"failed: {type(error).__name__}"


class Traced(nn.Module):
    """A causal language model as fvcore traces it: tensors in, tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(self.model, RoutedDecoder):
            logits_BTV: Tensor = self.model(input_ids=tokens_BT, use_cache=False, return_dict=False)[0]
            return (logits_BTV,)
        context = Context()
        logits_BTV = self.model(tokens_BT, context)
        # A trace drops what nothing uses, such as a predictor that only a loss reads.
        return (logits_BTV, *context.trace.losses.values())


def fvcore_analysis(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Return fvcore's analysis of ``module(*inputs)``, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports torch.jit's deprecated parts
        from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none")


def as_table(statements: Sequence[Statement]) -> str:
    return "\n\n".join("\n".join(_table(statement)) for statement in statements)


def _table(s: Statement) -> Iterator[str]:
    workload = s.workload
    tokens = s.workload.tokens
    each = f"{workload.phase}, {workload.sequences} x {workload.lengths[0]} tokens"
    each += " one at a time" * (workload.phase == "decode")
    if workload.past[0]:
        each += f" after {workload.past[0]} cached"
    yield f"{s.name}: {each}, convention {s.convention} (nominal routing)"
    yield ""
    yield _line(["component" if s.components else "", "FLOPs", "per token", "share"])
    for name, spent in {**s.components, "total": s.flops}.items():
        yield _line([name, spent, f"{spent / tokens:,.1f}", f"{spent / s.flops:.1%}"])
    if s.counters:
        differences = (s.difference(name) for name in s.counters)
        shown = ("" if d is None else f"{d:+.4f} %" if d else "0" for d in differences)
        yield ""
        yield _line(["counter", s.source, *s.counters])
        yield _line(["FLOPs", s.flops, *s.counters.values()])
        yield _line(["difference", "", *shown]).rstrip()
    if s.conventions:
        yield ""
        yield _line(["convention", "FLOPs", "per token", "against model", "full"])
        for convention, spent in s.conventions.items():
            errors = (f"{spent / s.conventions[truth] - 1:+.1%}" for truth in ("model", "full"))
            yield _line([convention, spent, f"{spent / tokens:,.1f}", *errors])
    yield ""
    yield f"{'FLOPs':<18}{s.source:>22}"
    yield f"{'parameters':<18}{s.parameters:>22,}"
    yield f"{'active parameters':<18}{s.active_parameters:>22,}"
    yield f"ratio to the dense model of the same shape {s.flops / s.dense_flops:.4f}"
    if s.update:
        of_step, executed = s.update
        share = f"{of_step / tokens:,.1f} per token, {of_step / executed:.1%} of all that is executed"
        yield f"optimizer         {of_step:,} FLOPs in a step, {share}"
    if s.ignored:
        yield f"ignored keys      {', '.join(s.ignored)}"
    if s.defaults:
        taken = (f"{key} {json.dumps(value)}" for key, value in s.defaults.items())
        yield f"defaults taken    {', '.join(taken)}"


def _line(cells: Sequence[Any]) -> str:
    """A label and cells in columns, numbers with thousands separators."""
    label, *others = (f"{cell:,}" if isinstance(cell, int) else cell for cell in cells)
    return f"{label:<18}" + "".join(f"{cell:>22}" for cell in others)


def as_json(statements: Sequence[Statement]) -> str:
    """One JSON document, on one line."""
    return json.dumps({"models": [_document(statement) for statement in statements]})


def _document(s: Statement) -> dict[str, Any]:
    model = {
        "model": s.name,
        "phase": s.workload.phase,
        "convention": s.convention,
        "sequences": s.workload.sequences,
        "tokens": s.workload.lengths[0],
        "past": s.workload.past[0],
        **s.described,
        "parameters": s.parameters,
        "active_parameters": s.active_parameters,
        "ratio_to_dense": s.flops / s.dense_flops,
        "flops_source": s.source,
        "flops": s.flops,
        "dense_flops": s.dense_flops,
        "flops_per_token": s.flops / s.workload.tokens,
        "by_component": dict(s.components),
        "ignored_keys": list(s.ignored),
        "defaults_taken": dict(s.defaults),
    }
    if s.update:
        model["optimizer_flops"], model["step_flops_executed"] = s.update
        model["optimizer_flops_per_token"] = s.update[0] / s.workload.tokens
    if s.conventions:
        model["conventions"] = dict(s.conventions)
    if s.counters:
        model["counters"] = {
            name: {"reason": counted}
            if isinstance(counted, str)
            else {"flops": counted, "difference_percent": s.difference(name)}
            for name, counted in s.counters.items()
        }
    return model
