"""timings.md: times, realised efficiency, utilisation, memory, the machine's ceilings."""

from collections.abc import Callable, Iterable, Sequence

from modbench.report.markdown_table import escaped, made_by, table
from modbench.report.timing import machine_in_words
from modbench.report.timing_rows import CaseRow, MemoryRow, loaded
from modbench.report.timing_table import Group, TimingTable

_PHASES = {
    "forward": "Forward pass and training step (ms)",
    "train": "Forward pass and training step (ms)",
    "prefill": "Prefill (ms)",
    "decode": "Decoding, one step of the batch (ms)",
}
_PARTS = ("parameters", "gradients", "optimizer", "cache", "activations", "peak")


def timing_page(timings: TimingTable, others: int = 0) -> str:
    """The page of ``timings``; ``others``: number of runs in the folder that are not shown."""
    first = timings.timings[0]
    parts = [
        f"# Timings of suite {escaped(first.suite['name'])}, version {first.suite['version']}",
        f"Run {escaped(first.run)}; machine: {escaped(machine_in_words(first.environment))}.",
    ]
    for title, group in zip(timings.titles, timings.groups, strict=True):
        if title:
            parts.append(f"## {escaped(title)}")
        parts += _group(group)
    parts.append("## Notes")
    begun = min(timing.started for timing in timings.timings)
    ended = max(timing.finished for timing in timings.timings)
    notes = [f"Measured from {begun} to {ended}.", *_notes(timings)]
    if others:
        notes.append(f"Other runs in timings/: {others}; runs aren't compared.")
    for code in sorted({made_by(timing.code) for timing in timings.timings}):
        notes.append(f"Code: {escaped(code)}.")
    parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _group(group: Group) -> list[str]:
    shape = group.shape["model"]
    described = ", ".join(f"{name} {escaped(str(shape[name]))}" for name in sorted(shape))
    train = group.shape["train"]
    parts = [
        f"Model: {described}; forward passes and training steps of {train['batch']} sequences of "
        f"{train['sequence']} tokens."
    ]
    rows = [row for row in group.cases if row.is_timed]
    for heading in dict.fromkeys(_PHASES[row.phase] for row in rows):
        of_heading = [row for row in rows if _PHASES[row.phase] == heading]
        parts += [f"### {heading}", _by_case(of_heading, _milliseconds)]
    if any(row.realised_efficiency is not None for row in rows):
        parts += ["### Realised efficiency (promised speed-up)", _by_case(rows, _efficiency)]
    if any(row.utilisation is not None for row in rows):
        parts += ["### Utilisation (%)", _by_case(rows, _utilisation)]
    if any(row.joules is not None for row in rows):
        parts += ["### Energy of a run (J)", _by_case(rows, _joules)]
    if group.memory:
        parts += ["### Memory (MB), measured / predicted", _memory(group.memory)]
    if group.ceilings:
        parts += ["### Ceilings", _ceilings(group)]
    remarks = list(_remarks(group))
    if remarks:
        parts += ["### Remarks", "\n".join(f"- {remark}" for remark in remarks)]
    return parts


def _by_case(rows: Sequence[CaseRow], cell: Callable[[CaseRow], str]) -> str:
    cases = list(dict.fromkeys(row.case for row in rows))
    found = {(row.label, row.case): row for row in rows}
    lines = []
    for label in dict.fromkeys(row.label for row in rows):
        shown = (found.get((label, case)) for case in cases)
        lines.append([escaped(label), *("-" if row is None else cell(row) for row in shown)])
    return table(["scheme", *map(escaped, cases)], lines)


def _milliseconds(row: CaseRow) -> str:
    per = 1e3 / (row.tokens or 1) if row.phase == "decode" else 1e3
    median, spread = (row.seconds_median or 0) * per, (row.seconds_iqr or 0) * per
    return f"{median:.2f} ± {spread:.2f}{_in_brackets(row.doubts)}"


def _efficiency(row: CaseRow) -> str:
    if row.realised_efficiency is None:
        return "-"
    inside = filter(None, (f"{row.promised_speed_up:.2f}", row.doubts_of_both))
    return f"{row.realised_efficiency:.2f} ({', '.join(inside)})"


def _utilisation(row: CaseRow) -> str:
    return "-" if row.utilisation is None else f"{100 * row.utilisation:.1f}{_in_brackets(row.doubts)}"


def _in_brackets(doubts: str) -> str:
    return f" ({doubts})" if doubts else ""


def _joules(row: CaseRow) -> str:
    return "-" if row.joules is None else f"{row.joules:.3g}"


def _memory(rows: Sequence[MemoryRow]) -> str:
    found = {(row.label, row.phase, row.part): row for row in rows}
    lines = []
    for label, phase in dict.fromkeys((row.label, row.phase) for row in rows):
        cells = [_megabytes(found.get((label, phase, part))) for part in _PARTS]
        peak = found[label, phase, "peak"]
        difference = "-" if peak.difference is None else f"{100 * peak.difference:+.1f}"
        lines.append([escaped(label), phase, *cells, difference])
    heads = ["scheme", "phase", *_PARTS, "peak, measured over predicted (%)"]
    return table(heads, lines)


