"""The frame of schemes: the runs that differ in their seed only are a row, with means over its seeds,
its comparison and position. Its columns, without `INNER_OF_ROWS`, are those of leaderboard.csv."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from modbench.analysis.frames import rows_frame
from modbench.records.line import canonical_json
from modbench.records.metrics import METRICS
from modbench.records.record import AuditRecord
from modbench.records.result import Result
from modbench.report.audited import (
    Findings,
    audit_failures,
    audit_text,
    even_gates,
    idle_layers,
    is_audited,
    leak_of,
    why_unranked,
)
from modbench.report.runs import LAYER, METRIC_COLUMNS, TASK_SETTINGS, shape_columns
from modbench.report.tasks import of_task, task_columns, tasks_of
from modbench.report.times import processor_types

#: The metric that orders rows and tells them apart.
LOSS = "heldout_loss"
#: Columns that leaderboard.csv leaves out: the row's name among all rows, and in its comparison; its
#: label and number in the suite, and whether the newest one wants its runs; whether it is a point of an
#: isoFLOP grid; why it has no position, whatever its loss, or because of it, and why it can't be in a
#: pair that the suite states; its first run.
INNER_OF_ROWS = (
    *("row", "name", "suite_label", "row_number", "in_suite", "is_point"),
    *("barred", "unranked", "untested", "first"),
)
TIMED = ("_median", "_iqr", "_n", "_stable", "_loaded", "_throttled")
_FIRST = (
    *("comparison", "position", "group", "label", "status", "seeds", "audit", "note", "router"),
    *("budget", "budget_spent", "learning_rate", "shape"),
)
_STATED = ("model", "data", "train", "schedule")
_LAST = ("plugin_sha256", "options", *_STATED, "measure", "corpus_sha256", "records")
_EXACT, _QUALITY = (
    [name for name in METRIC_COLUMNS if METRICS[name].kind == kind] for kind in ("exact", "quality")
)
#: A realised capacity further from the nominal one than this factor is remarked on.
FAR = 1.5
#: Half of a 95 % interval over standard error.
_NORMAL = 1.96


def schemes_frame(
    runs: pd.DataFrame,
    results: Sequence[Result],
    findings: Findings,
    audits: Mapping[str, AuditRecord],
    timed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The rows of ``runs``, the frame of ``results``: comparison by comparison, ranked ones first.

    A comparison holds rows of equal budget, data (all of `conditions`) and size; rows are ordered within
    it by validation loss. Rows of isoFLOP suites have no position: their optima have. ``audits``: those
    that the results refer to, with their ``findings``; ``timed``: times of schemes, by key."""
    seeds: dict[str, dict[int, Result]] = defaultdict(dict)
    for number, row in sorted(enumerate(runs["row"]), key=lambda of: results[of[0]].seed):
        seeds[row][number] = results[number]
    rows = [{"row": row, **_texts(of_row, findings, audits)} for row, of_row in sorted(seeds.items())]
    first = [results[row["first"]] for row in rows]
    shapes = shape_columns([result.model for result in first])
    frame = rows_frame([row | shape for row, shape in zip(rows, shapes, strict=True)])
    frame = frame.assign(label=runs["row_scheme"][frame["first"]].to_numpy())
    frame = frame.assign(comparison=_comparisons(first)).set_index("row", drop=False).rename_axis(None)
    finished, tasks = runs[runs["status"] == "ok"], tasks_of(results)
    layers = [str(name) for name in runs if name.startswith(tuple(f"{of}_layer_" for of in LAYER))]
    layers.sort(key=lambda name: (int(name.rpartition("_")[2]), name))
    scores = _scores(finished, tasks)
    parts = [_intervals(finished, _QUALITY), _intervals(finished, layers)[layers], scores]
    if timed is not None:
        times = timed.reindex([result.run.timed.key for result in first])
        parts.append(times.set_index(frame.index))
    whole = pd.concat([frame, *(part.reindex(frame.index) for part in parts)], axis=1)
    whole = _ranked(whole)
    metrics = [f"{name}{end}" for name in METRIC_COLUMNS for end in ("", "_low", "_high", *TIMED)]
    order = [*_FIRST, *shapes[0], "processor", "flops_source", *metrics, *_LAST, *layers]
    order += ["leak_audit"] * bool(tasks) + task_columns([*scores], tasks) + [*INNER_OF_ROWS]
    return whole[[name for name in order if name in whole]].reset_index(drop=True)


