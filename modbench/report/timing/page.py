"""timings.md: times, realised efficiency, utilisation, memory, the machine's ceilings."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence

from modbench.errors import several
from modbench.records.record import PROTOCOL
from modbench.report.sections import Heading, Items, Page, Part, in_words, made_by, pictures
from modbench.report.table import Table, escaped
from modbench.report.timing.table import HOST_BOUND, PARTS, Case, TimingTable, is_timed, marks_of
from modbench.report.timing.values import machine_in_words

_PHASES = {
    "Forward pass and training step (ms)": ("forward", "train"),
    "Prefill (ms)": ("prefill",),
    "Decoding, one step of the batch (ms)": ("decode",),
}
_TIMES = (
    "Times: median ± interquartile range. Unstable by pyperf's rules: a standard deviation above 10 % "
    "of the mean, an extreme more than 50 % from it, or a sample shorter than 1 ms. Loaded: the "
    "machine's load exceeded its cores in a process behind the figure, or others used its GPU. "
    "Throttled: the GPU was, in all processes; otherwise those in which it was are left out."
)
_HOST = (
    "Host's share: of prefill and decoding, the part of the time in which the GPU waits for the host; "
    f"above {HOST_BOUND:.0%} the case is host-bound, and its time is that of Python rather than of the "
    "scheme. Of a training step, what it takes less where steps follow each other without a wait."
)
_BALANCE = (
    "Balance is forced: untrained routers compute their scores and route evenly whatever these are. In "
    "a batch, all sequences enter a depth-routed layer at the same steps of decoding."
)
_EFFICIENCY = (
    "Realised efficiency: the speed-up over vanilla that is achieved, over the expected one: (time "
    "dense / time routed) / (FLOPs dense / FLOPs routed). Where no vanilla row of the same shape was "
    "timed, dense time and FLOPs are interpolated between the next two widths; without a width on both "
    "sides there is none. FLOPs are what each scheme's ledger states of "
    "its realised routing, convention `model`; `modbench audit` and `modbench run` compare it with a "
    "counter."
)
_UTILISATION = (
    "Utilisation: FLOP/s, convention `executed` with padded slots, over the fastest matmul at the "
    "model's shapes in the row's dtype, see Ceilings."
)
_MEMORY = (
    "Memory: 10^6 bytes at the peak of a fresh process above its baseline, which is taken after the "
    "same work was done once and freed; of training, a step that adds to the gradients of a micro-batch "
    "before it. Parameters, gradients, optimizer and cache by the sizes of their tensors, activations "
    "the rest of the peak."
)


def timing_page(timings: TimingTable, others: int = 0, drawn: Collection[str] = ()) -> Page:
    """The page of ``timings``; ``others``: number of sessions in the folder that are not shown;
    ``drawn``: names of the files with figures."""
    first = timings.timings[0]
    machine = escaped(machine_in_words(first.environment))
    version = first.protocol or 1
    older = (
        f" Version {version} of the measurement; today's is {PROTOCOL}." if version < PROTOCOL else ""
    )
    parts: list[Part] = [
        Heading(f"Timings of suite {escaped(timings.suite)}", 1),
        f"Session {escaped(first.session)}; machine: {machine}.{older}",
        *_models(timings),
    ]
    rows = [row for row in timings.cases if is_timed(row)]
    for heading, phases in _PHASES.items():
        parts += _by_case(heading, [row for row in rows if row["phase"] in phases], _milliseconds)
    parts += _by_case("Realised efficiency (expected speed-up)", rows, _efficiency)
    parts += _by_case("Utilisation (%)", rows, _utilisation)
    parts += _by_case("Host's share of the time (%)", rows, _host_share)
    parts += _by_case("Mean clock of the GPU (MHz)", rows, _clock)
    parts += _by_case("Energy of a run (J)", rows, _joules)
    if timings.memory:
        parts += [Heading("Memory (MB), measured / predicted"), _memory(timings)]
    if timings.ceilings:
        parts += [Heading("Ceilings"), *_ceilings(timings)]
    parts += pictures(drawn)
    if remarks := [*map(escaped, _remarks(timings))]:
        parts += [Heading("Remarks"), Items(remarks)]
    return Page([*parts, Heading("Notes"), Items([*_notes(timings, others)])])


def _models(timings: TimingTable) -> Iterable[str]:
    """A paragraph on each shape, with the labels of its rows if there are several shapes."""
    shapes: dict[tuple[str, str], list[str]] = {}
    for row in timings.cases:
        shapes.setdefault((row["model"], row["train"]), []).append(row["label"])
    for (model, train), labels in shapes.items():
        of = f" of {escaped(', '.join(dict.fromkeys(labels)))}" if len(shapes) > 1 else ""
        step = json.loads(train)
        yield (
            f"Model{of}: {in_words(json.loads(model))}; forward passes and training steps of "
            f"{several(step['batch'], 'sequence')} of {several(step['sequence'], 'token')}, precision "
            f"{escaped(step['precision'])}."
        )


def _by_case(heading: str, rows: Sequence[Case], cell: Callable[[Case], str]) -> list[Part]:
    """A table of ``cell`` by scheme and case, a dash where it is empty; nothing if all are."""
    cells = {(row["label"], row["case"]): cell(row) or "-" for row in rows}
    if {*cells.values()} <= {"-"}:
        return []
    cases = dict.fromkeys(row["case"] for row in rows)
    labels = dict.fromkeys(row["label"] for row in rows)
    lines = [[label, *(cells.get((label, case), "-") for case in cases)] for label in labels]
    return [Heading(heading), Table(["scheme", *cases], lines, caption=heading)]


def _milliseconds(row: Case) -> str:
    per = 1e3 / (row["tokens"] or 1) if row["phase"] == "decode" else 1e3
    median, spread = (row["seconds_median"] or 0) * per, (row["seconds_iqr"] or 0) * per
    return f"{median:.2f} ± {spread:.2f}" + (f" ({marks_of(row)})" if marks_of(row) else "")


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


def _measured_over(measured: int, predicted: int | None) -> str:
    return f"{measured / 1e6:.1f} / " + ("-" if predicted is None else f"{predicted / 1e6:.1f}")


def _memory(timings: TimingTable) -> Table:
    lines = []
    for row in timings.memory:
        pairs = [(row[part], row[f"{part}_predicted"]) for part in PARTS]
        cells = ["-" if m is None else _measured_over(m, p) for m, p in pairs]
        peak, predicted = pairs[-1]
        over = "-"
        if row["status"] != "ok":
            asked = row["asked_bytes"]
            cells[-1] = row["status"] + ("" if asked is None else f", asked for {asked / 1e6:.1f}")
        elif predicted:
            over = f"{100 * (peak / predicted - 1):+.1f}"
        lines.append([row["label"], row["phase"], *cells, over])
    headings = ["scheme", "phase", *PARTS, "peak, measured over predicted (%)"]
    return Table(headings, lines)


def _ceilings(timings: TimingTable) -> list[Part]:
    lines = []
    for (_, dtype), gemm in timings.ceilings.items():
        rows, inner, columns = gemm["rows"], gemm["inner"], gemm["columns"]
        size = f"{gemm['component']} ({rows}, {inner}) @ ({inner}, {columns})"
        lines.append([dtype, f"{gemm['flops_per_second'] / 1e12:.4g}", size])
    copied = max(ceiling.measured["copy_bytes_per_second"] for ceiling in timings.measured("ceiling"))
    table = Table(("dtype", "TFLOP/s", "fastest matmul"), lines, left=(0, 2))
    return [table, f"Copies: {copied / 1e9:.4g} GB/s, read and written."]


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


def _notes(timings: TimingTable, others: int) -> Iterable[str]:
    begun = min(timing.started for timing in timings.timings)
    ended = max(timing.finished for timing in timings.timings)
    yield f"Measured from {begun} to {ended}."
    rows = [row for row in timings.cases if is_timed(row)]
    if rows:
        counts = sorted({(row["n"], row["processes"]) for row in rows})
        taken = (f"{several(n, 'sample')} of {several(processes, 'process')}" for n, processes in counts)
        yield f"{_TIMES} Taken: {', '.join(taken)}."
        if any(row["balance"] == "forced" for row in rows):
            yield _BALANCE
        yield _EFFICIENCY
        if any(row["utilisation"] is not None for row in rows):
            yield _UTILISATION
        if any(row["host_share"] is not None for row in rows):
            yield _HOST
        dtypes = ", ".join(sorted({row["dtype"] for row in rows}))
        how = "compiled" if any(row["compiled"] for row in rows) else "not compiled"
        yield (
            f"Matmuls in {escaped(dtypes)}, {how}; forward passes and training steps under autocast, "
            "prefill and decoding with weights in that dtype."
        )
    if timings.memory:
        yield _MEMORY
    if others:
        yield f"Other sessions of this suite: {others}; sessions aren't compared."
    for code in sorted({made_by(timing.code) for timing in timings.timings}):
        yield f"Code: {escaped(code)}."
