"""leaderboard.md: ranked rows, rows that could not be ranked and why, notes and metrics."""

from collections.abc import Callable, Iterable
from typing import Any

from modbench.report.capacity import FAR, far_from_nominal
from modbench.report.idle_experts import idle_experts
from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.markdown_table import escaped, made_by, table
from modbench.report.metrics import METRICS, metric
from modbench.report.record import CellRecord
from modbench.report.routed_tokens import routed_tokens
from modbench.report.row import MACHINE, Exact, Quality, Row


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
    parts += routed_tokens(board)
    parts += idle_experts(board)
    parts.append("## Notes")
    parts.append("\n".join(f"- {note}" for note in _notes(board, records)))
    parts.append("## Metrics")
    parts.append(_glossary())
    return "\n\n".join(parts) + "\n"


def _comparison(board: Leaderboard, entries: list[Entry]) -> list[str]:
    # Equal in all rows; a row that stopped early has none.
    scored = next((e.row for e in entries if e.row.value("unigram_loss")), entries[0].row)
    unigram = _number(board, scored, "unigram_loss", ".4f")
    parts = [f"{_conditions(board, entries)} Unigram loss: {unigram} nats/token."]
    ranked = [entry for entry in entries if entry.rank is not None]
    if ranked:
        parts.append(_table(board, ranked))
        if any(far_from_nominal(entry.row) for entry in ranked):
            parts.append(
                f"{_FAR_MARK} The causal rule selects more than {FAR} times the nominal capacity, or "
                f"less than 1/{FAR} of it: compare by the realised FLOPs."
            )
        if metric(board.rank_by).kind == "exact":
            parts.append(
                f"Ranked by {board.rank_by}, which is exact: rows of equal figures share a rank."
            )
        elif all(len(entry.row.ok) == 1 for entry in ranked):
            by = "" if board.rank_by == "heldout_loss" else f"Ranked by {board.rank_by}. "
            parts.append(
                f"{by}One seed gives no interval: the rank is the order of the figures, not a claim "
                "that one scheme is better than another."
            )
        else:
            parts.append(
                f"Ranked by {board.rank_by}; ± is half a 95 % t-interval over seeds, and rows whose "
                "intervals overlap are not ranked apart: a rank is one more than the number of rows "
                "whose interval lies wholly on the better side."
            )
    else:
        parts.append("No row could be ranked.")
    notes = [(entry, entry.note) for entry in entries if entry.note]
    if notes:
        parts.append("Not ranked, or ranked with a remark:")
        parts.append("\n".join(_remark(board, entry) for entry, _ in notes))
    return parts


#: Marks the realised FLOPs of a causal rule that selects far from its nominal capacity.
_FAR_MARK = "†"


def _table(board: Leaderboard, ranked: list[Entry]) -> str:
    columns = _columns(board)
    # Records written before FLOPs could be counted do not say how they were found.
    source = ["FLOPs"] if any(entry.row.flops_source for entry in board.entries) else []
    heads = ["rank", "scheme", *(heading for heading, *_ in columns), *source, "audit"]
    rows = []
    for entry in ranked:
        row = entry.row
        cells = [
            form.format(*(_number(board, row, *one, per) for one in metrics))
            + (f" {_FAR_MARK}" if metrics == _FORWARD and far_from_nominal(row) else "")
            for _, form, metrics, per in columns
        ]
        if source:
            cells.append(row.flops_source or "-")
        rows.append([str(entry.rank), escaped(row.label), *cells, escaped(row.audit)])
    return table(heads, rows, left=(1, *range(len(heads) - 1 - len(source), len(heads))))


def _remark(board: Leaderboard, entry: Entry) -> str:
    measured = "" if entry.rank is not None else _measured(board, entry.row)
    place = "not ranked" if entry.rank is None else f"rank {entry.rank}"
    return f"- **{escaped(entry.row.label)}** ({place}): {escaped(entry.note)}{measured}"


def _measured(board: Leaderboard, row: Row) -> str:
    texts = [
        f"{words} {_number(board, row, name, '.4f')} {metric(name).unit}"
        for name, words in (("heldout_loss", "held-out loss"), ("heldout_loss_leaky", "leaky loss"))
        if row.value(name) is not None
    ]
    some = f" of {len(row.ok)} of {len(row.records)} seeds" if 0 < len(row.ok) < len(row.records) else ""
    return f" ({', '.join(texts)}{some})" if texts else ""


def _conditions(board: Leaderboard, entries: list[Entry]) -> str:
    held = entries[0].row.conditions(board.rank_by)
    model = held["model"]
    shape = ", ".join(f"{name} {escaped(str(model[name]))}" for name in sorted(model))
    source = held["data"].get("source")
    corpus = escaped(str(source)) if source is not None else "corpus"
    return (
        f"Budget {_si(held['budget'])}FLOP of training each ({held['budget']}, convention model); "
        f"model: {shape}; data: {corpus}, sha256 {escaped(held['corpus']['sha256'])}, "
        f"{held['corpus']['train_tokens']} training tokens, sequences of {held['sequence']}; "
        f"loss over {_scored_tokens(held)} held-out tokens{_items(board, entries)}."
    )


