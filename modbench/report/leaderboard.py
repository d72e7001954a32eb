"""Contents of leaderboard.md: each row with its numbers and comparisons, further columns and notes. The
words are in ``pages/leaderboard.md.j2``."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from modbench.analysis.frames import DENSE, plain_records
from modbench.analysis.idle_layers import LEAST_ADDED
from modbench.records.result import Result
from modbench.report.audited import lacking_probes
from modbench.report.captions import CAPTIONS
from modbench.report.cells import (
    center,
    difference_text,
    metric_columns,
    metric_text,
    pair_table,
    stated_cells,
)
from modbench.report.downstream import downstream_section
from modbench.report.markdown import Page, page
from modbench.report.pair_figures import not_all_drawn
from modbench.report.pairs import MOST_ROWS, TO_BEST, TO_DENSE, dense_row
from modbench.report.routing.course import course_section
from modbench.report.runs import differing
from modbench.report.schemes import conditions
from modbench.report.suite import Row, Suite
from modbench.report.table import Number, Table, escaped, si
from modbench.report.times import HARDWARE, machine_in_words

_LEFT = ("group", "scheme", "size", "FLOPs", "audit")
#: Headings of columns of metrics, with the cells' format (`metric_text`); docs/columns.md explains them.
_LOSS = {"validation loss (nats/token)": "{heldout_loss:.3f}"}
_COSTS = {
    "realised forward FLOP/token": "{forward_flops_per_token_realised:si3}",
    "training tokens": "{train_tokens:,d}",
    "parameters, active / all": "{active_parameters:si3} / {parameters:si3}",
    "KV cache, share of dense": "{kv_cache_share:.3f}",
}
_MORE = {
    "bits/byte": "{heldout_bits_per_byte:.3f}",
    "leaky loss (nats/token)": "{heldout_loss_leaky:.3f}",
    "leak (nats/token)": "{leak:.4f}",
    "nominal forward FLOP/token": "{forward_flops_per_token:si}",
    "training FLOP spent": "{train_flops:si}",
    "steps": "{train_steps:,d}",
    "training step (ms), median ± IQR": "{train_step_seconds:ms}",
    "peak memory (MB)": "{peak_memory_bytes:MB}",
    "KV cache (B/token)": "{kv_cache_bytes_per_token:,.0f}",
}
#: Settings that the page states above the table of each comparison.
_CONDITIONS = {"budgets", "sequence", "heldout_tokens"}
#: Parts of the environment that must be equal for wall times or memory to be compared.
_MACHINE = (*HARDWARE, "dtype", "deterministic", "world_size")


def leaderboard_page(suite: Suite, drawn: Collection[str] = (), submitted: Table | None = None) -> Page:
    """The page; ``drawn``: names of the files with figures; ``submitted``: see
    `modbench.report.submitted`."""
    rows, results = suite.rows, suite.results
    compared = [
        {"title": title, **_comparison(suite, of)}
        for title, of in zip(suite.titles, suite.comparisons, strict=True)
    ]
    tested = [pair for pair in suite.pairs_of() if pair["p"] is not None]
    told = [(of["family"], of["margin"]) for of in tested if of["verdict"] and of["family"] != TO_BEST]
    compare = suite.state["compare"]
    labels = {pair[side] for pair in compare for side in ("a", "b")}
    stated = [row for row in rows if row["in_suite"] and row["suite_label"] in labels]
    of_pairs = [pair["pairs"] for pair in tested if pair["pairs"]] if compare else []
    of_rows = [row["seeds"] for row in rows if row["seeds"]]
    return page(
        "leaderboard",
        suites=suites_of(results),
        suite=suite.state,
        compared=compared,
        budgets=len({row["budget"] for row in rows}),
        schemes=len({row["label"] for row in rows}),
        sizes=[size for row in stated or rows if (size := center(row, "active_parameters"))],
        seeds_each=of_pairs or of_rows,
        each="comparison" if of_pairs else "row",
        families=margins_in_words(told),
        tests={TO_BEST: 0, **Counter(pair["family"] for pair in tested)},
        dense=DENSE,
        submitted=submitted,
        downstream=downstream_section(suite),
        course=course_section(suite.course, results, [*suite.runs["row"]]),
        figures=figures_among(drawn, suite.pairs, seeds=any(of["stated"] for of in compared)),
        most_rows=MOST_ROWS,
        least_added=f"{LEAST_ADDED:g}",
        seeds=sorted({result.seed for result in results}),
        differ=sorted(_different_settings(suite)),
        timed=suite.times is not None and any(center(row, "train_step_seconds") for row in rows),
        lacking=lacking_probes(suite.findings),
        origin=origin_of(results),
    )


def _comparison(suite: Suite, rows: Sequence[Row]) -> dict[str, Any]:
    """Part of the page on the ``rows`` of one comparison."""
    number, first = rows[0]["comparison"], suite.first(rows[0])
    pairs = plain_records(suite.pairs[suite.pairs["comparison"] == number])
    stated = [pair for pair in pairs if pair["family"] not in (TO_DENSE, TO_BEST, None)]
    noise = suite.noise.get(number)
    models = [suite.first(row).model for row in rows]
    of_several = differing(models)
    ranked = [row for row in rows if row["position"]]
    shown = {"rows": len(rows), "ranked": len(ranked), "dense": dense_row(rows)}
    return shown | {
        "budget": si(first.budget, 3),
        "text": first.run.data.source,
        "table": _first_table(rows, pairs),
        "noise": noise.in_words("these rows" if stated else "all schemes") if noise else "",
        "groups": any(row["group"] for row in ranked),
        "has_dense": any(pair["family"] == TO_DENSE for pair in pairs),
        "untold": [*dict.fromkeys(pair["no_verdict_because"] for pair in pairs)],
        "mixed": any(pair["same_processor"] is False for pair in pairs),
        "notes": [(row["row"], row["note"]) for row in rows if row["note"]],
        "held": conditions(first),
        "model": {name: value for name, value in models[0].items() if name not in of_several},
        # Equal in all rows; a row that stopped early has none.
        "unigram": metric_text(
            max(rows, key=lambda of: bool(of["unigram_loss"])), "unigram_loss", ".4f"
        ),
        "more": _more_table(rows, models),
        "pairs": None if stated else _difference_table(pairs),
        "stated": _stated_table(stated),
        "split": any(pair["split"] for pair in stated),
        "lost": any(pair["lost"] for pair in stated),
        "layers": _layer_table(rows),
    }


def _first_table(rows: Sequence[Row], pairs: Sequence[Row]) -> Table:
    """The first table; without groups if no row has one."""
    told = any(row["group"] for row in rows)
    cells: dict[str, Sequence[Any]] = {
        "group": [_group(row, told) for row in rows],
        "scheme": [row["name"] for row in rows],
        "seeds": [_seeds(row, pairs) for row in rows],
    }
    cells |= metric_columns(rows, _LOSS)
    minus = {pair["scheme"]: difference_text(pair) for pair in pairs if pair["family"] == TO_DENSE}
    if minus:
        cells["minus dense (nats/token)"] = [minus.get(row["name"]) for row in rows]
    cells |= metric_columns(rows, _COSTS) | {"audit": [row["audit"] for row in rows]}
    table = _table({name: of for name, of in cells.items() if name != "group" or {*of} != {"-"}})
    return table.about("Schemes, ordered by validation loss")


def _group(row: Row, told: bool) -> str:
    """The group of a row; ``told``: any row has one, so that a ranked one without is worse."""
    group = "not ranked" if row["unranked"] else row["group"] or "worse than best" * told
    return f"{group}{' †' if row['note'] else ''}".strip() or "-"


def _seeds(row: Row, pairs: Sequence[Row]) -> object:
    """The number of seeds in the mean of ``row``, and that in its comparisons on the page where it is
    another one."""
    names = {row["name"], row["suite_label"] if row["in_suite"] else row["name"]}
    of_row = [pair for pair in pairs if pair["family"] and names & {pair["scheme"], pair["other"]}]
    shown = [of for of in of_row if of["verdict"] or of["family"] != TO_BEST]
    numbers = sorted({pair["pairs"] for pair in shown if pair["pairs"] is not None})
    if not numbers or numbers[0] == row["seeds"]:
        return row["seeds"]
    compared = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    return Number(f"{row['seeds']} ({compared} compared)", row["seeds"])


def _stated_table(pairs: Sequence[Row]) -> Table | None:
    """The table of ``pairs`` that the suite states, with the number of blocks of each, and of those that
    are special; None without any."""
    lines = []
    for pair in pairs:
        special = [f"{pair[kind]} {kind}" for kind in ("split", "lost") if pair[kind]]
        blocks = f"{pair['pairs'] or 0}" + (f" ({', '.join(special)})" if special else "")
        lines.append({**stated_cells(pair), "blocks": blocks})
    return (
        Table.of(lines, left=(0, 1, 2, 6)).about("Comparisons that the suite states") if lines else None
    )


def _difference_table(pairs: Sequence[Row]) -> Table | None:
    """The differences between ranked rows of a comparison: those to the dense row and all others; None
    without repeated runs."""
    shown = [pair for pair in pairs if pair["p"] is not None and pair["family"] != TO_BEST]
    return pair_table(shown).about("Differences between rows") if shown else None


def _more_table(rows: Sequence[Row], models: Sequence[Mapping[str, Any]]) -> Table:
    """Further columns of the same rows, without those in which no row has a value."""
    sizes = [
        row["shape"] or f"{of.get('width', '?')} x {of.get('layers', '?')}"
        for row, of in zip(rows, models, strict=True)
    ]
    columns = {"size": sizes} if differing(models) else {}
    columns |= metric_columns(rows, _MORE)
    columns["FLOPs"] = [row["flops_source"] or "-" for row in rows]
    shown = {heading: cells for heading, cells in columns.items() if {*cells} != {"-"}}
    return _table({"scheme": [row["name"] for row in rows], **shown}).about("Further metrics")


def _layer_table(rows: Sequence[Row]) -> Table | None:
    """Updates and gates of the routed layers of each row, means over seeds; None if no run has them."""
    layers = [name for name in rows[0] if "_layer_" in name]
    rows = [row for row in rows if any(row[name] is not None for name in layers)]
    columns: dict[str, Sequence[Any]] = {"scheme": [row["name"] for row in rows]}
    for name in layers:
        cells = ["-" if row[name] is None else f"{row[name]:.2g}" for row in rows]
        part, _, layer = name.partition("_layer_")
        if {*cells} - {"-"}:
            columns[f"layer {layer} {'adds' if part == 'added' else 'gate'}"] = cells
    return _table(columns).about("Updates and gates of routed layers") if rows else None


def _table(columns: Mapping[str, Sequence[Any]]) -> Table:
    left = [number for number, heading in enumerate(columns) if heading in _LEFT]
    return Table([*columns], [*zip(*columns.values(), strict=True)], left)


def margins_in_words(tested: Iterable[tuple[str, float | None]]) -> list[tuple[str, str]]:
    """For each family of comparisons, what *equivalent* means in it; empty if it has no margin.
    ``tested``: family and margin of each pair with a verdict."""
    margins: dict[str, set[float | None]] = defaultdict(set)
    for family, margin in tested:
        margins[family].add(margin)
    words = []
    for family, of in margins.items():
        margin = next(iter(of))
        same = f"within {margin:g} nats per token" if margin else ""
        words.append((family, same if len(of) == 1 else "within the margin of its pair"))
    return words


def suites_of(results: Iterable[Result]) -> str:
    """Names and versions of the suites of ``results``, in Markdown."""
    suites = sorted({(result.suite["name"], result.suite["version"]) for result in results})
    return ", ".join(f"{escaped(name)}, version {version}" for name, version in suites)


def figures_among(
    drawn: Collection[str], pairs: Any = None, *, seeds: bool = False
) -> list[tuple[str, str]]:
    """Name and caption of each figure among the files ``drawn``, in the order of a page. ``pairs``: the
    frame of pairs of the figures of differences; ``seeds``: those that a suite states are drawn, by
    seed."""
    more = {} if pairs is None else {"differences": not_all_drawn(pairs)}
    if seeds:
        more["differences"] = " Small points: the differences of single seeds."
    among = [name for name in CAPTIONS if f"{name}.svg" in drawn]
    return [(name, CAPTIONS[name] + more.get(name, "")) for name in among]


def origin_of(results: Sequence[Result]) -> dict[str, Any]:
    """The machines, versions of modbench and plugins that made ``results``."""
    routers = [result.run.router for result in results]
    return {
        "machines": sorted(
            {machine_in_words(of.record.environment, _MACHINE) for of in results if of.metrics}
        ),
        "codes": sorted({made_by(result.record.code) for result in results}),
        "plugins": sorted({(r.name, r.plugin_sha256) for r in routers if r.plugin_sha256}),
    }


def made_by(code: Mapping[str, object]) -> str:
    """Version of the modbench that wrote a record; of a checkout also its commit and local changes."""
    commit = f", commit {code['commit']}" if code["commit"] else ""
    return f"modbench {code['version']}{commit}{' with local changes' if code['dirty'] else ''}"


def _different_settings(suite: Suite) -> set[str]:
    """The settings of training and measuring in which rows differ."""
    settings, scored = [], []
    for row in suite.rows:
        measured = json.loads(row["measure"])
        train = json.loads(row["train"]) | json.loads(row["schedule"])
        settings.append(train | measured.get("heldout", {}))
        if tasks := measured.get("downstream"):
            of_tasks = (item for task in tasks.values() for item in task.items())
            scored.append({f"downstream_{name}": value for name, value in of_tasks})
    return (_differing(settings) | _differing(scored)) - _CONDITIONS - {"downstream_task"}


def _differing(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    names = {name for of in settings for name in of}
    return {name for name in names if len({str(of.get(name)) for of in settings}) > 1}
