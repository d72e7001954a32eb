"""The pairs of a leaderboard's rows: those that are wanted, and their differences, judged."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pandas as pd

from modbench.analysis.difference import INTERIM, MARGIN, Difference, compare, row_noise
from modbench.analysis.frames import BEST, DENSE, NOT_SEPARABLE, Row, plain_records
from modbench.analysis.noise import Noise
from modbench.analysis.pairs import pairs_frame
from modbench.records.result import Result
from modbench.report.schemes import LOSS
from modbench.report.times import processor_types

#: Families of comparisons; a suite that states its pairs has its own.
TO_DENSE, TO_BEST = "dense", "best"
#: Ranked rows of a comparison beyond which they are compared with the dense and the best row only: all
#: pairs would be thousands.
MOST_ROWS = 64
_MINUS = {"": "value", "_low": "low", "_high": "high", "_p": "p", "_p_adjusted": "p_adjusted"}
_NAMED = ("comparison", "budget", "scheme", "other", "family", "margin")
_WANTED = (*_NAMED, "row", "other_row", "why")
#: All results of each row, by its name.
Results = Mapping[str, Sequence[Result]]


def wanted_pairs(schemes: pd.DataFrame, stated: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The pairs of rows to compare, by comparison: those that the suite has ``stated``, with the reason
    ``why`` one can't be compared; without any, each ranked row with the dense and with the best row.
    Those belong to a family. Then all others of ranked rows."""
    wanted: list[dict[str, Any]] = []
    rows = plain_records(schemes)
    for number in dict.fromkeys(row["comparison"] for row in rows):
        of_number = [row for row in rows if row["comparison"] == number]
        ranked = [row for row in of_number if row["position"]]
        if stated and not any(row["is_point"] for row in of_number):
            tested = [*_stated(of_number, stated)]
        else:
            dense = dense_row(of_number)
            to = [dense] if dense and dense["position"] else []
            tested = [_pair(row, of, TO_DENSE) for of in to for row in ranked if row is not of]
            tested += [_pair(row, ranked[0], TO_BEST) for row in ranked[1:]]
        known = {frozenset((of["row"], of["other_row"])) for of in tested if of["why"] is None}
        others = combinations(ranked, 2) if len(ranked) <= MOST_ROWS else ()
        wanted += tested
        wanted += [_pair(*of, None) for of in others if {row["row"] for row in of} not in known]
    return pd.DataFrame(wanted, columns=[*_WANTED], dtype=object)


def _pair(row: Row, other: Row, family: str | None) -> dict[str, Any]:
    names = {"row": row["row"], "other_row": other["row"], "scheme": row["name"], "other": other["name"]}
    held = {"comparison": row["comparison"], "budget": row["budget"]}
    return held | names | {"family": family, "margin": MARGIN, "why": None}


