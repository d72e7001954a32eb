"""The leaderboard: rows in comparisons of equal budget and text, ranked, and their pairs."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import pandas as pd

from modbench.analysis.difference import INTERIM, MARGIN, Difference, compare, row_noise
from modbench.analysis.frames import BEST, DENSE, NOT_SEPARABLE
from modbench.analysis.noise import Noise
from modbench.analysis.pairs import pairs_frame
from modbench.records.line import canonical_json
from modbench.records.result import Result
from modbench.report.downstream.scores import metrics_of, tasks_of
from modbench.report.frame import plain_records, results_frame, rows_frame
from modbench.report.leaderboard.audited import Audits
from modbench.report.leaderboard.rows import (
    Row,
    by_seed,
    conditions,
    rows_of,
    same_processor,
)
from modbench.report.leaderboard.stated import (
    is_stated,
    stated_differences,
    stated_pairs,
    stated_rows,
    why_untested,
)
from modbench.report.table import rounded, rounded_value
from modbench.report.timing.table import TimingTable, timed_values

#: The metric that orders rows and tells them apart.
LOSS = "heldout_loss"
#: Families of comparisons; a suite that states its pairs has its own.
TO_DENSE, TO_BEST = "dense", "best"
#: Ranked rows of a comparison beyond which they are compared with the dense and the best row only: all
#: pairs would be thousands.
MOST_ROWS = 64

#: Columns of leaderboard.csv up to the shape, and between the shape and the metrics.
_FIRST = (
    *("comparison", "position", "group", "label", "status", "seeds", "audit", "note", "router"),
    *("budget", "budget_spent", "learning_rate", "shape"),
)
_MINUS = {"": "value", "_low": "low", "_high": "high", "_p": "p", "_p_adjusted": "p_adjusted"}


@dataclass(frozen=True)
class Board:
    """``rows``: all rows, comparison by comparison, ranked ones first; see `rows_of`.

    A comparison holds rows of equal budget, data (all of `conditions`) and size (`size_of`); rows are
    ordered within it by validation loss. ``position`` is missing for a row that may not be ranked, with
    the reason in ``_unranked``. Rows of isoFLOP suites have no position here: their optima have.
    ``runs``: the results frame."""

    runs: pd.DataFrame
    rows: Sequence[Row]
    is_rounded: bool = False  #: figures have the digits that a report shows

    def shown(self) -> "Board":
        """The board as all files of a report show it: rounded once (`rounded`)."""
        rows = [{name: rounded_value(value) for name, value in row.items()} for row in self.rows]
        return Board(rounded(self.runs), rows, is_rounded=True)

    @cached_property
    def comparisons(self) -> list[list[Row]]:
        """The rows of each comparison."""
        rows: dict[int, list[Row]] = defaultdict(list)
        for row in self.rows:
            rows[row["comparison"]].append(row)
        return [rows[number] for number in sorted(rows)]

    @cached_property
    def noise(self) -> dict[int, Noise]:
        """The noise of one run, by comparison: of all ranked rows, or of the rows that the suite
        compares; none where there is no such row."""
        noise = {}
        for rows in self.comparisons:
            stated = [row for row in stated_rows(rows).values() if not why_untested(row)]
            if of := stated or ranked_rows(rows):
                noise[rows[0]["comparison"]] = row_noise(
                    {row["_name"]: by_seed(row, LOSS, in_suite=bool(stated)) for row in of}
                )
        return noise

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """The frame of pairs: those that the suite states, or those of ranked rows with the dense and
        with the best row, by family; then all others, untested."""
        pairs = [
            pair
            for rows in self.comparisons
            if rows[0]["comparison"] in self.noise
            for pair in _pairs(rows, self.noise[rows[0]["comparison"]])
        ]
        frame = pairs_frame(pairs)
        return rounded(frame) if self.is_rounded else frame

    @cached_property
    def families(self) -> list[str]:
        """The families with a test."""
        return list(self.pairs.loc[self.pairs["p"].notna(), "family"].dropna().unique())

    def pairs_of(self, family: str, comparison: int | None = None) -> list[dict[str, Any]]:
        """The pairs of ``family``, in one comparison or in all."""
        of_family = self.pairs[self.pairs["family"] == family]
        if comparison is not None:
            of_family = of_family[of_family["comparison"] == comparison]
        return plain_records(of_family)

    def stated(self, comparison: int) -> list[dict[str, Any]]:
        """The pairs of one comparison that the suite states, each with the difference of its rows
        ``by_seed``, the number of seeds whose two runs are ``split`` between processor types, and that
        of seeds which are ``lost``, since a run diverged or failed. A pair that can't be compared has no
        ``value``."""
        rows = next((rows for rows in self.comparisons if rows[0]["comparison"] == comparison), [])
        of_comparison = self.pairs[self.pairs["comparison"] == comparison]
        return stated_differences(rows, plain_records(of_comparison))

    def minus(self, row: Row, family: str) -> Mapping[str, Any]:
        """The pair of ``row`` in `TO_DENSE` or `TO_BEST`; empty if there is none."""
        return self._by_row.get((row["comparison"], row["_pair_name"], family), {})

    @cached_property
    def _by_row(self) -> dict[tuple[int, str, str], Mapping[str, Any]]:
        tested = self.pairs[self.pairs["family"].isin([TO_DENSE, TO_BEST])]
        return {(of["comparison"], of["scheme"], of["family"]): of for of in plain_records(tested)}

    def group(self, row: Row) -> str:
        """`BEST`; `NOT_SEPARABLE`: not worse than the best row after adjustment; empty for other rows,
        and where the data allow no verdict."""
        if row["position"] is None:
            return ""
        to_best = [
            of
            for (number, _, family), of in self._by_row.items()
            if family == TO_BEST and number == row["comparison"]
        ]
        if any(of["verdict"] is None for of in to_best):
            return ""
        if row["position"] == 1:
            return BEST if to_best else ""
        return NOT_SEPARABLE if self.minus(row, TO_BEST).get("verdict", "worse") != "worse" else ""

    def frame(self, more: Callable[[Row], Mapping[str, Any]] = lambda row: {}) -> pd.DataFrame:
        """The frame of leaderboard.csv: all metrics and downstream scores, means over seeds. ``more``:
        further columns of a row."""
        order = [column for task in tasks_of(self.rows) for column in self._columns_of(task)]
        lines = []
        for row in self.rows:
            shown = {name: value for name, value in row.items() if not name.startswith("_")}
            shown["group"] = self.group(row) or None
            front = {name: shown.pop(name) for name in _FIRST}
            at = list(shown).index("processor")
            shape, rest = list(shown)[:at], list(shown)[at:]
            of_tasks = [name for name in order if name in shown]
            rest = [name for name in rest if ":" not in name]
            lines.append(
                front
                | {name: shown[name] for name in shape}
                | dict(more(row))
                | (self._minus(row) if len(self.pairs) else {})
                | {name: shown[name] for name in (*rest, *of_tasks)}
            )
        return rows_frame([{**line, "note": line["note"] or None} for line in lines])

    def _minus(self, row: Row) -> dict[str, Any]:
        """The columns on the differences of ``row`` to the dense row and to the best one."""
        dense, best = self.minus(row, TO_DENSE), self.minus(row, TO_BEST)
        columns = {f"minus_dense{end}": dense.get(name) for end, name in _MINUS.items()}
        return columns | {
            "minus_dense_verdict": dense.get("verdict"),
            "same_processor_as_dense": dense.get("same_processor"),
            "to_best_p_adjusted": best.get("p_adjusted"),
        }

    def _columns_of(self, task: str) -> list[str]:
        """The columns of ``task``, its main metric first."""
        metrics = metrics_of(self.rows, task)
        columns = [name for name in self.rows[0] if name.startswith(f"{task}:")]
        number = {f"{task}:{metric}": number for number, metric in enumerate(metrics)}

        def place(column: str) -> int:
            return next((n for name, n in number.items() if column.startswith(name)), len(number))

        return sorted(columns, key=place)


def ranked_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of a comparison that have a position, in its order."""
    return sorted((row for row in rows if row["position"]), key=lambda row: row["position"])