def _scored_tokens(held: dict[str, Any]) -> int | None:
    """Number of held-out tokens scored: enough whole windows for the number requested, at most all
    of the text (see `modbench.measure.loss.heldout_windows`)."""
    asked, sequence = held["heldout_tokens"], held["sequence"]
    if asked is None or sequence is None:
        return asked
    windows: int = min(-(-asked // sequence), (held["corpus"]["heldout_tokens"] - 1) // sequence)
    return windows * sequence


def _items(board: Leaderboard, entries: list[Entry]) -> str:
    """Number of downstream items scored, if any comparison has a limit; with labels where rows differ:
    ``at most 5 (a, b), all (c)``."""
    labels: dict[int, list[str]] = {}
    for entry in entries:
        if entry.row.cell["measure"].get("downstream"):
            labels.setdefault(_limit(entry), []).append(escaped(entry.row.label))
    if not labels or not any(_limit(entry) for entry in board.entries):
        return ""
    by_limit = {f"at most {limit}" if limit else "all": labels[limit] for limit in sorted(labels)}
    several = len(by_limit) > 1
    parts = [f"{many} ({', '.join(of)})" if several else many for many, of in by_limit.items()]
    return f"; items of each downstream task: {', '.join(parts)}"


def _limit(entry: Entry) -> int:
    """Largest number of items of each downstream task; 0: all, or no task."""
    measure = entry.row.cell["measure"]
    return (measure.get("downstream") and measure.get("downstream_limit")) or 0


_PREFIXES = {0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E", 21: "Z", 24: "Y"}


def _si(value: float) -> str:
    """``value`` with three significant digits and an SI prefix: 1.2 T."""
    for power, prefix in reversed(_PREFIXES.items()):
        if power and value >= 0.9995 * 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "


def _number(board: Leaderboard, row: Row, name: str, form: str, per: float = 1) -> str:
    """The metric ``name`` of ``row`` divided by ``per``; a dash if it was not measured."""

    if form.endswith("f"):
        form = f"z{form}"  # z: no sign for values that round to 0

    def text(value: float) -> str:
        return f"{value if per == 1 else value / per:{form}}"

    value = board.value(row, name)
    if value is None:
        return "-"
    if isinstance(value, Quality):
        return text(value.mean) + ("" if value.high is None else f" ± {text(value.high - value.mean)}")
    if isinstance(value, Exact):
        return text(value.low) if value.low == value.high else f"{text(value.low)}..{text(value.high)}"
    spread = f" ± {text(value.iqr)}" if value.iqr is not None and value.n > 1 else ""
    return text(value.median) + spread + (" (unstable)" if value.stable is False else "")


def _unit(board: Leaderboard, name: str, power: int) -> tuple[str, float]:
    """Prefix and size of the unit for the exact metric ``name``: 10^``power``, adjusted so that the
    smallest value in the table lies between 1 and 10^6 units."""
    values = (board.value(entry.row, name) for entry in board.entries)
    least = min((value.low for value in values if isinstance(value, Exact)), default=10**power)
    while power > 0 and least < 10**power:
        power -= 3
    while power + 3 in _PREFIXES and least >= 10 ** (power + 6):
        power += 3
    return _PREFIXES[power], 10.0**power


#: Heading; format of the cell; (metric, format of its value), ...; unit of the values.
_Column = tuple[str, str, tuple[tuple[str, str], ...], float]

_FORWARD = ("forward_flops_per_token", ".3f"), ("forward_flops_per_token_realised", ".3f")


def _columns(board: Leaderboard) -> list[_Column]:
    """The columns of metrics."""
    cloze = ("modbench_cloze", "modbench_cloze_untrained", "modbench_cloze_chance")
    cache = ("kv_cache_bytes_per_token", ".0f"), ("kv_cache_share", ".3f")
    parameters = ("active_parameters", ".3f"), ("parameters", ".3f")
    flops, per_flop = _unit(board, "forward_flops_per_token", 6)
    spent, per_spent = _unit(board, "train_flops", 9)
    many, per_many = _unit(board, "active_parameters", 6)
    heading = f"parameters{f' ({many})' if many else ''}, active / all"
    columns: list[_Column] = [
        ("held-out loss (nats/token)", "{}", (("heldout_loss", ".4f"),), 1),
        ("bits/byte", "{}", (("heldout_bits_per_byte", ".4f"),), 1),
        ("leaky loss (nats/token)", "{}", (("heldout_loss_leaky", ".4f"),), 1),
        ("leak (nats/token)", "{}", (("leak", ".4f"),), 1),
        ("cloze accuracy (untrained, chance)", "{} ({}, {})", tuple((n, ".3f") for n in cloze), 1),
        (f"forward {flops}FLOP/token, nominal / realised", "{} / {}", _FORWARD, per_flop),
        (f"training {spent}FLOP spent", "{}", (("train_flops", ".1f"),), per_spent),
        ("steps", "{}", (("train_steps", "d"),), 1),
        ("tokens", "{}", (("train_tokens", "d"),), 1),
        ("training step (ms), median ± IQR", "{}", (("train_step_seconds", ".1f"),), 1e-3),
        ("peak memory (MB)", "{}", (("peak_memory_bytes", ".1f"),), 1e6),
        ("KV cache (B/token, share of dense)", "{} ({})", cache, 1),
        (heading, "{} / {}", parameters, per_many),
    ]
    name = board.rank_by
    if all(name != shown for _, _, metrics, _ in columns for shown, _ in metrics):
        form = "" if metric(name).kind == "exact" else ".4f"
        columns.insert(0, (f"{name} ({escaped(metric(name).unit)})", "{}", ((name, form),), 1))
    return columns


def _notes(board: Leaderboard, records: list[CellRecord]) -> Iterable[str]:
    yield (
        "FLOPs: convention `model` (2 per multiply-accumulate; causal attention costs its triangle; "
        "logits and routers counted, the embedding look-up free; backward dX and dW of each matmul "
        "where needed). Nominal: what the options promise; realised: what the causal rule selected on "
        "held-out text."
    )
    if any(entry.row.flops_source for entry in board.entries):
        yield (
            "Column FLOPs: by a closed form, which the audit compares with a counter; or counted, by "
            "running the layers on the meta device."
        )
    yield "Held-out loss: under the causal rule. Leaky loss: under the training rule, no result."
    yield f"Seeds: {_by_row(board, _seeds)}; all figures: leaderboard.csv."
    names = sorted(
        {name for record in records for name in record.cell["train"]} - {"budget", "sequence"}
    )
    by_name = {name: _trained_with(name) for name in names}
    differing = [
        f"{escaped(name)} {_by_row(board, text_of)}"
        for name, text_of in by_name.items()
        if len({text_of(entry.row) for entry in board.entries}) > 1
    ]
    if differing:
        yield f"Not all rows were trained alike: {'; '.join(differing)}."
    if board.machine_differences:
        yield (
            "Times and memory are left out, since machines that differ are not compared: "
            f"{escaped('; '.join(board.machine_differences))}."
        )
    else:
        yield "MB: 10^6 bytes. Unstable: the times spread too far for their median to be trusted."
    machines = {_machine(record) for record in records if record.metrics}
    for machine in sorted(machines):
        yield f"Machine: {escaped(machine)}."
    yield f"Code: {_by_row(board, _code)}."
    plugins = {
        (record.cell["router"]["name"], record.cell["router"]["plugin_sha256"])
        for record in records
        if record.cell["router"]["plugin_sha256"] is not None
    }
    for name, digest in sorted(plugins):
        yield f"Plugin: {escaped(name)}, a file with sha256 {escaped(digest)}."


def _by_row(board: Leaderboard, text_of: Callable[[Row], str]) -> str:
    """The text ``text_of`` gives for all rows; where it differs, each text with its rows."""
    labels: dict[str, list[str]] = {}
    for entry in board.entries:
        labels.setdefault(text_of(entry.row), []).append(escaped(entry.row.label))
    if len(labels) == 1:
        return next(iter(labels))
    return " and ".join(f"{text} ({', '.join(labels[text])})" for text in labels)


def _seeds(row: Row) -> str:
    return ", ".join(str(record.cell["seed"]) for record in row.records)


def _code(row: Row) -> str:
    return ", ".join(sorted({escaped(made_by(record.code)) for record in row.records}))


def _trained_with(name: str) -> Callable[[Row], str]:
    return lambda row: escaped(str(row.cell["train"].get(name, "not set")))


def _machine(record: CellRecord) -> str:
    environment = record.environment
    named = [f"{name} {environment[name]}" for name in MACHINE if environment.get(name) is not None]
    return ", ".join(named)


def _glossary() -> str:
    rows = []
    for entry in METRICS.values():
        better = "-" if entry.direction == "none" else entry.direction
        rows.append((entry.name, escaped(entry.unit), better, entry.kind, escaped(entry.meaning)))
    heads = ("metric", "unit", "better", "kind", "meaning")
    return table(heads, rows, left=range(5)) + (
        "\n\nIn leaderboard.csv a metric of kind exact is one column (`low..high` if seeds disagree); "
        "quality is the mean over seeds, with `_low` and `_high` of its 95 % t-interval (empty for one "
        "seed); timed is `_median`, `_iqr`, `_n` and `_stable` (several seeds: median of medians, "
        "widest IQR; `_iqr` and `_stable` are empty where a seed has one value)."
    )
