"""timings.md: times, realised efficiency, utilisation, memory, the machine's ceilings."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from modbench.errors import several
from modbench.records.record import PROTOCOL
from modbench.report.leaderboard.page import made_by
from modbench.report.markdown import Page, page
from modbench.report.table import Table
from modbench.report.timing.table import (
    HOST_BOUND,
    PARTS,
    Case,
    TimingTable,
    is_timed,
    marks_of,
    nearest_dense,
)
from modbench.report.timing.values import machine_in_words

_STEPS = "Forward pass and training step (ms)"
_PHASES = {
    _STEPS: ("forward", "train"),
    "Prefill (ms)": ("prefill",),
    "Decoding, one step of the batch (ms)": ("decode",),
}


def timing_page(timings: TimingTable, others: int = 0) -> Page:
    """The page of ``timings``; ``others``: number of sessions in the folder that are not shown. The
    words are in ``pages/timings.md.j2``."""
    first, rows = timings.timings[0], [row for row in timings.cases if is_timed(row)]
    by_case = {
        heading: ([row for row in rows if row["phase"] in phases], _milliseconds)
        for heading, phases in _PHASES.items()
    }
    by_case |= {heading: (rows, cell) for heading, cell in _CELLS.items()}
    tables = {heading: _by_case(heading, *of) for heading, of in by_case.items()}
    per_flop = {row["label"]: cell for row in rows if (cell := _per_flop(row, rows))}
    if per_flop and (steps := tables[_STEPS]):
        lines = [[*line, per_flop.get(str(line[0]), "-")] for line in steps.rows]
        tables[_STEPS] = replace(
            steps, headings=[*steps.headings, "train, s/FLOP over dense"], rows=lines
        )
    shapes: dict[tuple[str, str], dict[str, None]] = {}
    for row in timings.cases:
        shapes.setdefault((row["model"], row["train"]), {})[row["label"]] = None
    measured = timings.measured("ceiling")
    copied = max((ceiling.measured["copy_bytes_per_second"] for ceiling in measured), default=0.0)
    return page(
        "timings",
        suite=timings.suite,
        session=first.session,
        machine=machine_in_words(first.environment),
        version=first.protocol or 1,
        today=PROTOCOL,
        models=[
            {"labels": [*labels], "model": json.loads(model), "train": json.loads(train)}
            for (model, train), labels in shapes.items()
        ],
        tables=[(heading, table) for heading, table in tables.items() if table],
        memory=_memory(timings) if timings.memory else None,
        ceilings=_ceilings(timings) if timings.ceilings else None,
        copied=f"{copied / 1e9:.4g}",
        remarks=[*_remarks(timings)],
        begun=min(timing.started for timing in timings.timings),
        ended=max(timing.finished for timing in timings.timings),
        per_flop=bool(per_flop),
        taken=sorted({(row["n"], row["processes"]) for row in rows}),
        forced=any(row["balance"] == "forced" for row in rows),
        utilised=any(row["utilisation"] is not None for row in rows),
        hosted=any(row["host_share"] is not None for row in rows),
        host_bound=HOST_BOUND,
        dtypes=sorted({row["dtype"] for row in rows}),
        compiled=any(row["compiled"] for row in rows),
        programs=sorted({(row["label"], row["graphs"], row["breaks"]) for row in rows if row["graphs"]}),
        others=others,
        codes=sorted({made_by(timing.code) for timing in timings.timings}),
    )


def _by_case(heading: str, rows: Sequence[Case], cell: Callable[[Case], str]) -> Table | None:
    """A table of ``cell`` by scheme and case, a dash where it is empty; None if all are."""
    cells = {(row["label"], row["case"]): cell(row) or "-" for row in rows}
    if {*cells.values()} <= {"-"}:
        return None
    cases = dict.fromkeys(row["case"] for row in rows)
    labels = dict.fromkeys(row["label"] for row in rows)
    lines = [[label, *(cells.get((label, case), "-") for case in cases)] for label in labels]
    return Table(["scheme", *cases], lines, caption=heading)


def _milliseconds(row: Case) -> str:
    per = 1e3 / (row["tokens"] or 1) if row["phase"] == "decode" else 1e3
    median, spread = (row["seconds_median"] or 0) * per, (row["seconds_iqr"] or 0) * per
    return f"{median:.2f} ± {spread:.2f}" + (f" ({marks_of(row)})" if marks_of(row) else "")


def _per_flop(row: Case, rows: Sequence[Case]) -> str:
    """Seconds per FLOP of a training step over the dense model's, which is named if its shape is another
    one; empty for other cases, and without a dense step among ``rows``."""
    dense = nearest_dense(row, rows) if row["case"] == "train" else None
    if dense is None or not (dense["flops_realised"] and row["flops_realised"]):
        return ""
    own, of_dense = (of["seconds_median"] / of["flops_realised"] for of in (row, dense))
    shape = dense["label"] if dense["model"] != row["model"] else ""
    marks = ", ".join(dict.fromkeys(filter(None, [shape, marks_of(row), marks_of(dense)])))
    return f"{own / of_dense:.2f}" + (f" ({marks})" if marks else "")


def _utilisation(row: Case) -> str:
    if row["utilisation"] is None:
        return ""
    return f"{100 * row['utilisation']:.1f}" + (f" ({marks_of(row)})" if marks_of(row) else "")


def _efficiency(row: Case) -> str:
    if row["realised_efficiency"] is None:
        return ""
    marks = f", {row['efficiency_marks']}" if row["efficiency_marks"] else ""
    return f"{row['realised_efficiency']:.2f} ({row['promised_speed_up']:.2f}{marks})"


def _host_share(row: Case) -> str:
    if row["host_share"] is None:
        return ""
    return f"{100 * row['host_share']:.0f}" + (" (host-bound)" if row["host_bound"] else "")


def _clock(row: Case) -> str:
    if row["clock_mhz"] is None:
        return ""
    return f"{row['clock_mhz']:.0f}" + (" (power cap)" if row["power_capped"] else "")


def _joules(row: Case) -> str:
    return "" if row["joules"] is None else f"{row['joules']:.3g}"


#: Tables of all cases after those of times.
_CELLS = {
    "Realised efficiency (expected speed-up)": _efficiency,
    "Utilisation (%)": _utilisation,
    "Host's share of the time (%)": _host_share,
    "Mean clock of the GPU (MHz)": _clock,
    "Energy of a run (J)": _joules,
}


def _memory(timings: TimingTable) -> Table:
    lines = []
    for row in timings.memory:
        cells = ["-" if row[part] is None else f"{row[part] / 1e6:.1f}" for part in PARTS]
        if row["status"] != "ok":
            asked = row["asked_bytes"]
            cells[-1] = row["status"] + ("" if asked is None else f", asked for {asked / 1e6:.1f}")
        lines.append([row["label"], row["phase"], *cells])
    return Table(["scheme", "phase", *PARTS], lines)


def _ceilings(timings: TimingTable) -> Table:
    lines = []
    for (_, dtype), gemm in timings.ceilings.items():
        rows, inner, columns = gemm["rows"], gemm["inner"], gemm["columns"]
        size = f"{gemm['component']} ({rows}, {inner}) @ ({inner}, {columns})"
        lines.append([dtype, f"{gemm['flops_per_second'] / 1e12:.4g}", size])
    return Table(("dtype", "TFLOP/s", "fastest matmul"), lines, left=(0, 2))


def _remarks(timings: TimingTable) -> Iterable[str]:
    for row in timings.cases:
        if not is_timed(row):
            yield f"{row['label']}, {row['case']}: {row['status']}: {row['error']}"
        elif row["failed"]:
            some = f"{row['failed']} of {several(row['processes'] + row['failed'], 'process')}"
            yield f"{row['label']}, {row['case']}: failed or out of memory in {some}"
    for part in timings.memory:
        if part["status"] != "ok":
            yield f"{part['label']}, memory of {part['phase']}: {part['error']}"
    ceilings = [timing for timing in timings.timings if timing.measures == "ceiling"]
    yield from dict.fromkeys(f"ceilings: {t.status}: {t.error}" for t in ceilings if t.status != "ok")
    measured = [timing.measured for timing in timings.measured("ceiling")]
    if any(of["machine"]["overloaded"] or (of["gpu"] or {}).get("throttled") for of in measured):
        yield "ceilings: loaded or throttled; they may lie higher, and utilisation lower"
    if timings.cases and not any(row["router"] == "vanilla" for row in timings.cases):
        yield "no realised efficiency: this session has no vanilla row to compare others with; time one"
    for label in sorted({row["label"] for row in timings.cases if row["balance"] == "as routed"}):
        yield f"{label}, balance as routed: its routers weren't forced to route evenly"
