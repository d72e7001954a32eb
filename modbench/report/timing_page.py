"""timings.md: times, realised efficiency, utilisation, memory, the machine's ceilings."""

from collections.abc import Callable, Iterable, Sequence

from modbench.report.table import escaped, made_by, markdown_table
from modbench.report.timing import machine_in_words
from modbench.report.timing_table import CaseRow, Group, MemoryRow, TimingTable

_PHASES = {
    "forward": "Forward pass and training step (ms)",
    "train": "Forward pass and training step (ms)",
    "prefill": "Prefill (ms)",
    "decode": "Decoding, one step of the batch (ms)",
}
#: Heading, rows and cells of a table.
_Table = tuple[str, list[CaseRow], Callable[[CaseRow], str]]
_PARTS = ("parameters", "gradients", "optimizer", "cache", "activations", "peak")

_TIMES = (
    "Times: median ± interquartile range. Unstable by pyperf's rules: a standard deviation above 10 % "
    "of the mean, an extreme more than 50 % from it, or a sample shorter than 1 ms. Loaded: the "
    "machine's load exceeded its cores in a process behind the figure. Throttled: the GPU was, in all "
    "processes; otherwise those in which it was are left out."
)
_BALANCE = (
    "Balance is forced: untrained routers compute their scores and route evenly whatever these are. In "
    "a batch, all sequences enter a depth-routed layer at the same steps of decoding."
)
_EFFICIENCY = (
    "Realised efficiency: the speed-up over vanilla that is achieved, over the promised one: (time "
    "dense / time routed) / (FLOPs dense / FLOPs routed). FLOPs are what each scheme's ledger states of "
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


def timing_page(timings: TimingTable, others: int = 0) -> str:
    """The page of ``timings``; ``others``: number of runs in the folder that are not shown."""
    first = timings.timings[0]
    machine = escaped(machine_in_words(first.environment))
    parts = [
        f"# Timings of suite {escaped(first.suite['name'])}, version {first.suite['version']}",
        f"Run {escaped(first.run)}; machine: {machine}.",
    ]
    for title, group in zip(timings.titles, timings.groups, strict=True):
        parts += [f"## {escaped(title)}"] if title else []
        parts += _group(group)
    parts += ["## Notes", "\n".join(f"- {note}" for note in _notes(timings, others))]
    return "\n\n".join(parts) + "\n"


def _group(group: Group) -> list[str]:
    shape, train = group.shape["model"], group.shape["train"]
    described = ", ".join(f"{escaped(name)} {escaped(shape[name])}" for name in sorted(shape))
    parts = [
        f"Model: {described}; forward passes and training steps of {train['batch']} sequences of "
        f"{train['sequence']} tokens, precision {escaped(train['precision'])}."
    ]
    rows = [row for row in group.cases if row.is_timed]
    tables: list[_Table] = [
        (heading, [row for row in rows if _PHASES[row.phase] == heading], _milliseconds)
        for heading in dict.fromkeys(_PHASES.values())
    ]
    tables += [
        ("Realised efficiency (promised speed-up)", rows, _efficiency),
        ("Utilisation (%)", rows, _utilisation),
        ("Energy of a run (J)", rows, lambda row: "" if row.joules is None else f"{row.joules:.3g}"),
    ]
    for heading, shown, cell in tables:
        parts += _by_case(heading, shown, cell)
    if group.memory:
        parts += ["### Memory (MB), measured / predicted", _memory(group.memory)]
    if group.ceilings:
        parts += ["### Ceilings", _ceilings(group)]
    remarks = list(_remarks(group))
    if remarks:
        parts += ["### Remarks", "\n".join(f"- {escaped(remark)}" for remark in remarks)]
    return parts


def _by_case(heading: str, rows: Sequence[CaseRow], cell: Callable[[CaseRow], str]) -> list[str]:
    """A table of ``cell`` by scheme and case, a dash where it is empty; nothing if all are."""
    found = {(row.label, row.case): cell(row) or "-" for row in rows}
    if {*found.values()} <= {"-"}:
        return []
    cases, labels = dict.fromkeys(row.case for row in rows), dict.fromkeys(row.label for row in rows)
    lines = [[label, *(found.get((label, case), "-") for case in cases)] for label in labels]
    return [f"### {heading}", markdown_table(["scheme", *cases], lines)]


def _milliseconds(row: CaseRow) -> str:
    per = 1e3 / (row.tokens or 1) if row.phase == "decode" else 1e3
    median, spread = (row.seconds_median or 0) * per, (row.seconds_iqr or 0) * per
    return f"{median:.2f} ± {spread:.2f}" + (f" ({row.marks})" if row.marks else "")


def _utilisation(row: CaseRow) -> str:
    if row.utilisation is None:
        return ""
    return f"{100 * row.utilisation:.1f}" + (f" ({row.marks})" if row.marks else "")


def _efficiency(row: CaseRow) -> str:
    if row.realised_efficiency is None:
        return ""
    marks = f", {row.efficiency_marks}" if row.efficiency_marks else ""
    return f"{row.realised_efficiency:.2f} ({row.promised_speed_up:.2f}{marks})"


def _memory(rows: Sequence[MemoryRow]) -> str:
    found = {(row.label, row.phase, row.part): row for row in rows}
    lines = []
    for label, phase in dict.fromkeys((row.label, row.phase) for row in rows):
        difference = found[label, phase, "peak"].difference
        cells = [_megabytes(found.get((label, phase, part))) for part in _PARTS]
        lines.append([label, phase, *cells, "-" if difference is None else f"{100 * difference:+.1f}"])
    return markdown_table(["scheme", "phase", *_PARTS, "peak, measured over predicted (%)"], lines)


def _megabytes(row: MemoryRow | None) -> str:
    if row is None:
        return "-"
    if row.status != "ok":
        asked = "" if row.asked_bytes is None else f", asked for {row.asked_bytes / 1e6:.1f}"
        return f"{row.status}{asked}"
    return f"{(row.measured or 0) / 1e6:.1f} / {(row.predicted or 0) / 1e6:.1f}"


def _ceilings(group: Group) -> str:
    lines = []
    for dtype, gemm in group.ceilings.items():
        rows, inner, columns = gemm["rows"], gemm["inner"], gemm["columns"]
        size = f"{gemm['component']} ({rows}, {inner}) @ ({inner}, {columns})"
        lines.append([dtype, f"{gemm['flops_per_second'] / 1e12:.4g}", size])
    text = markdown_table(("dtype", "TFLOP/s", "fastest matmul"), lines, left=(0, 2))
    copied = group.copy_bytes_per_second
    return text if copied is None else f"{text}\n\nCopies: {copied / 1e9:.4g} GB/s, read and written."


def _remarks(group: Group) -> Iterable[str]:
    for row in group.cases:
        if not row.is_timed:
            yield f"{row.label}, {row.case}: {row.status}: {row.error}"
        elif row.failed:
            some = f"{row.failed} of {row.processes + row.failed} processes"
            yield f"{row.label}, {row.case}: failed or out of memory in {some}"
    for part in group.memory:
        if part.status != "ok":
            yield f"{part.label}, memory of {part.phase}: {part.error}"
    ceilings = [timing for timing in group.timings if timing.measurement == "ceiling"]
    yield from dict.fromkeys(f"ceilings: {t.status}: {t.error}" for t in ceilings if t.status != "ok")
    found = group.measured_ceilings
    if any(one["machine"]["overloaded"] or (one["gpu"] or {}).get("throttled") for one in found):
        yield "ceilings: loaded or throttled; they may lie higher, and utilisation lower"
    if group.cases and not any(row.router == "vanilla" for row in group.cases):
        yield "no realised efficiency: this run has no vanilla row to compare others with; time one, too"
    for label in sorted({row.label for row in group.cases if row.balance == "as routed"}):
        yield f"{label}, balance as routed: its routers weren't forced to route evenly"


def _notes(timings: TimingTable, others: int) -> Iterable[str]:
    begun = min(timing.started for timing in timings.timings)
    ended = max(timing.finished for timing in timings.timings)
    yield f"Measured from {begun} to {ended}."
    rows = [row for group in timings.groups for row in group.cases if row.is_timed]
    if rows:
        counts = sorted({(row.n, row.processes) for row in rows})
        several = ", ".join(f"{n} samples of {processes} processes" for n, processes in counts)
        yield f"{_TIMES} Taken: {several}."
        if any(row.balance == "forced" for row in rows):
            yield _BALANCE
        yield _EFFICIENCY
        if any(row.utilisation is not None for row in rows):
            yield _UTILISATION
        dtypes = ", ".join(sorted({row.dtype for row in rows}))
        how = "compiled" if any(row.compiled for row in rows) else "not compiled"
        yield (
            f"Matmuls in {escaped(dtypes)}, {how}; forward passes and training steps under autocast, "
            "prefill and decoding with weights in that dtype."
        )
    if any(group.memory for group in timings.groups):
        yield _MEMORY
    if others:
        yield f"Other runs of this suite: {others}; runs aren't compared."
    for code in sorted({made_by(timing.code) for timing in timings.timings}):
        yield f"Code: {escaped(code)}."
