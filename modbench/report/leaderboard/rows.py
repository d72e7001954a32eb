"""Rows of the leaderboard: the runs of the results frame that differ in their seed only, aggregated. A
row is a dictionary of the columns of leaderboard.csv; names with an underscore in front hold what pages
and figures need besides, and stand in no file."""

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from modbench.records.line import canonical_json, key_of, sha256
from modbench.records.metrics import METRICS
from modbench.records.result import Result
from modbench.report.frame import LAYER, RESULT, TASK_SETTINGS, plain, shape_columns
from modbench.report.leaderboard.audited import (
    Audits,
    audit_failures,
    audit_text,
    even_gates,
    idle_layers,
    leak_of,
    why_unranked,
)
from modbench.report.timing.values import processor_types

Row = dict[str, Any]
#: Timed metrics of a scheme: median, iqr, n, stable, loaded and throttled, by name.
Times = Mapping[str, Mapping[str, Any]]
#: A realised capacity further from the nominal one than this factor is remarked on.
FAR = 1.5
#: Half of a 95 % interval over standard error.
_NORMAL = 1.96
_TIMED = ("median", "iqr", "n", "stable", "loaded")
_STATED = ("model", "data", "train", "schedule")


def rows_of(runs: pd.DataFrame, audits: Audits, times: Mapping[str, Times]) -> list[Row]:
    """The rows of the results frame ``runs``, ordered by their names. ``audits``: those that the runs
    refer to, by key; ``times``: of timed schemes, by key.

    Rows that share a label get their budget appended if all budgets differ, else the start of the
    hash of run and text."""
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    results: list[Result] = list(runs[RESULT])
    for number, result in enumerate(results):
        # The run names a text file by its path; the record has the hash of its contents.
        stated = {"run": result.record.run | {"seed": None}, "budget": result.budget}
        groups[result.label][key_of(stated | {"corpus": result.data})].append(number)
    columns = {str(name): plain(runs[name]) for name in runs.columns if name != RESULT}
    names = scheme_names(results)
    shape = list(shape_columns([result.model for result in results])[0])
    tasks = sorted({task for result in results for task in result.downstream})
    rows = []
    for label, of_label in groups.items():
        budgets = [f"{results[numbers[0]].budget:.6g} FLOP" for numbers in of_label.values()]
        by_budget = len(set(budgets)) == len(budgets)
        for (key, numbers), budget in zip(of_label.items(), budgets, strict=True):
            numbers.sort(key=lambda number: results[number].seed)
            name = f"{label} [{budget if by_budget else key[:6]}]" if len(of_label) > 1 else label
            of_row = {column: [values[n] for n in numbers] for column, values in columns.items()}
            timed = times.get(results[numbers[0]].run.timed.key, {})
            seeds = [results[number] for number in numbers]
            row = _row(name, seeds, of_row, shape, tasks, audits, timed)
            rows.append(row | {"label": names[_scheme(seeds[0])]})
    return sorted(rows, key=lambda row: str(row["_name"]))


