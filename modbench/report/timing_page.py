"""timings.md: times, realised efficiency, utilisation, memory, the machine's ceilings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from modbench.analysis.frames import tuples_of
from modbench.errors import several
from modbench.records.record import PROTOCOL
from modbench.report.leaderboard import made_by
from modbench.report.markdown import Page, page
from modbench.report.table import Table
from modbench.report.times import HOST_BOUND, PARTS, Times, machine_in_words, shape_of, time_marks

#: Text of a case, which is a row of `Times.cases`.
_Cell = Callable[[Any], str]
_STEPS = "Forward pass and training step (ms)"
#: Tables of times, with their phases.
_PHASES = {
    _STEPS: ("forward", "train"),
    "Prefill (ms)": ("prefill",),
    "Decoding, one step of the batch (ms)": ("decode",),
}


def timing_page(times: Times, others: int = 0) -> Page:
    """The page of ``times``; ``others``: number of sessions in the folder that are not shown. The words
    are in ``pages/timings.md.j2``."""
    first, cases = times.timings[0], tuples_of(times.cases)
    rows = [row for row in cases if row.seconds_median is not None]
    tables = {
        heading: _by_case(heading, [row for row in rows if row.phase in phases], *_TIME)
        for heading, phases in _PHASES.items()
    }
    per_flop = {row.label: cell for row in rows if (cell := _per_flop(row, rows))}
    if per_flop and (steps := tables[_STEPS]):
        lines = [[*line, per_flop.get(str(line[0]), "-")] for line in steps.rows]
        tables[_STEPS] = replace(
            steps, headings=[*steps.headings, "train, s/FLOP over dense"], rows=lines
        )
    tables |= {heading: _by_case(heading, rows, *of) for heading, of in _CELLS.items()}
    models = times.cases.groupby(["model", "train"], sort=False)["label"].unique()
    memory, ceilings = tuples_of(times.memory), tuples_of(times.ceilings)
    copied = max((of.measured["copy_bytes_per_second"] for of in times.measured("ceiling")), default=0.0)
    return page(
        "timings",
        suite=times.suite,
        session=first.session,
        machine=machine_in_words(first.environment),
        version=first.protocol or 1,
        today=PROTOCOL,
        models=[
            {"labels": labels, "model": shape_of(model), "train": shape_of(train)}
            for (model, train), labels in models.items()
        ],
        tables=[(heading, table) for heading, table in tables.items() if table],
        memory=_memory(memory) if memory else None,
        ceilings=_ceilings(ceilings) if ceilings else None,
        copied=f"{copied / 1e9:.4g}",
        remarks=[*_remarks(times, cases, memory)],
        begun=min(timing.started for timing in times.timings),
        ended=max(timing.finished for timing in times.timings),
        per_flop=bool(per_flop),
        taken=sorted({(row.n, row.processes) for row in rows}),
        forced=any(row.balance == "forced" for row in rows),
        utilised=any(row.utilisation is not None for row in rows),
        hosted=any(row.host_share is not None for row in rows),
        host_bound=HOST_BOUND,
        dtypes=sorted({row.dtype for row in rows}),
        compiled=any(row.compiled for row in rows),
        programs=sorted({(row.label, row.graphs, row.breaks) for row in rows if row.graphs}),
        others=others,
        codes=sorted({made_by(timing.code) for timing in times.timings}),
    )


def _by_case(heading: str, rows: Sequence[Any], column: str, cell: _Cell) -> Table | None:
    """A table of ``cell`` by scheme and case, a dash where ``column`` is missing; None if it always
    is."""
    cells = {(of.label, of.case): "-" if getattr(of, column) is None else cell(of) for of in rows}
    if {*cells.values()} <= {"-"}:
        return None
    labels, cases = dict.fromkeys(of.label for of in rows), dict.fromkeys(of.case for of in rows)
    lines = [[label, *(cells.get((label, case), "-") for case in cases)] for label in labels]
    return Table(["scheme", *cases], lines, caption=heading)


def _marked(text: str, *marks: str | None) -> str:
    """``text`` with those of ``marks`` that are not empty, each once."""
    shown = ", ".join(dict.fromkeys(filter(None, marks)))
    return f"{text} ({shown})" if shown else text


def marks_of(case: Any) -> str:
    """Reasons to doubt the time of ``case``; empty if there are none."""
    return time_marks(case.stable, case.loaded, case.throttled, case.host_bound)


def _milliseconds(case: Any) -> str:
    per = 1e3 / (case.tokens or 1) if case.phase == "decode" else 1e3
    return _marked(f"{case.seconds_median * per:.2f} ± {case.seconds_iqr * per:.2f}", marks_of(case))


def _per_flop(case: Any, cases: Sequence[Any]) -> str:
    """Seconds per FLOP of a training step over those of the dense model of its shape, or of the nearest
    one by width squared times layers, which is named; empty for other cases, and without one."""

    def size(of: Any) -> float:
        shape = shape_of(of.model)
        return float(shape.get("width", 0) ** 2 * shape.get("layers", 0))

    same = [
        of for of in cases if of.router == "vanilla" and (of.case, of.train) == ("train", case.train)
    ]
    if case.case != "train" or not same:
        return ""
    dense = min(same, key=lambda of: (of.model != case.model, abs(size(of) - size(case))))
    if not (dense.flops_realised and case.flops_realised):
        return ""
    own, of_dense = (of.seconds_median / of.flops_realised for of in (case, dense))
    shape = dense.label if dense.model != case.model else ""
    return _marked(f"{own / of_dense:.2f}", shape, marks_of(case), marks_of(dense))


def _efficiency(case: Any) -> str:
    expected = f"{case.promised_speed_up:.2f}"
    return (
        f"{case.realised_efficiency:.2f} ({', '.join(filter(None, (expected, case.efficiency_marks)))})"
    )


#: Column and cell of times.
_TIME: tuple[str, _Cell] = "seconds_median", _milliseconds
#: Column and cell of each table after those of times.
_CELLS: dict[str, tuple[str, _Cell]] = {
    "Realised efficiency (expected speed-up)": ("realised_efficiency", _efficiency),
    "Utilisation (%)": (
        "utilisation",
        lambda case: _marked(f"{100 * case.utilisation:.1f}", marks_of(case)),
    ),
    "Host's share of the time (%)": (
        "host_share",
        lambda case: _marked(f"{100 * case.host_share:.0f}", case.host_bound and "host-bound"),
    ),
    "Mean clock of the GPU (MHz)": (
        "clock_mhz",
        lambda case: _marked(f"{case.clock_mhz:.0f}", case.power_capped and "power cap"),
    ),
    "Energy of a run (J)": ("joules", lambda case: f"{case.joules:.3g}"),
}


def _memory(rows: Sequence[Any]) -> Table:
    lines = []
    for row in rows:
        sizes = (getattr(row, part) for part in PARTS)
        cells = ["-" if size is None else f"{size / 1e6:.1f}" for size in sizes]
        if row.status != "ok":
            asked = "" if row.asked_bytes is None else f", asked for {row.asked_bytes / 1e6:.1f}"
            cells[-1] = row.status + asked
        lines.append([row.label, row.phase, *cells])
    return Table(["scheme", "phase", *PARTS], lines)


def _ceilings(rows: Sequence[Any]) -> Table:
    lines = []
    for row in rows:
        size = f"{row.component} ({row.rows}, {row.inner}) @ ({row.inner}, {row.columns})"
        lines.append([row.dtype, f"{row.flops_per_second / 1e12:.4g}", size])
    return Table(("dtype", "TFLOP/s", "fastest matmul"), lines, left=(0, 2))


def _remarks(times: Times, cases: Sequence[Any], memory: Sequence[Any]) -> Iterator[str]:
    for row in cases:
        if row.seconds_median is None:
            yield f"{row.label}, {row.case}: {row.status}: {row.error}"
        elif row.failed:
            processes = several(row.processes + row.failed, "process")
            yield f"{row.label}, {row.case}: failed or out of memory in {row.failed} of {processes}"
    for row in memory:
        if row.status != "ok":
            yield f"{row.label}, memory of {row.phase}: {row.error}"
    ceilings = [timing for timing in times.timings if timing.measures == "ceiling"]
    yield from dict.fromkeys(f"ceilings: {t.status}: {t.error}" for t in ceilings if t.status != "ok")
    measured = [timing.measured for timing in times.measured("ceiling")]
    if any(of["machine"]["overloaded"] or (of["gpu"] or {}).get("throttled") for of in measured):
        yield "ceilings: loaded or throttled; they may lie higher, and utilisation lower"
    if cases and not any(row.router == "vanilla" for row in cases):
        yield "no realised efficiency: this session has no vanilla row to compare others with; time one"
    for label in sorted({row.label for row in cases if row.balance == "as routed"}):
        yield f"{label}, balance as routed: its routers weren't forced to route evenly"
