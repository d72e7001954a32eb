"""leaderboard.md: ranked rows, rows that could not be ranked and why, notes and metrics."""

from collections.abc import Iterable
from string import Formatter
from typing import Any

from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.metrics import METRICS, metric
from modbench.report.routing_tables import idle_experts, routed_tokens
from modbench.report.row import FAR, MACHINE, Exact, Quality, Row
from modbench.report.table import escaped, made_by, markdown_table

#: Marks of figures that need a sentence under the table.
_FAR_MARK, _UNIGRAM_MARK = "†", "‡"

#: Settings that the page states above the table of each comparison.
_CONDITIONS = {"budget", "sequence", "heldout_tokens"}

_FLOPS = (
    "FLOPs: convention `model` (2 per multiply-accumulate; causal attention costs its triangle; logits "
    "and routers counted, the embedding look-up free; backward dX and dW of each matmul where needed). "
    "Nominal: by the options; realised: by what the causal rule selected on held-out text."
)
_SOURCE = (
    "Column FLOPs: by a closed form, which the audit compares with a counter; or counted, by running "
    "the layers on the meta device."
)
_CSV = (
    "In leaderboard.csv a metric of kind exact is one column (`low..high` if seeds disagree); quality "
    "is the mean over seeds, with `_low` and `_high` of its 95 % t-interval (empty for one seed); timed "
    "is `_median`, `_iqr`, `_n`, `_stable` and `_loaded` (several seeds: median of medians, widest IQR; "
    "`_iqr` and `_stable` are empty where a seed has one value). A text that a spreadsheet would take "
    "for a formula has an apostrophe in front."
)


def markdown(board: Leaderboard) -> str:
    """The page."""
    records = [record for entry in board.entries for record in entry.row.records]
    suites = sorted({(record.suite["name"], record.suite["version"]) for record in records})
    named = ", ".join(f"{escaped(name)}, version {version}" for name, version in suites)
    parts = [f"# Suite {named}"]
    for number, entries in enumerate(board.comparisons, start=1):
        if len(board.comparisons) > 1:
            parts.append(f"## Comparison {number}\n\nRanks count within a comparison, not between two.")
        parts += _comparison(board, entries)
    parts += routed_tokens(board) + idle_experts(board)
    parts += ["## Notes", "\n".join(f"- {note}" for note in _notes(board))]
    glossary = [
        (of.name, of.unit, "-" if of.direction == "none" else of.direction, of.kind, of.meaning)
        for of in METRICS.values()
    ]
    heads = ("metric", "unit", "better", "kind", "meaning")
    parts += ["## Metrics", markdown_table(heads, glossary, left=range(5)), _CSV]
    return "\n\n".join(parts) + "\n"


def _comparison(board: Leaderboard, entries: list[Entry]) -> list[str]:
    # Equal in all rows; a row that stopped early has none.
    scored = next((e.row for e in entries if e.row.value("unigram_loss")), entries[0].row)
    unigram = _number(board, scored, "unigram_loss", ".4f")
    parts = [f"{_conditions(board, entries[0].row)} Unigram loss: {unigram} nats/token."]
    ranked = [entry for entry in entries if entry.rank is not None]
    if ranked:
        parts += [_table(board, ranked), *_legend(board, ranked)]
    else:
        parts.append("No row could be ranked.")
    remarks = [_remark(board, entry) for entry in entries if entry.note]
    if remarks:
        parts += ["Not ranked, or ranked with a remark:", "\n".join(remarks)]
    return parts


def _legend(board: Leaderboard, ranked: list[Entry]) -> Iterable[str]:
    """Explanations of the table's marks and ranks."""
    if any(entry.row.is_above_unigram for entry in ranked):
        yield (
            f"{_UNIGRAM_MARK} The held-out loss of a run ends above its unigram loss: it has learned "
            "less than the frequencies of the tokens."
        )
    if any(entry.row.far_from_nominal for entry in ranked):
        yield (
            f"{_FAR_MARK} The causal rule selects more than {FAR} times the nominal capacity, or less "
            f"than 1/{FAR} of it: compare by the realised FLOPs."
        )
    if metric(board.rank_by).kind == "exact":
        yield f"Ranked by {board.rank_by}, which is exact: rows of equal figures share a rank."
    elif all(len(entry.row.ok) == 1 for entry in ranked):
        yield (
            f"Ranked by {board.rank_by}. One seed gives no interval: the rank is the order of the "
            "figures, not a claim that one scheme is better than another."
        )
    else:
        yield (
            f"Ranked by {board.rank_by}; ± is half a 95 % t-interval over seeds, and rows whose "
            "intervals overlap are not ranked apart: a rank is one more than the number of rows whose "
            "interval lies wholly on the better side."
        )


