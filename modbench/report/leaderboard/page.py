"""Contents of leaderboard.md: each row with its numbers and comparisons, further columns and notes. The
words are in ``pages/leaderboard.md.j2``."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from modbench.analysis.frames import DENSE
from modbench.analysis.idle_layers import LEAST_ADDED
from modbench.errors import several
from modbench.records.result import Result
from modbench.report.captions import CAPTIONS
from modbench.report.downstream.page import downstream_section
from modbench.report.frame import differing, plain_records
from modbench.report.leaderboard.audited import lacking_probes
from modbench.report.leaderboard.board import (
    MOST_ROWS,
    TO_BEST,
    TO_DENSE,
    Board,
    comparison_titles,
    dense_row,
)
from modbench.report.leaderboard.board_tables import (
    difference_table,
    first_table,
    layer_table,
    more_table,
    stated_table,
)
from modbench.report.leaderboard.metric_cells import metric_text, si
from modbench.report.leaderboard.rows import Row, center, conditions
from modbench.report.leaderboard.stated import is_stated
from modbench.report.markdown import Page, page
from modbench.report.pair_figures import not_all_drawn
from modbench.report.table import escaped
from modbench.report.timing.values import HARDWARE, machine_in_words

#: Settings that the page states above the table of each comparison.
_CONDITIONS = {"budgets", "sequence", "heldout_tokens"}
#: Parts of the environment that must be equal for wall times or memory to be compared.
_MACHINE = (*HARDWARE, "dtype", "deterministic", "world_size")


def leaderboard_page(board: Board, drawn: Collection[str] = ()) -> Page:
    """The page; ``drawn``: names of the files with figures."""
    rows = board.rows
    titles = comparison_titles(board.comparisons)
    compared = [
        {"title": title, **_comparison(board, of)}
        for title, of in zip(titles, board.comparisons, strict=True)
    ]
    families = [of for of in board.families if of != TO_BEST]
    told = [(of, pair["margin"]) for of in families for pair in board.pairs_of(of) if pair["verdict"]]
    results = [result for row in rows for result in row["_results"]]
    stated = [row for row in rows if is_stated(row)]
    of_stated = [result for row in stated for result in row["_results"] if result.in_suite]
    return page(
        "leaderboard",
        suites=suites_of(results),
        suite=results[0].suite if results else {"left": 0, "wanted": 0, "compare": ()},
        compared=compared,
        budgets=len({row["budget"] for row in rows}),
        schemes=len({row["label"] for row in rows}),
        sizes=[size for row in stated or rows if (size := center(row, "active_parameters"))] or [0],
        most_seeds=len({result.seed for result in of_stated or results}),
        families=margins_in_words(told),
        tests={family: len(board.pairs_of(family)) for family in (*board.families, TO_BEST)},
        dense=DENSE,
        downstream=downstream_section(board),
        figures=figures_among(drawn, board.pairs, seeds=any(of["stated"] for of in compared)),
        most_rows=MOST_ROWS,
        least_added=f"{LEAST_ADDED:g}",
        seeds=sorted({result.seed for result in results}),
        differ=sorted(_different_settings(rows)),
        timed=any(row["_timed"] for row in rows),
        lacking=lacking_probes(results, rows[0]["_audits"]) if rows else (),
        origin=origin_of(results),
    )


def _comparison(board: Board, rows: Sequence[Row]) -> dict[str, Any]:
    """Part of the page on the ``rows`` of one comparison."""
    number, first, dense = rows[0]["comparison"], rows[0]["_first"], dense_row(rows)
    ranked = [row for row in rows if row["position"] is not None]
    pairs = plain_records(board.pairs[board.pairs["comparison"] == number])
    noise = board.noise.get(number)
    held, models = conditions(rows[0]), [row["_model"] for row in rows]
    of_several, stated = differing(models), stated_table(board, rows)
    # Equal in all rows; a row that stopped early has none.
    scored = next((row for row in rows if center(row, "unigram_loss")), rows[0])
    return {
        "rows": len(rows),
        "ranked": len(ranked),
        "budget": si(first.budget, 3),
        "text": first.run.data.source,
        "seeds": _seeds_in_words(rows),
        "table": first_table(board, rows),
        "noise": noise.in_words("these rows" if stated else "all schemes") if noise else "",
        "groups": any(board.group(row) for row in ranked),
        "dense": dense,
        "has_dense": bool(board.pairs_of(TO_DENSE, number)),
        "untold": [*dict.fromkeys(pair["no_verdict_because"] for pair in pairs)],
        "mixed": not all(pair["same_processor"] for pair in pairs),
        "notes": [(row["_name"], row["note"]) for row in rows if row["note"]],
        "held": held,
        "model": {name: value for name, value in models[0].items() if name not in of_several},
        "unigram": metric_text(scored, "unigram_loss", ".4f"),
        "more": more_table(rows),
        "pairs": difference_table(board, rows),
        "stated": stated,
        "split": any(pair["split"] for pair in board.stated(number)),
        "lost": any(pair["lost"] for pair in board.stated(number)),
        "layers": layer_table(rows),
    }


def _seeds_in_words(rows: Sequence[Row]) -> str:
    """The number of seeds of a row, from the least to the greatest."""
    numbers = [len({result.seed for result in row["_results"]}) for row in rows]
    least = f"{min(numbers)} to " if min(numbers) < max(numbers) else ""
    return f"{least}{several(max(numbers), 'seed')}"


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
    drawn: Collection[str], pairs: pd.DataFrame | None = None, *, seeds: bool = False
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
        "machines": sorted({machine_in_words(of.environment, _MACHINE) for of in results if of.metrics}),
        "codes": sorted({made_by(result.code) for result in results}),
        "plugins": sorted({(r.name, r.plugin_sha256) for r in routers if r.plugin_sha256}),
    }


def made_by(code: Mapping[str, object]) -> str:
    """Version of the modbench that wrote a record; of a checkout also its commit and local changes."""
    commit = f", commit {code['commit']}" if code["commit"] else ""
    return f"modbench {code['version']}{commit}{' with local changes' if code['dirty'] else ''}"


def _different_settings(rows: Sequence[Row]) -> set[str]:
    """The settings of training and measuring in which ``rows`` differ."""
    stated = [row["_first"].record.run for row in rows]
    settings = [
        of["train"] | of["schedule"] | row["_settings"].get("heldout", {})
        for of, row in zip(stated, rows, strict=True)
    ]
    scored = [tasks for row in rows if (tasks := row["_settings"].get("downstream"))]
    of_tasks = [
        {f"downstream_{name}": value for task in tasks.values() for name, value in task.items()}
        for tasks in scored
    ]
    return (_differing(settings) | _differing(of_tasks)) - _CONDITIONS - {"downstream_task"}


def _differing(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    names = {name for of in settings for name in of}
    return {name for name in names if len({str(of.get(name)) for of in settings}) > 1}
