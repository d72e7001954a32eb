"""Formats of plans: table, JSON, CSV."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from modbench.accounting.table import csv_text
from modbench.plan.memory import Memory
from modbench.plan.plan import Plan, Scheme
from modbench.plan.units import shown


def as_table(plan: Plan) -> str:
    """Quantities in rows, schemes in columns."""
    cluster, recipe, schemes, gpu = plan.cluster, plan.recipe, plan.schemes, plan.cluster.gpu
    shared = f"shared by {recipe.shard}" if recipe.shard > 1 else "whole"
    kept = "layers checkpointed" if recipe.checkpoint else "no checkpointing"
    lines = [
        f"{cluster.gpus} x {gpu.name}: {gpu.flops / 1e12:g} TFLOP/s in bfloat16 and "
        f"{gpu.memory / 1e9:g} GB each, model FLOPs utilisation {cluster.utilisation:.0%} (assumed)",
        f"{plan.accumulated} x {recipe.micro_batch} x {plan.sequence} tokens per GPU and step, "
        f"{plan.batch:,} in all; {recipe.state} states, {shared}, {kept}",
        f"FLOPs under convention {plan.convention}, nominal routing",
    ]
    if plan.budget is not None:
        lines.append(f"shapes solved for a budget of {plan.budget:.4g} training FLOPs")
    lines.append("")
    columns = [_flat(plan, scheme) for scheme in schemes]
    wide = [max(14, len(scheme.router)) for scheme in schemes]
    for label, key, form in _ROWS:
        if key != "share_of_budget" or plan.budget is not None:
            cells = (f"  {form(column[key]):>{w}}" for column, w in zip(columns, wide, strict=True))
            lines.append(f"{label:<24}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f}" if size < 1e9 else f"{size / 1e9:,.2f}"


_SHAPE = ("layers", "width", "heads", "kv_heads", "mlp_width", "vocabulary")
#: Rows of the table: label, key of `_fields`, format.
_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("", "router", str),
    *((name, name, str) for name in _SHAPE),
    ("parameters", "parameters", shown),
    ("active parameters", "active_parameters", shown),
    ("tokens", "tokens", shown),
    ("steps", "steps", "{:,}".format),
    ("forward FLOPs per token", "forward_flops_per_token", "{:.4g}".format),
    ("training FLOPs per token", "training_flops_per_token", "{:.4g}".format),
    ("training FLOPs", "training_flops", "{:.4g}".format),
    ("share of the budget", "share_of_budget", "{:.2%}".format),
    ("ratio to dense", "ratio_to_dense", "{:.4f}".format),
    ("days", "days", "{:.4g}".format),
    ("memory per GPU, GB", "router", lambda name: ""),
    *((f"  {field.name}", f"memory_{field.name}", _gb) for field in fields(Memory)),
    ("  at the peak", "memory_total", _gb),
    ("  share of the GPU's", "share_of_card", "{:.1%}".format),
    ("fits", "fits", lambda fits: "yes" if fits else "no"),
    ("largest micro-batch", "largest_micro_batch", lambda most: str(most or "none")),
)


def _fields(plan: Plan, scheme: Scheme) -> dict[str, Any]:
    own = asdict(scheme)
    shape = own.pop("model")
    return {
        "router": scheme.router,
        **{name: shape[name] for name in _SHAPE},
        "sequence": plan.sequence,
        "convention": plan.convention,
        **own,
        "share_of_budget": None if plan.budget is None else scheme.training_flops / plan.budget,
        "ratio_to_dense": scheme.ratio_to_dense,
        "fits": plan.fits(scheme),
        "share_of_card": plan.share_of_card(scheme),
        "memory": {**asdict(scheme.memory), "total": scheme.memory.total},
    }


def _flat(plan: Plan, scheme: Scheme) -> dict[str, Any]:
    row = _fields(plan, scheme)
    return row | {f"memory_{name}": size for name, size in row.pop("memory").items()}


def as_json(plan: Plan) -> str:
    """One JSON document, on one line."""
    return json.dumps(
        {
            "cluster": asdict(plan.cluster),
            "recipe": asdict(plan.recipe),
            "batch": plan.batch,
            "budget": plan.budget,
            "schemes": [_fields(plan, scheme) for scheme in plan.schemes],
        }
    )


def as_csv(plan: Plan) -> str:
    """One row per scheme; memory in bytes."""
    return csv_text([_flat(plan, scheme) for scheme in plan.schemes])


FORMATS: Mapping[str, Callable[[Plan], str]] = {"table": as_table, "json": as_json, "csv": as_csv}
