"""FLOPs, days and memory per GPU of planned training runs, from shapes and closed forms; nothing is
allocated."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tabulate import tabulate

from modbench.accounting.literature import convention_flops
from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.sizes import Size
from modbench.plan.gpus import Cluster, Gpu
from modbench.plan.memory import Measured, Memory, Recipe
from modbench.plan.solver import solve, spent_on
from modbench.plan.units import shown
from modbench.routing.build import meta_decoder


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The run of one scheme, with nominal routing; FLOPs are in the plan's convention. ``dense_flops``:
    those of the dense model of the same shape on the same tokens."""

    router: str
    model: ModelConfig
    parameters: int
    active_parameters: int
    tokens: int
    forward_flops_per_token: float
    training_flops_per_token: float
    training_flops: int
    dense_flops: int
    days: float
    price: float | None  #: of all GPU-hours; None without a price of one
    memory: Memory
    largest_micro_batch: int  #: sequences that fit the GPU's memory; may be 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``budget``: training FLOPs that shapes were solved for; None if the shape was given."""

    cluster: Cluster
    recipe: Recipe
    convention: str
    sequence: int
    budget: int | None
    schemes: tuple[Scheme, ...]


def plan(
    routers: Sequence[str],
    options: Mapping[str, Any],
    size: Size,
    *,
    tokens: int | None = None,
    budget: int | None = None,
    tokens_per_parameter: float = 20.0,
    cluster: Cluster,
    recipe: Recipe,
    convention: str = "model",
) -> Plan:
    """Plan the training of each of ``routers`` (``NAME`` or ``NAME:PRESET``) at the shape ``size`` on
    ``tokens`` tokens.

    With a ``budget``, each scheme has the shape like ``size`` that spends this number of training FLOPs
    on ``tokens`` tokens, by default ``tokens_per_parameter`` per active parameter. Raise a `UserError`
    for no router or tokens, GPUs that can't be divided, and as `modbench.plan.solver.solve`."""
    if not routers:
        raise UserError("a plan needs one router or more; for example vanilla and mod")
    if cluster.gpus % recipe.shard:
        raise UserError(f"shard is {recipe.shard} of {cluster.gpus} gpus; it must divide them")
    planned = Plan(
        cluster=cluster,
        recipe=recipe,
        convention=convention,
        sequence=size.sequence,
        budget=budget,
        schemes=(),
    )
    schemes = []
    asked: dict[str, Any] = {"tokens": tokens, "tokens_per_parameter": tokens_per_parameter}
    for name in routers:
        if budget is not None:
            solved = solve(name, options, size, budget=budget, convention=convention, **asked)
            shape, seen = solved.size, solved.tokens
        elif tokens is None or tokens < 1:
            raise UserError(f"tokens is {tokens}; a plan needs tokens, 1 or more, or a budget, or both")
        else:
            shape, seen = size, tokens
        schemes.append(_scheme(planned, name, options, shape.model, seen))
    return replace(planned, schemes=tuple(schemes))


def _scheme(of: Plan, name: str, options: Mapping[str, Any], model: ModelConfig, tokens: int) -> Scheme:
    sequence = of.sequence
    convention = of.convention
    recipe = of.recipe
    routed, dense = meta_decoder(name, options, model), meta_decoder("vanilla", {}, model)
    # Only convention ``executed`` counts the recomputation of checkpointed layers.
    training = Workload.uniform(1, sequence, "train", checkpoint=recipe.checkpoint)
    forward = convention_flops(routed, Workload.uniform(1, sequence), convention)
    of_sequence = convention_flops(routed, training, convention)
    flops = spent_on(tokens, of_sequence, sequence)
    measured = Measured(routed, sequence, recipe)
    hours = of.cluster.hours(flops, model.width)
    return Scheme(
        router=name,
        model=model,
        parameters=routed.parameter_count("total"),
        active_parameters=routed.parameter_count("active"),
        tokens=tokens,
        forward_flops_per_token=forward / sequence,
        training_flops_per_token=of_sequence / sequence,
        training_flops=flops,
        dense_flops=spent_on(tokens, convention_flops(dense, training, convention), sequence),
        days=hours / 24 / of.cluster.gpus,
        price=None if of.cluster.price is None else hours * of.cluster.price,
        memory=measured.memory(recipe.micro_batch),
        largest_micro_batch=measured.largest_micro_batch(of.cluster.gpu.memory),
    )


