"""The frame of runs, a row for each run at each of its budgets, and the frame of their audits' findings.
Columns are what names a run, the metrics of `modbench.records.metrics`, the scores of downstream tasks
and the figures of routed layers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from modbench.analysis.frames import plain_records, rows_frame
from modbench.records.line import canonical_json, key_of, sha256
from modbench.records.metrics import METRICS
from modbench.records.probes import RANKING_PROBES
from modbench.records.record import AuditRecord
from modbench.records.result import Result
from modbench.records.sections import TaskScores
from modbench.report.times import processor_types

#: Columns that every table of shapes has; other fields of a shape follow if they differ.
SHAPE = ("width", "layers", "heads")
#: Names of the two scores of right answers, next to a task's own metrics.
ANSWER_BITS, ANSWER_MARGIN = "answer_bits_per_byte", "answer_margin"
#: Columns of a task besides its metrics, after a colon, and those of its batch shift.
TASK_SETTINGS = ("items", "few_shot", "version", "truncated")
TASK_SHIFT = ("nats", "flipped", "items")
#: Figures of a routed layer; a column has the layer's number at its end.
LAYER = ("added", "gate_scale")
#: Columns that runs.csv leaves out: the row of the leaderboard, its scheme's name there, and whether the
#: newest suite wants the run.
INNER_OF_RUNS = ("row", "row_scheme", "in_suite")
#: Metrics in records that the columns of a task have: TASK:acc and its ends.
_OF_TASK = {
    "modbench_cloze": "modbench_cloze:acc",
    "modbench_cloze_untrained": "modbench_cloze:acc_untrained",
    "modbench_cloze_chance": "modbench_cloze:acc_chance",
}
#: Metrics with a column of their own.
METRIC_COLUMNS = [name for name in METRICS if name not in _OF_TASK]
_NAMED = dict.fromkeys(("shape", "plugin_sha256", "error", "flops_source"), "string")
_NAMED |= dict.fromkeys((*SHAPE, "depth"), "Int64")
_FINDING = {"run": "Int64", "row": "string", "seed": "Int64", "probe": "Int64", "bars": "boolean"}


def runs_frame(results: Sequence[Result], timed: pd.DataFrame | None = None) -> pd.DataFrame:
    """The frame of ``results``, numbered in their order. ``timed``: times of schemes, by their key,
    whose medians all runs of a scheme have. Nothing is rounded; a missing figure is NA."""
    medians: dict[str, dict[str, Any]] = {}
    if timed is not None:
        of = timed.filter(regex="_median$").rename(columns=lambda name: name.removesuffix("_median"))
        medians = dict(zip(of.index, plain_records(of), strict=True))
    shapes = shape_columns([result.model for result in results])
    rows = []
    for result, shape, (row, scheme) in zip(results, shapes, _row_names(results), strict=True):
        times = medians.get(result.run.timed.key, {}) if medians else {}
        inner = dict(zip(INNER_OF_RUNS, (row, scheme, result.in_suite), strict=True))
        rows.append({**_names(result, shape), **_figures(result, times), **inner})
    frame = rows_frame(rows)
    # A column without any value has its type, too.
    return frame.astype(
        {of: kind for of, kind in _NAMED.items() if of in frame and frame[of].isna().all()}
    )


def findings_frame(
    results: Sequence[Result], runs: pd.DataFrame, audits: Mapping[str, AuditRecord]
) -> pd.DataFrame:
    """The findings on ``results``, those of the audit of their scheme and those on their trained
    weights: number of the run, row and seed, probe and name, verdict and figure, and whether a failure
    ``bars`` its row from the ranking."""
    found = []
    for number, (result, row) in enumerate(zip(results, runs["row"], strict=True)):
        audit = audits.get(result.audit_key or "")
        for of in (*(audit.audit if audit else ()), *result.audit):
            bars = of.ranks or of.probe in RANKING_PROBES
            found.append((number, row, result.seed, of.probe, bars, of.name, of.verdict, of.figure))
    frame = pd.DataFrame(found, columns=[*_FINDING, "name", "verdict", "figure"])
    return frame.astype(_FINDING | dict.fromkeys(("name", "verdict", "figure"), "string"))


def _row_names(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The name of the row of each result, whose runs differ in their seed only, and that of its scheme.
    Rows that share a label get their budget appended if all budgets differ, else the start of the hash
    of run and text; schemes that share one get the start of a hash."""
    keys, schemes = [], []
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    named: dict[str, set[str]] = defaultdict(set)
    for result in results:
        # The run names a text file by its path; the record has the hash of its contents.
        stated = {"run": result.record.run | {"seed": None}, "budget": result.budget}
        keys.append(key_of(stated | {"corpus": result.record.data}))
        rows[result.label].setdefault(keys[-1], f"{result.budget:.6g} FLOP")
        schemes.append(_scheme(result))
        named[result.scheme].add(schemes[-1])
    names = []
    for result, key, scheme in zip(results, keys, schemes, strict=True):
        budgets, name = rows[result.label], result.label
        if len(budgets) > 1:
            by_budget = len({*budgets.values()}) == len(budgets)
            name = f"{name} [{budgets[key] if by_budget else key[:6]}]"
        several = len(named[result.scheme]) > 1
        names.append((name, result.scheme + (f" [{sha256(scheme)[:6]}]" if several else "")))
    return names