def _stated(rows: Sequence[Row], stated: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The ``stated`` pairs with a row among those of one comparison."""
    row_of = {row["suite_label"]: row for row in rows if row["in_suite"]}
    for of in stated:
        sides = (of["a"], of["b"])
        found = [row_of[label] for label in sides if label in row_of]
        if of["budget"] != rows[0]["budget"] or not found:
            continue
        named = dict(zip(("scheme", "other"), sides, strict=True))
        named |= {"family": of["role"], "margin": of.get("margin")}
        lacking = [label for label in sides if label not in row_of]
        why = [f"{row['suite_label']}: {row['untested']}" for row in found if row["untested"]]
        why = ["not in this table: " + ", ".join(lacking)] if lacking else why
        yield _pair(found[0], found[-1], None) | named | {"why": "; ".join(why) or None}


def dense_row(rows: Sequence[Row]) -> Row | None:
    """The dense row of a comparison: of the rows with the router `DENSE`, the first in the order of
    the suite, but first those of the shape that most rows have. None if there is no such row."""
    shapes = Counter(row["model"] for row in rows)
    common = max(shapes.values(), default=0)

    def order(row: Row) -> tuple[bool, int, str]:
        return shapes[row["model"]] != common, row["row_number"], row["row"]

    return min((row for row in rows if row["router"] == DENSE), key=order, default=None)


def noise_of(schemes: pd.DataFrame, wanted: pd.DataFrame, results: Results) -> dict[int, Noise]:
    """The noise of one run, by comparison: of all ranked rows, or of the rows in pairs that the suite
    states, from runs that it wants; none where there is no such row."""
    noise: dict[int, Noise] = {}
    stated = wanted[wanted["family"].notna() & ~wanted["family"].isin((TO_DENSE, TO_BEST))]
    in_pairs = schemes["row"].isin({*stated["row"], *stated["other_row"]}) & schemes["untested"].isna()
    for number, of in schemes.groupby("comparison"):
        is_stated = bool(in_pairs[of.index].any())
        rows = of["row"][in_pairs if is_stated else of["position"].notna()]
        losses = {
            row: {seed: run.metrics[LOSS] for seed, run in _by_seed(results[row], is_stated).items()}
            for row in rows
        }
        noise |= {int(number): row_noise(losses)} if losses else {}
    return noise


def compared(
    wanted: pd.DataFrame, results: Results, noise: Mapping[int, Noise], *, interim: bool
) -> pd.DataFrame:
    """The frame of pairs (`modbench.analysis.pairs.COLUMNS`) of those ``wanted``, in their order:
    without those whose rows share no seed, unless the suite states them. ``interim``: runs of the suite
    are left, so that no difference has a verdict."""
    pairs = []
    for of in plain_records(wanted):
        is_stated = of["family"] not in (TO_DENSE, TO_BEST, None)
        sides = [_by_seed(results[of[name]], is_stated) for name in ("row", "other_row")]
        minus = None if of["why"] else _difference(of, sides, noise.get(of["comparison"]))
        if minus is None and not is_stated:
            continue
        same = [same_processor(sides[0][seed], sides[1][seed]) for seed in sides[0] if seed in sides[1]]
        named = {name: of[name] for name in _NAMED}
        named |= {"metric": LOSS, "same_processor": all(same)}
        if is_stated:
            named |= {
                "split": same.count(False),
                "lost": _lost(results[of["row"]], results[of["other_row"]]),
            }
        if minus is None:
            missing = INTERIM if interim else "no finished seed in common"
            named["no_verdict_because"] = of["why"] or missing
        elif interim:
            minus = replace(minus, untold=INTERIM)
        pairs.append((named, minus))
    return pairs_frame(pairs)


def _difference(
    of: Mapping[str, Any], sides: Sequence[Mapping[int, Result]], noise: Noise | None
) -> Difference | None:
    ours, theirs = ({seed: run.metrics[LOSS] for seed, run in side.items()} for side in sides)
    spreads = noise and (noise.of(of["row"]), noise.of(of["other_row"]))
    pooled = noise.pooled if noise and noise.is_pooled else None
    return compare(ours, theirs, spreads or (None, None), pooled, of["margin"])


def _by_seed(results: Sequence[Result], in_suite: bool) -> dict[int, Result]:
    """The finished ``results`` with a loss, by seed; ``in_suite``: those that the newest suite wants."""
    ok = (of for of in results if of.status == "ok" and (of.in_suite or not in_suite))
    return {of.seed: of for of in ok if LOSS in of.metrics}


def by_seed(pair: Mapping[str, Any], results: Results, schemes: pd.DataFrame) -> dict[int, float]:
    """The differences of single seeds of a ``pair`` that the suite states."""
    of_pair = schemes[schemes["in_suite"] & (schemes["comparison"] == pair["comparison"])]
    row_of = dict(zip(of_pair["suite_label"], of_pair["row"], strict=True))
    ours, theirs = (_by_seed(results[row_of[pair[side]]], True) for side in ("scheme", "other"))
    both = sorted(ours.keys() & theirs.keys())
    return {seed: ours[seed].metrics[LOSS] - theirs[seed].metrics[LOSS] for seed in both}


def _lost(ours: Sequence[Result], theirs: Sequence[Result]) -> int:
    """The number of seeds of both rows of which a run was lost."""
    runs = [{run.seed: run.status for run in row if run.in_suite} for row in (ours, theirs)]
    both = runs[0].keys() & runs[1].keys()
    return sum(any(of[seed] != "ok" for of in runs) for seed in both)


def same_processor(*runs: Result) -> bool:
    """Return True if ``runs`` ran on one type of processor."""
    return len(processor_types(run.record.environment for run in runs)) == 1


def with_differences(schemes: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """``schemes`` with the columns on their differences to the dense row and to the best one, before the
    column processor, and with groups: `BEST`, or `NOT_SEPARABLE` if a row is not worse than the best row
    after adjustment; empty where the data allow no verdict."""
    place = pd.MultiIndex.from_frame(schemes[["comparison", "name"]])
    to_dense, to_best = (
        pairs[pairs["family"] == family]
        .set_index(["comparison", "scheme"])
        .reindex(place)
        .set_index(schemes.index)
        for family in (TO_DENSE, TO_BEST)
    )
    columns = {f"minus_dense{end}": to_dense[name] for end, name in _MINUS.items()}
    columns |= {"minus_dense_verdict": to_dense["verdict"]}
    columns |= {"same_processor_as_dense": to_dense["same_processor"]}
    columns |= {"to_best_p_adjusted": to_best["p_adjusted"]}
    others = pairs[pairs["family"] == TO_BEST].groupby("comparison")["verdict"]
    is_told = schemes["comparison"].map(others.count() == others.size()).eq(True).fillna(False)
    is_first, verdict = (schemes["position"] == 1).fillna(False), to_best["verdict"]
    group = pd.Series(pd.NA, schemes.index, dtype="string")
    group = group.mask(is_told & is_first, BEST)
    group = group.mask(is_told & verdict.notna() & (verdict != "worse").fillna(False), NOT_SEPARABLE)
    at = [*schemes].index("processor")
    whole = pd.concat([schemes.iloc[:, :at], pd.DataFrame(columns), schemes.iloc[:, at:]], axis=1)
    return whole.assign(group=group)
