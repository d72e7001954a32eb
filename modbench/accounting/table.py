"""Formats statements as text for a terminal, and as one JSON document."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from modbench.accounting.statement import Statement


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
    }
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
