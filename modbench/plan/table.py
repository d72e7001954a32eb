"""Formats of plans: table, JSON, CSV."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from modbench.plan.memory import Memory
from modbench.plan.plan import Plan, Scheme
from modbench.plan.units import shown

_SHAPE = ("layers", "width", "heads", "kv_heads", "mlp_width", "vocabulary")


def as_table(plan: Plan) -> str:
    """Quantities in rows, schemes in columns."""
    return "\n".join(_table(plan))


def _table(plan: Plan) -> Iterator[str]:
    cluster, recipe, gpu = plan.cluster, plan.recipe, plan.cluster.gpu
    yield (
        f"{cluster.gpus} x {gpu.name}: {gpu.flops / 1e12:g} TFLOP/s in bfloat16 and "
        f"{gpu.memory / 1e9:g} GB each, model FLOPs utilisation {cluster.utilisation:.0%} (assumed)"
    )
    yield (
        f"{plan.accumulated} x {recipe.micro_batch} x {plan.sequence} tokens per GPU and step, "
        f"{plan.batch:,} in all; {_states(plan)}"
    )
    yield f"FLOPs under convention {plan.convention}, nominal routing"
    if plan.budget is not None:
        yield f"shapes solved for a budget of {plan.budget:.4g} training FLOPs"
    yield ""
    budget, schemes = plan.budget, plan.schemes
    rows: list[tuple[str, list[str]]] = [("", [s.name for s in schemes])]
    rows += [(name, [f"{getattr(s.model, name)}" for s in schemes]) for name in _SHAPE]
    rows += [
        ("parameters", [shown(s.parameters) for s in schemes]),
        ("active parameters", [shown(s.active_parameters) for s in schemes]),
        ("tokens", [shown(s.tokens) for s in schemes]),
        ("steps", [f"{s.steps:,}" for s in schemes]),
        ("forward FLOPs per token", [f"{s.forward_per_token:.4g}" for s in schemes]),
        ("training FLOPs per token", [f"{s.training_per_token:.4g}" for s in schemes]),
        ("training FLOPs", [f"{s.flops:.4g}" for s in schemes]),
    ]
    if budget is not None:
        rows.append(("share of the budget", [f"{s.flops / budget:.2%}" for s in schemes]))
    rows += [
        ("ratio to dense", [f"{s.ratio_to_dense:.4f}" for s in schemes]),
        ("days", [f"{s.days:.4g}" for s in schemes]),
        ("memory per GPU, GB", [""] * len(schemes)),
    ]
    for field in fields(Memory):
        rows.append((f"  {field.name}", [_gb(getattr(s.memory, field.name)) for s in schemes]))
    rows += [
        ("  at the peak", [_gb(s.memory.total) for s in schemes]),
        ("  share of the GPU's", [f"{plan.share_of_card(s):.1%}" for s in schemes]),
        ("fits", ["yes" if plan.fits(s) else "no" for s in schemes]),
        ("largest micro-batch", [f"{s.largest_micro_batch or 'none'}" for s in schemes]),
    ]
    wide = [max(14, *map(len, column)) for column in zip(*(row for _, row in rows), strict=True)]
    for label, row in rows:
        cells = (f"  {cell:>{w}}" for cell, w in zip(row, wide, strict=True))
        yield f"{label:<24}{''.join(cells)}".rstrip()
    yield ""
    yield "at the peak: logits and the working set of a layer are never held at once; of them the larger"


def _states(plan: Plan) -> str:
    recipe = plan.recipe
    parts = [f"{recipe.state} states, " + (f"shared by {recipe.shard}" if recipe.shard > 1 else "whole")]
    if recipe.expert_parallel > 1:
        parts.append(f"experts divided over {recipe.expert_parallel}")
    parts.append("layers checkpointed" if recipe.checkpoint else "no checkpointing")
    return ", ".join(parts)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f}" if size < 1e9 else f"{size / 1e9:,.2f}"


def _fields(plan: Plan, scheme: Scheme) -> dict[str, Any]:
    return {
        "router": scheme.name,
        **{name: getattr(scheme.model, name) for name in _SHAPE},
        "sequence": plan.sequence,
        "parameters": scheme.parameters,
        "active_parameters": scheme.active_parameters,
        "tokens": scheme.tokens,
        "steps": scheme.steps,
        "convention": plan.convention,
        "forward_flops_per_token": scheme.forward_per_token,
        "training_flops_per_token": scheme.training_per_token,
        "training_flops": scheme.flops,
        "share_of_budget": None if plan.budget is None else scheme.flops / plan.budget,
        "dense_flops": scheme.dense_flops,
        "ratio_to_dense": scheme.ratio_to_dense,
        "days": scheme.days,
        "fits": plan.fits(scheme),
        "share_of_card": plan.share_of_card(scheme),
        "largest_micro_batch": scheme.largest_micro_batch,
        "memory": {**asdict(scheme.memory), "total": scheme.memory.total},
    }


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
    import pandas as pd  # slow, and the other formats do without it

    frame = pd.json_normalize([_fields(plan, scheme) for scheme in plan.schemes], sep="_")
    return frame.to_csv(index=False, lineterminator="\n").rstrip("\n")


FORMATS: Mapping[str, Callable[[Plan], str]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
}