def _row(
    name: str,
    results: Sequence[Result],
    columns: Mapping[str, list[Any]],
    shape: Iterable[str],
    tasks: Sequence[str],
    audits: Audits,
    timed: Times,
) -> Row:
    ok = [result for result in results if result.status == "ok"]
    is_ok = [result.status == "ok" for result in results]
    first, settings = results[0], results[0].settings
    stated: Mapping[str, Any] = first.record.run
    finished = {
        column: [value for value, counts in zip(values, is_ok, strict=True) if counts]
        for column, values in columns.items()
    }
    spent = finished if ok else columns  # what is exact is known of runs that failed, too
    reason = why_unranked(results, audits)
    row: Row = {
        "label": "",
        "status": _status(results),
        "seeds": len(ok),
        "audit": audit_text(results, audits),
        "note": reason or audit_failures(results, audits),
        "router": first.run.router.name,
        "budget": first.budget,
        "budget_spent": _mean(spent["budget_spent"]),
        "learning_rate": first.learning_rate,
        "shape": columns["shape"][0],
        **{column: columns[column][0] for column in shape},
        "processor": "; ".join(processor_types(results)),
        "flops_source": ", ".join(sorted({of.flops_source for of in results if of.flops_source}))
        or None,
    }
    for metric in METRICS.values():
        if metric.kind == "timed":
            of_scheme = timed.get(metric.name, {})
            row |= {f"{metric.name}_{part}": of_scheme.get(part) for part in _TIMED}
        elif metric.kind == "quality":
            row |= _interval(metric.name, finished[metric.name])
        else:
            row[metric.name] = _range(spent[metric.name])
    row |= {
        "plugin_sha256": first.run.router.plugin_sha256,
        "options": canonical_json(first.run.router.options),
        **{part: canonical_json(stated[part]) for part in _STATED},
        "measure": canonical_json(settings),
        "corpus_sha256": first.data["sha256"],
        "records": " ".join(result.key for result in results),
    }
    layers = [column for column in columns if column.startswith(tuple(f"{of}_layer_" for of in LAYER))]
    layers.sort(key=lambda column: (int(column.rpartition("_")[2]), column))
    row |= {column: _mean(_known(finished[column])) for column in layers}
    scores = dict(_tasks(finished, tasks))
    row |= {"leak_audit": leak_of(ok, audits)} if scores else {}
    row |= {
        "_name": name,
        "_first": first,
        "_results": tuple(results),
        "_ok": tuple(ok),
        "_audits": audits,
        "_timed": timed,
        "_model": first.model,
        "_settings": settings,
        "_why": reason,
    }
    remarks = list(_remarks(row))
    return row | scores | {"note": "; ".join(filter(None, [row["note"], *remarks]))}


def _status(results: Sequence[Result]) -> str:
    """``ok``, or the number of seeds by status: ``ok 2, diverged 1``."""
    counts = Counter(result.status for result in results)
    if len(counts) == 1:
        return results[0].status
    return ", ".join(f"{status} {counts[status]}" for status in sorted(counts, reverse=True))


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[Any]) -> float | None:
    known = _known(values)
    return statistics.fmean(known) if known else None


def _range(values: Sequence[Any]) -> Any:
    """The value of an exact metric; ``low..high`` if seeds disagree."""
    known = _known(values)
    if not known:
        return None
    low, high = min(known), max(known)
    return low if low == high else f"{low}..{high}"


