"""Formats plans as text for a terminal, and as one JSON document."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from tabulate import tabulate

from modbench.plan.memory import Memory
from modbench.plan.plan import Plan, Scheme
from modbench.plan.units import shown

_SHAPE = ("layers", "width", "heads", "kv_heads", "mlp_width", "vocabulary")


def as_table(plan: Plan) -> str:
    """Quantities in rows, schemes in columns."""
    cluster, recipe, gpu = plan.cluster, plan.recipe, plan.cluster.gpu
    shared = f"shared by {recipe.shard}" if recipe.shard > 1 else "whole"
    kept = "layers checkpointed" if recipe.checkpoint else "no checkpointing"
    lines = [
        f"{cluster.gpus} x {gpu.name}: {gpu.flops / 1e12:g} TFLOP/s in bfloat16 and "
        f"{gpu.memory / 1e9:g} GB each, model FLOPs utilisation {cluster.utilisation:.0%} (assumed)",
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
    for field in fields(Memory):
        yield f"memory per GPU, {field.name}", _gb(getattr(scheme.memory, field.name))
    yield "memory per GPU, total", _gb(scheme.memory.total)
    yield "share of the GPU's memory", f"{scheme.memory.total / plan.cluster.gpu.memory:.1%}"
    yield "largest micro-batch", str(scheme.largest_micro_batch or "none")


def _gb(size: int) -> str:
    return f"{size / 1e9:,.{3 if size < 1e9 else 2}f} GB"


def as_json(plan: Plan) -> str:
    """One JSON document, on one line."""
    document = asdict(plan)
    for scheme, row in zip(plan.schemes, document["schemes"], strict=True):
        row |= _shape(row.pop("model"))
        row["memory"]["total"] = scheme.memory.total
    return json.dumps(document)


def _shape(model: dict[str, Any]) -> dict[str, Any]:
    return {name: model[name] for name in _SHAPE}