def _megabytes(row: MemoryRow | None) -> str:
    if row is None:
        return "-"
    if row.status != "ok":
        asked = "" if row.asked_bytes is None else f", asked for {row.asked_bytes / 1e6:.1f}"
        return f"{row.status}{asked}"
    return f"{(row.measured or 0) / 1e6:.1f} / {(row.predicted or 0) / 1e6:.1f}"


def _ceilings(group: Group) -> str:
    dtypes = sorted({dtype for dtype, _ in group.ceilings})
    components = list(dict.fromkeys(component for _, component in group.ceilings))
    lines = []
    for component in components:
        gemms = [group.ceilings.get((dtype, component)) for dtype in dtypes]
        shape = next(gemm for gemm in gemms if gemm is not None)
        size = f"({shape['rows']}, {shape['inner']}) @ ({shape['inner']}, {shape['columns']})"
        rates = ("-" if g is None else f"{g['flops_per_second'] / 1e12:.4g}" for g in gemms)
        lines.append([f"{component} {size}", *rates])
    text = table(["matmul", *(f"{dtype} (TFLOP/s)" for dtype in dtypes)], lines)
    copied = group.copy_bytes_per_second
    return text if copied is None else f"{text}\n\nCopies: {copied / 1e9:.4g} GB/s, read and written."


def _remarks(group: Group) -> Iterable[str]:
    for row in group.cases:
        if not row.is_timed:
            why = escaped(row.error or row.flags)
            yield f"{escaped(row.label)}, {escaped(row.case)}: {row.status}: {why}"
    flagged: dict[tuple[str, str], list[str]] = {}
    for row in group.cases:
        if row.is_timed and row.flags:
            flagged.setdefault((row.label, row.flags), []).append(row.case)
    for (label, flags), cases in flagged.items():
        every = len(cases) == sum(row.label == label for row in group.cases)
        where = "all cases" if every else ", ".join(cases)
        yield f"{escaped(label)}, {escaped(where)}: {escaped(flags)}"
    for part in group.memory:
        if part.status != "ok":
            yield f"{escaped(part.label)}, memory of {part.phase}: {escaped(part.error)}"
    for text in dict.fromkeys(f"{t.status}: {escaped(t.error or '')}" for t in group.failed_ceilings):
        yield f"ceilings: {text}"
    slowed, usable = len(group.throttled_ceilings), len(group.usable_ceilings)
    if slowed:
        which = "left out" if usable else "invalid, so that there is no utilisation"
        yield f"ceilings: throttled in {slowed} of {slowed + usable} processes: {which}"
    hit = sum(timing.measured["machine"]["overloaded"] for timing in group.usable_ceilings)
    if hit:
        yield f"ceilings: {loaded(hit, usable)}; they may lie higher, and utilisation lower"
    if group.cases and not any(row.router == "vanilla" for row in group.cases):
        yield "no realised efficiency: this run has no vanilla row to hold others against; time one, too"
    for label in sorted({row.label for row in group.cases if row.balance == "as routed"}):
        yield f"{escaped(label)}, balance as routed: its routers weren't forced to route evenly"


def _notes(timings: TimingTable) -> Iterable[str]:
    rows = [row for group in timings.groups for row in group.cases if row.is_timed]
    if rows:
        yield from _notes_of_times(rows)
    if any(group.memory for group in timings.groups):
        yield (
            "Memory: 10^6 bytes at the peak of a fresh process above what it held when it had done the "
            "same once and let go of it, which is the code of libraries; of training, a step that adds "
            "to the gradients of a micro-batch before it. Parameters, gradients, optimizer and cache by "
            "the sizes of their tensors, activations the rest of the peak."
        )


def _notes_of_times(rows: Sequence[CaseRow]) -> Iterable[str]:
    counts = sorted({(row.n, row.processes) for row in rows})
    several = ", ".join(f"{n} samples of {processes} processes" for n, processes in counts)
    yield (
        f"Times: median ± interquartile range; {several}. Unstable by pyperf's rules: a standard "
        "deviation above 10 % of the mean, an extreme more than 50 % from it, or a sample shorter than "
        "1 ms. Loaded: the machine's load exceeded its cores in a process behind the figure."
    )
    if any(row.balance == "forced" for row in rows):
        yield (
            "Balance is forced: untrained routers compute their scores and route evenly whatever these "
            "are. In a batch, all sequences enter a depth-routed layer at the same steps of decoding."
        )
    yield (
        "Realised efficiency: the speed-up over vanilla that is achieved, over the promised one: (time "
        "dense / time routed) / (FLOPs dense / FLOPs routed), FLOPs realised, convention `model`."
    )
    yield (
        "FLOPs are what each scheme's ledger states of its realised routing: `modbench audit` and "
        "`modbench run` hold it against what is counted, a timing doesn't."
    )
    if any(row.utilisation is not None for row in rows):
        yield (
            "Utilisation: FLOP/s, convention `executed` with padded slots, over the fastest of the "
            "matmuls under Ceilings in the row's dtype."
        )
    dtypes = ", ".join(sorted({row.dtype for row in rows}))
    compiled = "nothing compiled"
    if any(row.compiled for row in rows):
        compiled = "all compiled but decoding, which a GPU replays as CUDA graphs"
    yield (
        f"Matmuls in {dtypes}; forward passes and training steps under autocast, prefill and decoding "
        f"with weights in it; {compiled}."
    )