_LOSS = "held-out loss (nats/token)"
_FORWARD = "forward FLOP/token, nominal / realised"
#: Heading of each column and its cells: metrics and their formats, see `_number`.
_COLUMNS = {
    _LOSS: "{heldout_loss:.4f}",
    "bits/byte": "{heldout_bits_per_byte:.4f}",
    "leaky loss (nats/token)": "{heldout_loss_leaky:.4f}",
    "leak (nats/token)": "{leak:.4f}",
    "cloze accuracy (untrained, chance)": (
        "{modbench_cloze:.3f} ({modbench_cloze_untrained:.3f}, {modbench_cloze_chance:.3f})"
    ),
    _FORWARD: "{forward_flops_per_token:si} / {forward_flops_per_token_realised:si}",
    "training FLOP spent": "{train_flops:si}",
    "steps": "{train_steps:d}",
    "tokens": "{train_tokens:d}",
    "training step (ms), median ± IQR": "{train_step_seconds:ms}",
    "peak memory (MB)": "{peak_memory_bytes:MB}",
    "KV cache (B/token, share of dense)": "{kv_cache_bytes_per_token:.0f} ({kv_cache_share:.3f})",
    "parameters, active / all": "{active_parameters:si} / {parameters:si}",
}


def _table(board: Leaderboard, ranked: list[Entry]) -> str:
    """The table of ``ranked``, without the columns in which no row has a value."""
    name = board.rank_by
    columns = dict(_COLUMNS)
    if not any(f"{{{name}:" in template for template in columns.values()):
        form = "" if metric(name).kind == "exact" else ".4f"
        columns = {f"{name} ({metric(name).unit})": f"{{{name}:{form}}}", **columns}
    rows = [entry.row for entry in ranked]
    labels = [row.label for row in rows]
    cells: dict[str, list[object]] = {"rank": [entry.rank for entry in ranked], "scheme": [*labels]}
    for heading, template in columns.items():
        parts = list(Formatter().parse(template))
        if any(board.value(row, shown) is not None for row in rows for _, shown, *_ in parts if shown):
            cells[heading] = [_cell(board, row, heading, parts) for row in rows]
    # Records written before FLOPs could be counted do not say how they were found.
    if any(row.flops_source for row in rows):
        cells["FLOPs"] = [row.flops_source or "-" for row in rows]
    cells["audit"] = [row.audit for row in rows]
    left = [number for number, head in enumerate(cells) if head in ("scheme", "FLOPs", "audit")]
    return markdown_table(list(cells), zip(*cells.values(), strict=True), left=left)


def _cell(board: Leaderboard, row: Row, heading: str, parts: list[Any]) -> str:
    """The cell of ``row``; ``parts``: text before a metric, its name, its format."""
    shown = [text + (_number(board, row, name, form) if name else "") for text, name, form, _ in parts]
    shown += [f" {_UNIGRAM_MARK}"] * (heading == _LOSS and row.is_above_unigram)
    shown += [f" {_FAR_MARK}"] * (heading == _FORWARD and bool(row.far_from_nominal))
    return "".join(shown)


def _remark(board: Leaderboard, entry: Entry) -> str:
    row, place, measured = entry.row, f"rank {entry.rank}", ""
    if entry.rank is None:
        place = "not ranked"
        texts = [
            f"{words} {_number(board, row, name, '.4f')} {metric(name).unit}"
            for name, words in (("heldout_loss", "held-out loss"), ("heldout_loss_leaky", "leaky loss"))
            if row.value(name) is not None
        ]
        some = f" of {len(row.ok)} of {len(row.records)} seeds" if len(row.ok) < len(row.records) else ""
        measured = f" ({', '.join(texts)}{some})" if texts else ""
    return f"- **{escaped(row.label)}** ({place}): {escaped(entry.note)}{measured}"


