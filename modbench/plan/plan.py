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
from modbench.model.shape import Shape
from modbench.model.sizes import Size
from modbench.plan.gpus import Cluster, Gpu
from modbench.plan.memory import Measured, Memory, Recipe
from modbench.plan.solver import solve, spent_on
from modbench.plan.units import shown
from modbench.routing.build import meta_decoder


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The training of a scheme with nominal routing: one run of a shape, or all runs of a suite, with
    the largest of its models. FLOPs are in the plan's convention."""

    scheme: str
    model: Shape
    parameters: int
    active_parameters: int
    runs: int = 1
    tokens: int | None = None  #: None: those of a suite's runs differ
    forward_flops_per_token: float | None = None
    training_flops_per_token: float
    training_flops: int  #: of all runs
    dense_flops: int | None = None  #: of the dense model of the same shape on the same tokens
    gpu_hours: float
    days: float | None = None
    price: float | None  #: of all GPU-hours; None without a price of one
    micro_batch: int  #: sequences per GPU
    memory: Memory | None  #: None: it is not predicted for models of transformers like this one
    #: sequences that fit the GPU's memory, may be 0; None: not computed, but ``micro_batch`` fits
    largest_micro_batch: int | None

    def cells(self, gpu: Gpu, budget: int | None = None) -> Iterator[tuple[str, str]]:
        """Labels and cells of a table."""
        for name in SHAPE:
            if (value := getattr(self.model, name, None)) is not None:
                yield name, str(value)
        yield "parameters", shown(self.parameters)
        yield "active parameters", shown(self.active_parameters)
        if self.tokens is None:
            yield "runs", f"{self.runs:,}"
        else:
            yield "tokens", shown(self.tokens)
        if self.forward_flops_per_token is not None:
            yield "forward FLOPs per token", f"{self.forward_flops_per_token:.4g}"
        yield "training FLOPs per token", f"{self.training_flops_per_token:.4g}"
        yield "training FLOPs", f"{self.training_flops:.4g}"
        if budget is not None:
            yield "share of the budget", f"{self.training_flops / budget:.2%}"
        if self.dense_flops is not None:
            yield "ratio to dense", f"{self.training_flops / self.dense_flops:.4f}"
        yield "GPU-hours", f"{self.gpu_hours:,.4g}"
        if self.days is not None:
            yield "days", f"{self.days:.4g}"
        if self.price is not None:
            yield "price of all GPU-hours", f"{self.price:,.2f}"
        yield "micro-batch", str(self.micro_batch)
        if self.memory is not None:
            for field in fields(Memory):
                yield f"memory per GPU, {field.name}", _gb(getattr(self.memory, field.name))
            yield "memory per GPU, total", _gb(self.memory.total)
            yield "share of the GPU's memory", f"{self.memory.total / gpu.memory:.1%}"
            most = self.largest_micro_batch
            yield (
                "largest micro-batch",
                f"{self.micro_batch} or more" if most is None else f"{most or 'none'}",
            )

    def as_json(self) -> dict[str, Any]:
        document = asdict(self) | {name: getattr(self.model, name, None) for name in SHAPE}
        del document["model"]
        if self.memory is not None:
            document["memory"]["total"] = self.memory.total
        return document


SHAPE = ("layers", "width", "heads", "kv_heads", "mlp_width", "vocabulary")


def table_of(schemes: Sequence[Scheme], gpu: Gpu, budget: int | None = None) -> str:
    """Quantities in rows, schemes in columns; "-" where a scheme has none."""
    columns = [dict(scheme.cells(gpu, budget)) for scheme in schemes]
    labels = max(columns, key=len)
    rows = [[label, *(column.get(label, "-") for column in columns)] for label in labels]
    names = ["", *(scheme.scheme for scheme in schemes)]
    aligned = ("left", *("right" for _ in columns))
    return tabulate([names, *rows], tablefmt="plain", disable_numparse=True, colalign=aligned)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.3g} MB"


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
        scheme=name,
        model=model,
        parameters=routed.parameter_count("total"),
        active_parameters=routed.parameter_count("active"),
        tokens=tokens,
        forward_flops_per_token=forward / sequence,
        training_flops_per_token=of_sequence / sequence,
        training_flops=flops,
        dense_flops=spent_on(tokens, convention_flops(dense, training, convention), sequence),
        gpu_hours=hours,
        days=hours / 24 / of.cluster.gpus,
        price=None if of.cluster.price is None else hours * of.cluster.price,
        micro_batch=recipe.micro_batch,
        memory=measured.memory(recipe.micro_batch),
        largest_micro_batch=measured.largest_micro_batch(of.cluster.gpu.memory),
    )


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
    return "\n".join([*lines, "", table_of(plan.schemes, gpu, plan.budget)])


def as_json(plan: Plan) -> str:
    """One JSON document, on one line."""
    schemes = [scheme.as_json() for scheme in plan.schemes]
    return json.dumps(asdict(replace(plan, schemes=())) | {"schemes": schemes})
