"""Formats statements as text for a terminal, as one JSON document, and as CSV."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modbench.accounting.statement import Statement
from modbench.ledger import Direction

_DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "recompute")


def as_table(statements: Sequence[Statement]) -> str:
    return "\n\n".join("\n".join(_table(statement)) for statement in statements)


def _table(s: Statement) -> Iterator[str]:
    yield f"{s.name}: {_arrives(s)}, convention {s.convention} (nominal routing)"
    yield ""
    shown = [d for d in _DIRECTIONS if any(spent[d] for spent in s.components.values())]
    if s.components:
        yield f"{'component':<18}" + "".join(f"{d:>20}" for d in shown) + _head("FLOPs")
        for name, spent in s.components.items():
            yield _row(name, [spent[d] for d in shown], sum(spent.values()), s)
        sums = [sum(spent[d] for spent in s.components.values()) for d in shown]
        yield _row("total", sums, s.flops, s)
    else:
        yield f"{'':<18}" + _head("FLOPs")
        yield _row("total", [], s.flops, s)
    if s.counters:
        yield from ("", *_counters(s))
    if s.conventions:
        yield ""
        yield f"{'convention':<18}{'FLOPs':>22}{'per token':>22}{'against model':>15}{'full':>9}"
        for convention, flops in s.conventions.items():
            errors = [flops / s.conventions[truth] - 1 for truth in ("model", "full")]
            yield (
                f"{convention:<18}{flops:>22,}{flops / s.workload.tokens:>22,.1f}"
                f"{errors[0]:>+15.1%}{errors[1]:>+9.1%}"
            )
    yield ""
    yield f"{'FLOPs':<18}{s.source:>22}"
    yield f"{'parameters':<18}{s.parameters:>22,}"
    yield f"{'active parameters':<18}{s.active_parameters:>22,}"
    yield f"ratio to the dense model of the same shape {s.ratio_to_dense:.4f}"


def _counters(s: Statement) -> Iterator[str]:
    """The stated FLOPs and those of each counter in adjacent columns."""
    columns = [(s.source, f"{s.flops:,}", "")]
    for name, counted in s.counters.items():
        difference = s.difference(name)
        shown = counted if isinstance(counted, str) else f"{counted:,}"
        columns.append((name, shown, "" if difference is None else _per_cent(difference)))
    for row, cells in zip(("counter", "FLOPs", "difference"), zip(*columns, strict=True), strict=True):
        yield (f"{row:<12}" + "".join(f"{cell:>24}" for cell in cells)).rstrip()


def _per_cent(difference: float) -> str:
    return f"{difference:+.4f} %" if difference else "0"


def _head(what: str) -> str:
    return f"{what:>22}{'per token':>20}{'share':>9}"


def _row(name: str, parts: Sequence[int], flops: int, s: Statement) -> str:
    cells = "".join(f"{part:>20,}" for part in parts)
    return f"{name:<18}{cells}{flops:>22,}{flops / s.workload.tokens:>20,.1f}{flops / s.flops:>9.1%}"


def _arrives(s: Statement) -> str:
    workload = s.workload
    each = f"{workload.sequences} x {workload.lengths[0]} tokens"
    if workload.phase == "decode":
        each += " one at a time"
    if workload.past[0]:
        each += f" after {workload.past[0]} cached"
    return f"{workload.phase}, {each}"


def _fields(s: Statement) -> dict[str, Any]:
    return {
        "model": s.name,
        "phase": s.workload.phase,
        "convention": s.convention,
        "sequences": s.workload.sequences,
        "tokens": s.workload.lengths[0],
        "past": s.workload.past[0],
    }


def as_json(statements: Sequence[Statement]) -> str:
    """One JSON document, on one line."""
    models = []
    for s in statements:
        components: Mapping[str, Any] = {
            name: {**spent, "flops": sum(spent.values())} for name, spent in s.components.items()
        }
        model: dict[str, Any] = {
            **_fields(s),
            **s.described,
            "flops": s.flops,
            "flops_source": s.source,
            "flops_per_token": s.flops_per_token,
            "by_component": components,
            "parameters": s.parameters,
            "active_parameters": s.active_parameters,
            "dense_flops": s.dense_flops,
            "ratio_to_dense": s.ratio_to_dense,
        }
        if s.conventions:
            model["conventions"] = dict(s.conventions)
        if s.counters:
            model["profiled"] = s.profiled
            counters = model["counters"] = dict[str, dict[str, Any]]()
            for name, counted in s.counters.items():
                if isinstance(counted, str):
                    counters[name] = {"reason": counted}
                else:
                    counters[name] = {"flops": counted, "difference_percent": s.difference(name)}
        models.append(model)
    return json.dumps({"models": models})


def as_csv(statements: Sequence[Statement]) -> str:
    """One row per component and one for the total; with conventions compared, one row per total."""
    rows: list[dict[str, Any]] = []
    for s in statements:
        base = _fields(s)
        whole: dict[str, Any] = {
            "parameters": s.parameters,
            "active_parameters": s.active_parameters,
            "ratio_to_dense": s.ratio_to_dense,
            "flops_source": s.source,
            "profiled": s.profiled,
        }
        for name, counted in s.counters.items():
            column = "profiled" if name == "modbench" else name
            whole |= {column: counted, f"{column}_difference_percent": s.difference(name)}
        totals = s.conventions or {s.convention: s.flops}
        for name, spent in s.components.items():
            rows.append(base | {"component": name, "flops": sum(spent.values())})
        for convention, flops in totals.items():
            total = {"component": "total", "convention": convention, "flops": flops}
            rows.append(base | total | (whole if convention == s.convention else {}))
    for row in rows:
        row["flops_per_token"] = row["flops"] / (row["sequences"] * row["tokens"])
    out = io.StringIO()
    first = [*_fields(statements[0]), "component", "flops", "flops_per_token"]
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    writer = csv.DictWriter(out, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


FORMATS: Mapping[str, Callable[[Sequence[Statement]], str]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
}