def _conditions(board: Leaderboard, row: Row) -> str:
    held = row.conditions(board.rank_by)
    model, corpus = held["model"], held["corpus"]
    shape = ", ".join(f"{escaped(name)} {escaped(model[name])}" for name in sorted(model))
    return (
        f"Budget {_si(held['budget'])}FLOP of training each ({held['budget']}, convention model); "
        f"model: {shape}; data: {escaped(held['data'].get('source', 'corpus'))}, sha256 "
        f"{escaped(corpus['sha256'])}, {corpus['train_tokens']} training tokens, sequences of "
        f"{held['sequence']}; loss over at most {held['heldout_tokens']} held-out tokens."
    )


_UNITS = {"ms": 1e-3, "MB": 1e6}
_PREFIXES = {0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E", 21: "Z", 24: "Y"}


def _si(value: float) -> str:
    """``value`` with four significant digits and an SI prefix: 1.234 T."""
    for power, prefix in reversed(_PREFIXES.items()):
        if power and value >= 0.99995 * 10**power:
            return f"{value / 10**power:#.4g} {prefix}"
    return f"{value:#.4g} "


def _number(board: Leaderboard, row: Row, name: str, form: str) -> str:
    """The metric ``name`` of ``row`` as ``form``: si, ms, MB or one of Python's; "-" if not measured."""

    def text(value: float) -> str:
        if form == "si":
            return _si(value).rstrip()
        if form in _UNITS:
            return f"{value / _UNITS[form]:.1f}"
        return f"{value:{f'z{form}' if form.endswith('f') else form}}"  # z: no sign for rounded zeros

    value = board.value(row, name)
    if value is None:
        return "-"
    if isinstance(value, Quality):
        return text(value.mean) + ("" if value.high is None else f" ± {text(value.high - value.mean)}")
    if isinstance(value, Exact):
        return text(value.low) if value.low == value.high else f"{text(value.low)}..{text(value.high)}"
    spread = f" ± {text(value.iqr)}" if value.iqr is not None and value.n > 1 else ""
    return text(value.median) + spread + (f" ({value.marks})" if value.marks else "")


def _notes(board: Leaderboard) -> Iterable[str]:
    rows = [entry.row for entry in board.entries]
    records = [record for row in rows for record in row.records]
    yield _FLOPS
    if any(row.flops_source for row in rows):
        yield _SOURCE
    yield "Held-out loss: under the causal rule. Leaky loss: under the training rule, no result."
    seeds = {row.label: ", ".join(str(one.cell["seed"]) for one in row.records) for row in rows}
    yield f"Seeds: {_by_row(seeds)}; all figures: leaderboard.csv."
    if settings := "; ".join(_different_settings(rows)):
        yield f"Settings differ: {settings}."
    if board.machine_differences:
        different = [escaped(text) for text in board.machine_differences]
        yield (
            "Times and memory are left out, since machines that differ are not compared: "
            f"{'; '.join(different)}."
        )
    else:
        yield (
            "MB: 10^6 bytes. Unstable: the times spread too far for their median to be trusted. Loaded: "
            "the machine had other work while they were taken."
        )
    for machine in sorted({_machine(record.environment) for record in records if record.metrics}):
        yield f"Machine: {escaped(machine)}."
    codes = {row.label: ", ".join(sorted({made_by(one.code) for one in row.records})) for row in rows}
    yield f"Code: {_by_row(codes)}."
    routers = [record.cell["router"] for record in records]
    for name, sha in sorted(
        {(one["name"], one["plugin_sha256"]) for one in routers if one["plugin_sha256"]}
    ):
        yield f"Plugin: {escaped(name)}, a file with sha256 {escaped(sha)}."


def _different_settings(rows: list[Row]) -> Iterable[str]:
    """The settings of training and measuring in which ``rows`` differ, with the rows of each value."""
    for part in ("train", "measure"):
        for name in sorted({name for row in rows for name in row.cell[part]} - _CONDITIONS):
            values = {row.label: str(row.cell[part].get(name, "not set")) for row in rows}
            if len(set(values.values())) > 1:
                yield f"{escaped(name)} {_by_row(values)}"


def _by_row(texts: dict[str, str]) -> str:
    """The text of all rows; where it differs, each text with the labels of its rows."""
    labels: dict[str, list[str]] = {}
    for label, text in texts.items():
        labels.setdefault(escaped(text), []).append(escaped(label))
    if len(labels) == 1:
        return next(iter(labels))
    return " and ".join(f"{text} ({', '.join(labels[text])})" for text in labels)


def _machine(environment: dict[str, object]) -> str:
    named = (name for name in MACHINE if environment.get(name) is not None)
    return ", ".join(f"{name} {environment[name]}" for name in named)
