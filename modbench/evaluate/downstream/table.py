"""The table that `modbench eval` prints, what it says about each task, and the section ``downstream`` of
a record, whose schema is in `modbench.records.sections`."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from tabulate import tabulate

from modbench.analysis.items import mean_with_stderr
from modbench.evaluate.downstream.evaluation import Evaluation, TaskScore
from modbench.evaluate.downstream.item_answers import ItemAnswers
from modbench.evaluate.downstream.validity import BatchShift
from modbench.evaluate.scored_lm import NON_CAUSAL, rule_label

HEADS = (
    "task", "metric", "value", "stderr", "chance", "items", "few-shot", "version", "rule",
)  # fmt: skip


def as_table(evaluations: Iterable[Evaluation]) -> str:
    """Return the table as text, with a row per metric of each task."""
    rows = [
        (
            score.task,
            metric,
            _number(value),
            _number(score.errors.get(metric)),
            _number(score.chance.get(metric)),
            f"{score.items:,}",
            str(score.few_shot),
            score.version or "-",
            rule_label(evaluation.rule),
        )
        for evaluation in evaluations
        for score in evaluation.scores
        for metric, value in score.metrics.items()
    ]
    align = ["left" if head in ("task", "metric") else "right" for head in HEADS]
    return tabulate(rows, HEADS, "plain", disable_numparse=True, colalign=align)


def details(evaluation: Evaluation, shift: BatchShift | None, leak: str) -> dict[str, Any]:
    """Return compute and validity of ``evaluation`` as numbers: FLOPs, nominal and realised, and seconds
    per evaluated token; the share of tokens routed; batch shift; the leak verdict; truncated
    requests."""
    means = {score.task: answer_means(score.answers) for score in evaluation.scores}
    facts: dict[str, Any] = {
        "rule": rule_label(evaluation.rule),
        "seconds": evaluation.cost.seconds,
        **evaluation.cost.per_token(),
        "truncated": evaluation.truncated,
        "leak": leak,
    }
    for name, of_answers in (
        ("bits_per_byte_of_answer", "answer_bits_per_byte"),
        ("margin_nats", "answer_margin"),
    ):
        facts[name] = {task: mean["value"] for task, of in means.items() if (mean := of[of_answers])}
    if shift is not None:
        facts |= {f"batch_shift_{name}": value for name, value in asdict(shift).items()}
    return facts


def sentence(name: str, facts: dict[str, Any]) -> str:
    """Return one line on the compute and the validity of a task, from `details`."""
    parts = [f"{facts['tokens']:,} tokens", f"{facts['seconds_per_token'] * 1e6:,.0f} us per token"]
    nominal, realised = facts["nominal_flops_per_token"], facts["realised_flops_per_token"]
    if nominal is not None:
        parts.append(f"{nominal:,.0f} FLOPs per token nominal, {realised:,.0f} realised")
    if facts["share_routed"] is not None:
        parts.append(f"{facts['share_routed']:.1%} of tokens routed")
    if "batch_shift_nats" in facts:
        parts.append(
            f"batch shift {facts['batch_shift_nats']:.1e} nats and {facts['batch_shift_flipped']} of "
            f"{facts['batch_shift_items']} items flipped at batch sizes "
            f"{', '.join(map(str, facts['batch_shift_batches']))}"
        )
    leak = f"leak audit {facts['leak']}"
    if facts["rule"] == NON_CAUSAL:
        parts += [f"{leak} for the causal rule", f"scored with {facts['rule']}"]
    else:
        parts += [leak, f"rule {facts['rule']}"]
    return f"{name}: " + "; ".join(parts)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


_LARGEST = 1e30  #: that a record holds (`modbench.records.line.REAL`)


def section(evaluation: Evaluation, shift: BatchShift) -> dict[str, Any]:
    """Return the entries of the tasks of ``evaluation`` by name; values of the untrained model are
    missing until `add_untrained`."""
    return {
        score.task: {
            "part_of": evaluation.name,
            "metrics": {metric: _metric(score, metric) for metric in score.metrics},
            "items": score.items,
            "few_shot": score.few_shot,
            "version": score.version,
            "rule": evaluation.rule,
            **answer_means(score.answers),
            "truncated": evaluation.truncated,
            "batch_shift": asdict(shift) | {"nats": _finite(shift.nats), "batches": list(shift.batches)},
            "sha256": _documents(evaluation, score.task),
        }
        for score in evaluation.scores
    }


def add_untrained(entries: dict[str, Any], evaluation: Evaluation) -> None:
    """Add the values of the untrained model to ``entries``."""
    for score in evaluation.scores:
        of_task = entries[score.task]
        for metric, value in score.metrics.items():
            if metric in of_task["metrics"]:
                of_task["metrics"][metric]["untrained"] = _finite(value)
        for name, mean in answer_means(score.answers).items():
            if mean is not None and of_task[name] is not None:
                of_task[name]["untrained"] = mean["value"]


def _metric(score: TaskScore, metric: str) -> dict[str, Any]:
    return {
        "value": _finite(score.metrics[metric]),
        "stderr": _finite(score.errors[metric]),
        "chance": score.chance.get(metric),
        "untrained": None,
        "higher_is_better": score.higher_is_better.get(metric),
    }


def answer_means(answers: ItemAnswers) -> dict[str, dict[str, float | None] | None]:
    """Return mean and standard error of the right answers' bits per byte and margins, as far as there
    are any."""
    return {
        "answer_bits_per_byte": _mean(answers.bits_per_byte),
        "answer_margin": _mean(answers.margin),
    }


def _mean(values: list[float]) -> dict[str, float | None] | None:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    with np.errstate(invalid="ignore"):  # an answer may be impossible
        mean, error = mean_with_stderr(known)
    return {"value": _finite(mean), "stderr": _finite(error), "untrained": None}


def _finite(value: float | None) -> float | None:
    """``value``, or None if a record can't hold it, such as NaN."""
    return value if value is not None and abs(value) <= _LARGEST else None


def _documents(evaluation: Evaluation, task: str) -> str | None:
    """Return the hash of the documents of ``task``; None for a group."""
    samples = evaluation.results["samples"].get(task)
    if not samples:
        return None
    return hashlib.sha256("".join(sample["doc_hash"] for sample in samples).encode()).hexdigest()