def _scheme(result: Result) -> str:
    """Identity of a scheme, equal at all sizes and budgets: label, router, settings of training."""
    stated = result.run.as_json()
    train = {name: value for name, value in stated["train"].items() if name != "learning_rate"}
    schedule = {name: value for name, value in stated["schedule"].items() if name != "budgets"}
    parts = {"label": result.scheme, "router": stated["router"], "train": train, "schedule": schedule}
    return canonical_json(parts)


def _names(result: Result, shape: Mapping[str, Any]) -> dict[str, Any]:
    run = result.run
    scheme, _, size = result.label.partition("/")
    names = {
        "suite": result.suite["name"],
        "suite_version": result.suite["version"],
        "label": result.label,
        "scheme": scheme,
        "shape": size or None,
        "router": run.router.name,
        "options": canonical_json(run.router.options),
        "plugin_sha256": run.router.plugin_sha256,
        **{name: shape.get(name) for name in SHAPE},
    }
    programs = result.record.programs or {}
    return names | {
        **{name: value for name, value in shape.items() if name not in names},
        **{f"compiled_{name}": count for name, count in programs.items()},
        "depth": result.depth,
        "budget": result.budget,
        "seed": result.seed,
        "learning_rate": result.learning_rate,
        "precision": run.train.precision,
        "processor": "; ".join(processor_types([result.record.environment])),
        "status": result.status,
        "error": result.error,
        "key": result.key,
        "flops_source": result.record.flops_source,
        "corpus_sha256": result.record.data["sha256"],
    }


def _figures(result: Result, times: Mapping[str, Any]) -> dict[str, Any]:
    metrics = result.metrics
    spent = metrics.get("train_flops")
    figures: dict[str, Any] = {"budget_spent": None if spent is None else spent / result.budget}
    figures |= {name: metrics.get(name, times.get(name)) for name in METRIC_COLUMNS}
    for layer in result.layers:
        for name in LAYER:
            if (value := getattr(layer, name)) is not None:
                figures[f"{name}_layer_{layer.layer}"] = float(value)
    figures |= {column: metrics[name] for name, column in _OF_TASK.items() if name in metrics}
    for task, entry in result.downstream.items():
        figures |= _task(task, entry)
    return figures


def _task(task: str, entry: TaskScores) -> dict[str, Any]:
    """The columns of ``task``: ``TASK:METRIC`` is the score; suffixes ``_stderr`` (over items),
    ``_chance`` and ``_untrained``; then settings and the batch shift."""
    columns: dict[str, Any] = {}
    answers = {name: score for name in (ANSWER_BITS, ANSWER_MARGIN) if (score := getattr(entry, name))}
    for metric, score in (entry.metrics | answers).items():
        name = f"{task}:{metric}"
        columns |= {name: score.value, f"{name}_stderr": score.stderr}
        columns[f"{name}_untrained"] = score.untrained
        if metric not in answers:
            columns[f"{name}_chance"] = score.chance
    columns |= {f"{task}:{name}": getattr(entry, name) for name in TASK_SETTINGS}
    shift = {f"{task}:batch_shift_{of}": getattr(entry.batch_shift, of, None) for of in TASK_SHIFT}
    return columns | shift


def differing(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which ``models`` differ, in the order of `SHAPE`, then by name."""
    names = sorted({name for model in models for name in model} - {*SHAPE})
    values = {name: {canonical_json(model.get(name)) for model in models} for name in (*SHAPE, *names)}
    return [name for name, of_name in values.items() if len(of_name) > 1]


def shape_columns(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of each of ``models``: `SHAPE`, then the other fields in which they differ."""
    columns = list(dict.fromkeys((*SHAPE, *differing(models))))
    return [{name: _plain(model.get(name)) for name in columns} for model in models]


def _plain(value: Any) -> Any:
    return canonical_json(value) if isinstance(value, dict | list) else value
