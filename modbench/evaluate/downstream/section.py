"""The section ``downstream`` of a record, from evaluations; its schema is
`modbench.records.downstream`."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from modbench.analysis.items import mean_with_stderr
from modbench.evaluate.downstream.evaluation import Evaluation, TaskScore
from modbench.evaluate.downstream.item_answers import ItemAnswers
from modbench.evaluate.downstream.validity import BatchShift

_LARGEST = 1e30  #: that a record holds (`modbench.records.line.REAL`)


def section(evaluation: Evaluation, shift: BatchShift) -> dict[str, Any]:
    """Return the entries of the tasks of ``evaluation`` by name; values of the untrained model and of
    earlier checkpoints are missing until `add_untrained` and `add_checkpoint`."""
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
            **evaluation.cost.per_token(),
            "batch_shift": asdict(shift) | {"nats": _finite(shift.nats), "batches": list(shift.batches)},
            "sha256": _documents(evaluation, score.task),
            "by_item": _by_item(score.answers),
            **({"missing": list(score.missing)} if score.missing else {}),
        }
        for score in evaluation.scores
    }


def add_untrained(entries: dict[str, Any], evaluation: Evaluation) -> None:
    """Add the values of the untrained model to ``entries``."""
    for entry, value in _values(entries, evaluation):
        entry["untrained"] = value


def add_checkpoint(entries: dict[str, Any], evaluation: Evaluation) -> None:
    """Add the values of an earlier checkpoint of the run, the next one, to ``entries``."""
    for entry, value in _values(entries, evaluation):
        entry.setdefault("checkpoints", []).append(value)


def _values(
    entries: dict[str, Any], evaluation: Evaluation
) -> Iterator[tuple[dict[str, Any], float | None]]:
    """Yield each metric's and each mean's entry in ``entries``, and its value in ``evaluation``."""
    for score in evaluation.scores:
        of_task = entries[score.task]
        for metric, value in score.metrics.items():
            if metric in of_task["metrics"]:
                yield of_task["metrics"][metric], _finite(value)
        for name, mean in answer_means(score.answers).items():
            if mean is not None and of_task[name] is not None:
                yield of_task[name], mean["value"]


def _by_item(answers: ItemAnswers) -> dict[str, list[float | None]] | None:
    """Return the scores of single items, to three decimals; None where there are no items."""
    columns = {
        "correct": answers.correct,
        "bits_per_byte": answers.bits_per_byte,
        "margin": answers.margin,
    }
    rounded = {
        name: [None if _finite(value) is None else round(value, 3) for value in values]
        for name, values in columns.items()
    }
    return rounded if len(answers) else None


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
