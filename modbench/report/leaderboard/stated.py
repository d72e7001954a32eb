"""The pairs that a suite states (`[[compare]]`): their rows in one comparison of the leaderboard, and
why one can't be compared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modbench.analysis.difference import INTERIM
from modbench.analysis.pairs import not_compared
from modbench.report.leaderboard.audited import why_unranked
from modbench.report.leaderboard.rows import Row, by_seed, same_processor


def stated_pairs(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """The pairs that the suite of ``rows``, of one budget, states there. Those of isoFLOP suites are
    pairs of optima (`modbench.analysis.fitted`)."""
    if any(row["_first"].isoflop for row in rows):
        return []
    pairs = rows[0]["_first"].suite["compare"] if rows else ()
    return [pair for pair in pairs if pair["budget"] == rows[0]["budget"]]


def stated_rows(rows: Sequence[Row]) -> dict[str, Row]:
    """The rows of one comparison in pairs that the suite states, by the label that it gives them. Of
    rows that share a label, that of the newest suite."""
    labels = {pair[side] for pair in stated_pairs(rows) for side in ("a", "b")}
    runs = ((row["_first"].label, row, run) for row in rows for run in row["_results"])
    return {label: row for label, row, run in runs if label in labels and run.in_suite}


def is_stated(row: Row) -> bool:
    """Return True if the suite states a pair with ``row``."""
    return bool(stated_rows([row]))


def why_untested(row: Row) -> str:
    """Why ``row`` can't be in a pair that the suite states, whatever runs it lost; empty if it can."""
    ok = [run for run in row["_ok"] if run.in_suite]
    return why_unranked(ok, row["_audits"]) if ok else "no run has finished"


def why_no_pair(found: Sequence[Row], names: Sequence[str]) -> str:
    """Why the pair of the rows ``found``, called ``names`` in the suite, has no difference."""
    if found[0]["_first"].suite["left"]:
        return INTERIM
    if len(found) < len(names):
        return "not in this table: " + ", ".join({*names} - {row["_first"].label for row in found})
    why = ((row["_first"].label, why_untested(row)) for row in found)
    reasons = [f"{label}: {reason}" for label, reason in why if reason]
    return "; ".join(reasons) or "no finished seed in common"


def stated_differences(rows: Sequence[Row], pairs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`Board.stated` of one comparison: its ``rows``, and those of the frame of pairs."""
    row_of = stated_rows(rows)
    told = {(of["family"], of["scheme"], of["other"]): of for of in pairs}
    stated = []
    for wanted in stated_pairs(rows):
        names = (wanted["a"], wanted["b"])
        found = [row for name in names if (row := row_of.get(name))]
        if not found:
            continue
        pair = told.get((wanted["role"], *names)) or not_compared(wanted, why_no_pair(found, names))
        row, other = found[0], found[-1]
        ours, theirs = (by_seed(of, "heldout_loss", in_suite=True) for of in (row, other))
        seeds = sorted(ours.keys() & theirs.keys()) if pair["value"] is not None else ()
        by = {seed: ours[seed] - theirs[seed] for seed in seeds}
        split = sum(not same_processor(row, other, seed) for seed in by)
        runs = [{run.seed: run for run in of["_results"] if run.in_suite} for of in (row, other)]
        both = runs[0].keys() & runs[1].keys()
        lost = sum(any(of[seed].status != "ok" for of in runs) for seed in both)
        named = {"comparison": row["comparison"], "by_seed": by}
        stated.append({**pair, **named, "split": split, "lost": lost})
    return stated