def conditions(result: Result) -> dict[str, Any]:
    """Conditions that must be equal for two rows to be ranked against each other: budget, data,
    sequence length, amount of validation text."""
    return {
        "budget": result.budget,
        "data": result.record.run["data"],
        "corpus": result.record.data,
        "sequence": result.run.train.sequence,
        "heldout_tokens": result.settings.get("heldout", {}).get("heldout_tokens"),
    }


def _comparisons(first: Iterable[Result]) -> list[int]:
    """The number of the comparison of each row, from one of its results."""
    keys = []
    for result in first:
        size = "" if result.isoflop else result.label.partition("/")[2]
        keys.append((result.budget, canonical_json(conditions(result)), size))
    number = {key: number for number, key in enumerate(sorted({*keys}), start=1)}
    return [number[key] for key in keys]


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` in its order, with positions, which no row has next to points of isoFLOP grids, and
    names."""
    is_alone = frame["is_point"].groupby(frame["comparison"]).transform("any")
    late, loss = frame["unranked"].notna() & ~is_alone, frame[LOSS].where(~is_alone)
    frame = frame.assign(late=late, by=loss, ranked=frame["unranked"].isna() & ~is_alone)
    frame = frame.sort_values(["comparison", "late", "by", "row"])
    position = frame["ranked"].astype("Int64").groupby(frame["comparison"]).cumsum()
    several = frame.groupby(["comparison", "label"])["label"].transform("size") > 1
    short = frame["label"] + ("/" + frame["shape"].astype("string")).fillna("")
    name = short.where(~(several | is_alone), frame["row"])
    return frame.assign(position=position.where(frame["ranked"]), name=name, group=None)


def _texts(
    of_row: Mapping[int, Result], findings: Findings, audits: Mapping[str, AuditRecord]
) -> dict[str, Any]:
    """The columns of a row that are no means, from its results by number, ordered by seed."""
    results, ok = [*of_row.values()], [of for of in of_row.values() if of.status == "ok"]
    first = results[0]
    stated: Mapping[str, Any] = first.record.run
    found = [finding for number in of_row for finding in findings.get(number, ())]
    barred = why_unranked(of_row, findings, audits)
    of_suite = {number: of for number, of in of_row.items() if of.in_suite and of.status == "ok"}
    untested = why_unranked(of_suite, findings, audits) if of_suite else "no run has finished"
    lacking = sum(LOSS not in of.metrics for of in ok)
    unranked = f"{LOSS} was not measured" + " in all seeds" * (lacking < len(ok)) if lacking else ""
    # What is exact is known of runs that failed, too.
    exact = {name: _range(of.metrics.get(name) for of in ok or results) for name in _EXACT}
    spent = _known(of.metrics.get("train_flops") for of in ok or results)
    notes = ["" if barred else unranked, barred or audit_failures(found), *_remarks(ok, exact)]
    sources = {of.record.flops_source or "" for of in results} - {""}
    return {
        "status": _status([of.status for of in results]),
        "seeds": len(ok),
        "audit": audit_text(found if is_audited([of.audit_key for of in results], audits) else ()),
        "note": "; ".join(filter(None, notes)) or None,
        "router": first.run.router.name,
        "budget": first.budget,
        "budget_spent": fmean(of / first.budget for of in spent) if spent else None,
        "learning_rate": first.learning_rate,
        "shape": first.label.partition("/")[2] or None,
        "processor": "; ".join(processor_types(of.record.environment for of in results)),
        "flops_source": ", ".join(sorted(sources)) or None,
        **exact,
        "plugin_sha256": first.run.router.plugin_sha256,
        "options": canonical_json(first.run.router.options),
        **{part: canonical_json(stated[part]) for part in _STATED},
        "measure": canonical_json(first.settings),
        "corpus_sha256": first.record.data["sha256"],
        "records": " ".join(of.key for of in results),
        "leak_audit": leak_of(findings.get(of, ()) for of in of_row if of_row[of].status == "ok"),
        "suite_label": first.label,
        "row_number": first.row_number,
        "in_suite": any(of.in_suite for of in results),
        "is_point": any(of.isoflop for of in results),
        "barred": barred or None,
        "unranked": barred or unranked or None,
        "untested": untested or None,
        "first": next(iter(of_row)),
    }


def _status(statuses: Sequence[str]) -> str:
    """``ok``, or the number of seeds by status: ``ok 2, diverged 1``."""
    counts = Counter(statuses)
    if len(counts) == 1:
        return statuses[0]
    return ", ".join(f"{status} {counts[status]}" for status in sorted(counts, reverse=True))


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _range(values: Iterable[Any]) -> Any:
    """The value of an exact metric; ``low..high`` if seeds disagree."""
    known = _known(values)
    if not known:
        return None
    low, high = min(known), max(known)
    return low if low == high else f"{low}..{high}"


def ends_of(value: Any) -> tuple[Any, Any]:
    """The ends of a range of `_range`, or the value twice."""
    low, high = map(json.loads, value.split("..")) if isinstance(value, str) else (value, value)
    return low, high


def _remarks(ok: Sequence[Result], exact: Mapping[str, Any]) -> Iterator[str]:
    """Reasons to read the figures of finished runs with care."""
    known = [(of.metrics.get(LOSS), of.metrics.get("unigram_loss")) for of in ok]
    if any(loss is not None and unigram is not None and loss > unigram for loss, unigram in known):
        yield "validation loss is above the unigram loss"
    yield from dict.fromkeys(f"not scored: {lost}" for of in ok for lost in of.lost)
    for prefix, unit in (("", "of tokens"), ("expert_", "experts per token")):
        realised = _known(of.metrics.get(f"{prefix}realised_capacity") for of in ok)
        nominal, _ = ends_of(exact[f"{prefix}nominal_capacity"])
        if realised and nominal and not nominal / FAR <= fmean(realised) <= nominal * FAR:
            yield f"causal rule selects {fmean(realised):.3g} {unit}, nominal {nominal:.3g}"
    yield from idle_layers([of.layers for of in ok])
    yield from even_gates([(of.routing, of.layers) for of in ok])


def _intervals(runs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The means of the columns ``names`` by row, with their 95 % t-intervals, which one seed lacks."""
    rows = runs[[*names]].astype("Float64").astype(float).groupby(runs["row"])
    mean, count = rows.mean(), rows.count()
    half = rows.std() * stdtrit((count - 1).clip(lower=0), 0.975) / count**0.5
    parts = [mean, (mean - half).add_suffix("_low"), (mean + half).add_suffix("_high")]
    return pd.concat(parts, axis=1).astype("Float64")


def _scores(runs: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The columns of downstream ``tasks``: scores as means over seeds with their interval, which with
    one seed is over items; settings that all seeds share; the largest batch shift."""
    rows = runs.groupby("row")
    columns: dict[str, Any] = {}
    for name in [str(name) for name in runs if of_task(name, tasks)[0]]:
        _, part = of_task(name, tasks)
        of = rows[name]
        if part in TASK_SETTINGS:
            columns[name] = of.first().where(of.nunique() == 1)
        elif part == "batch_shift_nats":
            columns[name] = of.max()
        elif part.startswith("batch_shift"):
            columns[name] = of.sum(min_count=1)
        elif f"{name}_stderr" in runs or f"{name}_untrained" in runs:
            ends = _intervals(runs, [name])
            if f"{name}_stderr" in runs:
                one = of.count() == 1
                half = _NORMAL * rows[f"{name}_stderr"].mean()
                ends = ends.assign(
                    **{
                        f"{name}_low": ends[f"{name}_low"].mask(one, ends[name] - half),
                        f"{name}_high": ends[f"{name}_high"].mask(one, ends[name] + half),
                    }
                )
            columns |= dict(ends.items())
        else:
            columns[name] = of.mean()
    return pd.DataFrame(columns, index=rows.size().index)