def _interval(name: str, values: Sequence[Any]) -> Row:
    """The columns of a mean over seeds with its 95 % t-interval, which one seed lacks."""
    known = _known(values)
    mean = math.fsum(known) / len(known) if known else None
    low = high = None
    if mean is not None and len(known) > 1:
        half = float(stdtrit(len(known) - 1, 0.975)) * statistics.stdev(known) / math.sqrt(len(known))
        low, high = mean - half, mean + half
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _tasks(columns: Mapping[str, Sequence[Any]], tasks: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The columns of downstream ``tasks``: scores as means over seeds with their interval, which with
    one seed is over items; settings that all seeds share; the largest batch shift."""
    for column, values in columns.items():
        # A task may have a colon in its name, and be the start of another one's.
        starts = [f"{task}:" for task in tasks if column.startswith(f"{task}:")]
        if not starts:
            continue
        part, known = column.removeprefix(max(starts, key=len)), _known(values)
        if part in TASK_SETTINGS:
            yield column, known[0] if len(set(known)) == 1 else None
        elif part == "batch_shift_nats":
            yield column, max(known, default=None)
        elif part in ("batch_shift_flipped", "batch_shift_items"):
            yield column, sum(known) if known else None
        elif f"{column}_stderr" in columns:
            interval, stderr = _interval(column, values), _mean(columns[f"{column}_stderr"])
            if len(known) == 1 and stderr is not None:
                interval[f"{column}_low"] = known[0] - _NORMAL * stderr
                interval[f"{column}_high"] = known[0] + _NORMAL * stderr
            yield from interval.items()
        else:
            yield column, _mean(known)


def _remarks(row: Row) -> Iterator[str]:
    """Reasons to read the figures of finished runs with care."""
    ok = row["_ok"]
    if any(
        {"heldout_loss", "unigram_loss"} <= result.metrics.keys()
        and result.metrics["heldout_loss"] > result.metrics["unigram_loss"]
        for result in ok
    ):
        yield "validation loss is above the unigram loss"
    yield from dict.fromkeys(f"not scored: {lost}" for result in ok for lost in result.lost)
    for prefix, unit in (("", "of tokens"), ("expert_", "experts per token")):
        realised, nominal = row[f"{prefix}realised_capacity"], center(row, f"{prefix}nominal_capacity")
        if realised is None or not nominal:
            continue
        if not nominal / FAR <= realised <= nominal * FAR:
            yield f"causal rule selects {realised:.3g} {unit}, nominal {nominal:.3g}"
    yield from idle_layers(ok)
    yield from even_gates(ok)


def center(row: Row, name: str) -> float | None:
    """The value of the column or metric ``name``: a mean, a median, or the smallest of a range."""
    value = row[name] if name in row else row.get(f"{name}_median")
    return _ends(value)[0] if isinstance(value, str) else value


def spread(row: Row, name: str) -> float | None:
    """Half the interval, the interquartile range, or the difference of exact values; None: not known."""
    value, high, iqr = row.get(name), row.get(f"{name}_high"), row.get(f"{name}_iqr")
    if isinstance(value, str):
        low, high = _ends(value)
        return high - low
    return iqr if value is None or high is None else high - value


def _ends(text: str) -> tuple[float, float]:
    """The ends of a range of `_range`."""
    low, high = (json.loads(end) for end in text.split(".."))
    return low, high


def by_seed(row: Row, name: str, *, in_suite: bool = False) -> dict[int, float]:
    """The metric ``name`` of each finished seed that measured it; ``in_suite``: of those that the newest
    suite wants."""
    ok = (of for of in row["_ok"] if of.in_suite or not in_suite)
    return {of.seed: of.metrics[name] for of in ok if name in of.metrics}


def same_processor(row: Row, other: Row, seed: int) -> bool:
    """Return True if the runs of ``seed`` of two rows ran on one type of processor."""
    runs = [result for result in (*row["_ok"], *other["_ok"]) if result.seed == seed]
    return len(processor_types(runs)) == 1


def conditions(row: Row) -> dict[str, Any]:
    """Conditions that must be equal for two rows to be ranked against each other: budget, data,
    sequence length, amount of validation text."""
    first: Result = row["_first"]
    return {
        "budget": row["budget"],
        "data": first.record.run["data"],
        "corpus": first.data,
        "sequence": first.run.train.sequence,
        "heldout_tokens": row["_settings"].get("heldout", {}).get("heldout_tokens"),
    }


def _scheme(result: Result) -> str:
    """Identity of a scheme, equal at all sizes and budgets: label, router, settings of training."""
    stated = result.run.as_json()
    train = {name: value for name, value in stated["train"].items() if name != "learning_rate"}
    schedule = {name: value for name, value in stated["schedule"].items() if name != "budgets"}
    parts = {"label": result.scheme, "router": stated["router"], "train": train, "schedule": schedule}
    return canonical_json(parts)


def scheme_names(results: Iterable[Result]) -> dict[str, str]:
    """The name of each scheme by its key: its label, with the start of a hash if two share it."""
    labels: dict[str, set[str]] = defaultdict(set)
    for result in results:
        labels[result.scheme].add(_scheme(result))
    return {
        key: f"{label} [{sha256(key)[:6]}]" if len(keys) > 1 else label
        for label, keys in labels.items()
        for key in keys
    }


def shape_name(model: Mapping[str, Any]) -> str:
    """Width and depth, such as 64 x 4."""
    return f"{model.get('width', '?')} x {model.get('layers', '?')}"
