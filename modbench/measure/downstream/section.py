"""The section ``downstream`` of a record, from evaluations; its schema is
`modbench.report.downstream_record`."""

import hashlib
import math
from typing import Any

import numpy as np

from modbench.analysis.items import mean_with_stderr
from modbench.measure.downstream.evaluation import Evaluation, TaskScore
from modbench.measure.downstream.item_answers import ItemAnswers

_LARGEST = 1e30  #: that a record holds


def section(evaluation: Evaluation) -> dict[str, Any]:
    """Return the entries of the tasks of ``evaluation`` by name; the untrained model's values are
    missing until `add_untrained`."""
    cost, tokens = evaluation.cost, max(1, evaluation.cost.tokens)
    compute = {
        "tokens": cost.tokens,
        "seconds_per_token": cost.seconds / tokens,
        "nominal_flops_per_token": cost.nominal_flops / tokens if cost.nominal_flops else None,
        "realised_flops_per_token": cost.realised_flops / tokens if cost.realised_flops else None,
        "share_routed": cost.share_routed,
    }
    return {
        score.task: {
            "part_of": evaluation.name,
            "metrics": {metric: _metric(score, metric) for metric in score.metrics},
            "items": score.items,
            "few_shot": score.few_shot,
            "version": score.version,
            "rule": evaluation.rule,
            **_answers(score.answers),
            "truncated": evaluation.truncated,
            **compute,
            "sha256": _documents(evaluation, score.task),
        }
        for score in evaluation.scores
    }


def add_untrained(found: dict[str, Any], evaluation: Evaluation) -> None:
    """Add the values of the untrained model to the entries ``found``."""
    for score in evaluation.scores:
        entry = found[score.task]
        for metric, value in score.metrics.items():
            if metric in entry["metrics"]:
                entry["metrics"][metric]["untrained"] = _finite(value)
        for name, mean in _answers(score.answers).items():
            if mean is not None and entry[name] is not None:
                entry[name]["untrained"] = mean["value"]


def columns_of(evaluation: Evaluation) -> dict[str, dict[str, list[Any]]]:
    """Return the items of each task by column, see `modbench.analysis.items_file`."""
    return {
        score.task: {
            "doc_id": score.answers.doc_id,
            "logprob": score.answers.logprob,
            "bytes": score.answers.bytes,
            "margin": score.answers.margin,
            "correct": score.answers.correct,
        }
        for score in evaluation.scores
        if len(score.answers)
    }


def _metric(score: TaskScore, metric: str) -> dict[str, Any]:
    return {
        "value": _finite(score.metrics[metric]),
        "stderr": _finite(score.errors[metric]),
        "chance": score.chance.get(metric),
        "untrained": None,
        "higher_is_better": score.higher_is_better.get(metric),
    }


def _answers(answers: ItemAnswers) -> dict[str, dict[str, float | None] | None]:
    """Return mean and standard error of the right answers' bits per byte and margins, as far as there
    are any."""
    bits = [
        -logprob / (math.log(2) * size)
        for logprob, size in zip(answers.logprob, answers.bytes, strict=True)
        if size
    ]
    return {"answer_bits_per_byte": _mean(bits), "answer_margin": _mean(answers.margin)}


def _mean(values: list[float]) -> dict[str, float | None] | None:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    with np.errstate(invalid="ignore"):  # an answer may be impossible
        mean, error = mean_with_stderr(known)
    return {"value": _finite(mean), "stderr": _finite(error), "untrained": None}


def _finite(value: float | None) -> float | None:
    """``value``, or None if a record can't hold it."""
    return value if value is not None and abs(value) <= _LARGEST else None


def _documents(evaluation: Evaluation, task: str) -> str | None:
    """Return the hash of the documents of ``task``; None for a group."""
    samples = evaluation.results["samples"].get(task)
    if not samples:
        return None
    return hashlib.sha256("".join(one["doc_hash"] for one in samples).encode()).hexdigest()