_SHAPE = ("layers", "width", "heads", "kv_heads", "mlp_width", "vocabulary")


def as_table(plan: Plan) -> str:
    """Quantities in rows, schemes in columns."""
    cluster, recipe, gpu = plan.cluster, plan.recipe, plan.cluster.gpu
    shared = f"shared by {recipe.shard}" if recipe.shard > 1 else "whole"
    kept = "layers checkpointed" if recipe.checkpoint else "no checkpointing"
    ats = sorted({cluster.at(scheme.model.width) for scheme in plan.schemes})
    assumed = " to ".join(dict.fromkeys(f"{at:.0%}" for at in (ats[0], ats[-1])))
    lines = [
        f"{cluster.gpus} x {gpu.name}: {gpu.flops / 1e12:g} TFLOP/s in bfloat16 and "
        f"{gpu.memory / 1e9:g} GB each, model FLOPs utilisation {assumed} (assumed)",
        f"{recipe.micro_batch} x {plan.sequence} tokens per GPU; {recipe.state} states {shared}; {kept}",
        f"FLOPs under convention {plan.convention}, nominal routing",
    ]
    if plan.budget is not None:
        lines.append(f"shapes solved for a budget of {plan.budget:.4g} training FLOPs")
    columns = [dict(_column(plan, scheme)) for scheme in plan.schemes]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    aligned = ("left", *("right" for _ in columns))
    table = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=aligned)
    return "\n".join([*lines, "", table])


def _column(plan: Plan, scheme: Scheme) -> Iterator[tuple[str, str]]:
    """Yield labels and cells."""
    yield "", scheme.router
    for name in _SHAPE:
        yield name, str(getattr(scheme.model, name))
    yield "parameters", shown(scheme.parameters)
    yield "active parameters", shown(scheme.active_parameters)
    yield "tokens", shown(scheme.tokens)
    yield "forward FLOPs per token", f"{scheme.forward_flops_per_token:.4g}"
    yield "training FLOPs per token", f"{scheme.training_flops_per_token:.4g}"
    yield "training FLOPs", f"{scheme.training_flops:.4g}"
    if plan.budget is not None:
        yield "share of the budget", f"{scheme.training_flops / plan.budget:.2%}"
    yield "ratio to dense", f"{scheme.training_flops / scheme.dense_flops:.4f}"
    yield "days", f"{scheme.days:.4g}"
    if scheme.price is not None:
        yield "price of all GPU-hours", f"{scheme.price:,.0f}"
    for label, cell in memory_cells(scheme.memory, scheme.largest_micro_batch, plan.cluster.gpu):
        yield label if label in _LAST else f"memory per GPU, {label}", cell


_LAST = ("share of the GPU's memory", "largest micro-batch")


def memory_cells(memory: Memory, largest_micro_batch: int | str, gpu: Gpu) -> list[tuple[str, str]]:
    """Labels and cells of ``memory`` on ``gpu``, of a suite's plan and of a single shape's."""
    parts = [(field.name, getattr(memory, field.name)) for field in fields(Memory)]
    cells = [(name, _gb(size)) for name, size in (*parts, ("total", memory.total))]
    last = f"{memory.total / gpu.memory:.1%}", str(largest_micro_batch or "none")
    return [*cells, *zip(_LAST, last, strict=True)]


def _gb(size: int) -> str:
    return f"{size / 1e9:,.{3 if size < 1e9 else 2}f} GB"


def as_json(plan: Plan) -> str:
    """One JSON document, on one line."""
    document = asdict(plan)
    for scheme, row in zip(plan.schemes, document["schemes"], strict=True):
        model = row.pop("model")
        row |= {name: model[name] for name in _SHAPE}
        row["memory"]["total"] = scheme.memory.total
    return json.dumps(document)