def dense_row(rows: Sequence[Row]) -> Row | None:
    """The dense row of a comparison: of the rows with the router `DENSE`, the first in the order of
    the suite, but first those of pairs that the suite states, then those of the shape that most rows
    have. None if there is no such row."""
    shapes = Counter(row["model"] for row in rows)
    common = max(shapes.values(), default=0)

    def order(row: Row) -> tuple[bool, bool, int, str]:
        is_rare = shapes[row["model"]] != common
        return not is_stated(row), is_rare, row["_first"].row_number, row["_name"]

    dense = (row for row in rows if row["router"] == DENSE)
    return min(dense, key=order, default=None)


def board_of(
    results: Sequence[Result],
    audits: Audits | None = None,
    times: TimingTable | None = None,
) -> Board:
    """The leaderboard of ``results``, of the ``audits`` that they refer to, and of the ``times`` of
    their schemes."""
    timed = timed_values(times)

    def medians(result: Result) -> dict[str, Any]:
        return {name: of["median"] for name, of in timed.get(result.run.timed.key, {}).items()}

    runs = results_frame(results, medians)
    groups: dict[tuple[int, str, str], list[Row]] = defaultdict(list)
    for row in rows_of(runs, audits or {}, timed) if results else ():
        groups[row["budget"], canonical_json(conditions(row)), size_of(row)].append(row)
    rows = [
        {"comparison": number, **row}
        for number, group in enumerate(sorted(groups), start=1)
        for row in _ranked(groups[group])
    ]
    return Board(runs, rows)


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Ranked rows by loss and name, then those that may not be ranked."""
    labels = Counter(row["label"] for row in rows)
    for row in rows:
        row |= {"_unranked": _why_unranked(row), "position": None, "_pair_name": row["_name"]}
        if row["_unranked"] != row["_why"]:
            row["note"] = "; ".join(filter(None, [row["_unranked"], row["note"]]))
    if any(result.isoflop for row in rows for result in row["_results"]):
        return list(rows)

    def order(row: Row) -> tuple[bool, float, str]:
        loss = float("inf") if row[LOSS] is None else row[LOSS]
        return bool(row["_unranked"]), loss, row["_name"]

    ordered = sorted(rows, key=order)
    for number, row in enumerate(ordered, start=1):
        row["position"] = None if row["_unranked"] else number
        if labels[row["label"]] == 1:
            row["_pair_name"] = "/".join(filter(None, (row["label"], row["shape"])))
    return ordered


def _why_unranked(row: Row) -> str:
    """Why ``row`` cannot be ranked, whatever the other rows are; empty if it can."""
    if row["_why"]:
        return str(row["_why"])
    if row[LOSS] is None:
        return f"{LOSS} was not measured"
    if not all(LOSS in result.metrics for result in row["_ok"]):
        return f"{LOSS} was not measured in all seeds"
    return ""


def size_of(row: Row) -> str:
    """The label of its size in a suite with [[shapes]]; empty in others."""
    return "" if row["_first"].isoflop else row["shape"] or ""


_Wanted = tuple[Row, Row, str, float | None]


def _pairs(rows: Sequence[Row], noise: Noise) -> Iterator[tuple[Mapping[str, Any], Difference]]:
    """The pairs of one comparison with their differences, which no family has judged yet."""
    ranked = ranked_rows(rows)
    tested: list[_Wanted] = []
    if rows[0]["_first"].suite["compare"]:
        usable = {label: row for label, row in stated_rows(rows).items() if not why_untested(row)}
        for of in stated_pairs(rows):
            if {of["a"], of["b"]} <= usable.keys():
                tested.append((usable[of["a"]], usable[of["b"]], of["role"], of.get("margin")))
    else:
        dense = dense_row(rows)
        to = dense if dense and dense["position"] else None
        tested += [(row, to, TO_DENSE, MARGIN) for row in ranked if to and row is not to]
        tested += [(row, ranked[0], TO_BEST, MARGIN) for row in ranked[1:]]
    known = {frozenset((row["_name"], other["_name"])) for row, other, *_ in tested}
    others: list[_Wanted] = [
        (row, other, "", MARGIN)
        for row, other in (combinations(ranked, 2) if len(ranked) <= MOST_ROWS else ())
        if frozenset((row["_name"], other["_name"])) not in known
    ]
    untold = INTERIM if any(row["_first"].suite["left"] for row in rows) else ""
    for row, other, family, within in (*tested, *others):
        stated = family not in (TO_DENSE, TO_BEST, "")
        spreads = noise.of(row["_name"]), noise.of(other["_name"])
        ours, theirs = (by_seed(of, LOSS, in_suite=stated) for of in (row, other))
        pooled = noise.pooled if noise.is_pooled else None
        difference = compare(ours, theirs, spreads, pooled, within)
        if difference is not None:
            shared = ours.keys() & theirs.keys()
            yield (
                {
                    "comparison": row["comparison"],
                    "budget": row["budget"],
                    "scheme": row["_first"].label if stated else row["_pair_name"],
                    "other": other["_first"].label if stated else other["_pair_name"],
                    "metric": LOSS,
                    "family": family,
                    "margin": within,
                    "same_processor": all(same_processor(row, other, seed) for seed in shared),
                },
                replace(difference, untold=untold or difference.untold),
            )


def comparison_titles(comparisons: Sequence[Sequence[Row]]) -> list[str]:
    """The size and budget of each comparison; with its number, as in leaderboard.csv, if comparisons
    share them, as those of several texts do."""
    first = [rows[0] for rows in comparisons]
    budgets = [f"{row['budget']:.3g} training FLOPs" for row in first]
    titles = [
        ", ".join(filter(None, (size_of(row), of))) for row, of in zip(first, budgets, strict=True)
    ]
    if len(set(titles)) == len(titles):
        return titles
    return [f"{of}, comparison {row['comparison']}" for row, of in zip(first, titles, strict=True)]
