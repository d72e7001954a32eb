"""Evaluates a model on lm-eval's tasks, one task at a time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.tasks.manager import TaskDict

from modbench.data.config import DataConfig
from modbench.errors import UserError
from modbench.evaluate.downstream.item_answers import ItemAnswers, item_answers
from modbench.evaluate.downstream.loading import load_tasks, quiet, seeded, task_errors
from modbench.evaluate.downstream.task_files import files_by_name, including
from modbench.evaluate.scored_lm import Cost, ScoredLM
from modbench.evaluate.tasks import TASKS

#: Draws of lm-eval's bootstrap, for metrics whose standard error has no closed form.
BOOTSTRAP = 1000


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Scores of one task, or of a group, which has no items of its own.

    ``metrics`` and ``errors``: value and standard error by name, such as ``acc``, or ``acc,FILTER`` for
    other filters than ``none``; an error is None where there is none, as with one item. ``chance``: by
    metric, where it is known.
    """

    task: str
    metrics: dict[str, float]
    errors: dict[str, float | None]
    chance: dict[str, float]
    higher_is_better: dict[str, bool]
    items: int
    few_shot: int
    version: str
    answers: ItemAnswers


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of one name of the call: the task, or a group followed by its tasks, or the tasks of a tag.

    ``rule``: selection rule, ``causal`` or ``topk``, whose scores are *non-causal*. ``truncated``:
    requests whose context did not fit the model's length. ``results``: lm-eval's own results, with
    ``samples``. ``tasks``: lm-eval's task objects by name. ``warnings``: lm-eval's, and how often each
    was said.
    """

    name: str
    scores: list[TaskScore]
    cost: Cost
    rule: str
    truncated: int
    results: dict[str, Any]
    tasks: Mapping[str, Any]
    warnings: Mapping[str, int]

    def score(self, task: str) -> TaskScore:
        """Return the scores of ``task``."""
        return next(score for score in self.scores if score.task == task)


def evaluate(
    lm: ScoredLM,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include: Path | None = None,
    data: DataConfig | None = None,
) -> Iterator[Evaluation]:
    """Evaluate ``lm`` on each of ``tasks``, ours or lm-eval's, and yield it when it is done. The global
    random generators are restored.

    Args:
        limit: number of items of each task; None: all.
        num_fewshot: examples before each item; None: as the task says. Tasks that fix it to 0 keep that.
        include: folder of further YAML files of tasks.
        data: the corpus whose held-out part our tasks are built from; None: the embedded one.

    Raises UserError: an unknown task, or a group and its member, before any is evaluated; then, when
    its turn comes, a task that lm-eval can't load or score: a missing file, a line that is no item, no
    network, code of a model that the task would run.
    """
    names = list(dict.fromkeys(tasks))
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be 1 or more")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"num_fewshot is {num_fewshot}; it must be 0 or more")
    files = files_by_name(names, include)
    for name in names:
        paths = files[name]
        with quiet() as said, seeded(), including(paths.values()) as folder, task_errors(name):
            loaded = load_tasks(name, paths, folder, num_fewshot=num_fewshot, data=data or DataConfig())
            lm.reset()
            results: Any = lm_eval_evaluate(
                lm, loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=True
            )
            evaluation = _evaluation(name, lm, loaded, results, said)
        yield evaluation


def _evaluation(
    name: str, lm: ScoredLM, loaded: TaskDict, results: dict[str, Any], warnings: Mapping[str, int]
) -> Evaluation:
    tasks, groups = loaded["tasks"], loaded.get("groups", {})
    of_tasks = {member: _task_score(member, task, results) for member, task in tasks.items()}
    of_groups = {
        member: _group_score(member, group, of_tasks, results)
        for member, group in groups.items()
        if member in results["results"]
    }
    scores = [score for score in (*of_groups.values(), *of_tasks.values()) if score.metrics]
    if not scores:
        raise UserError(f"task '{name}' has no metric; choose one with a metric, such as accuracy")
    return Evaluation(
        name=name,
        scores=scores,
        cost=lm.cost,
        rule=lm.rule,
        truncated=lm.truncated,
        results=results,
        tasks=tasks,
        warnings=warnings,
    )


def _task_score(name: str, task: Any, results: dict[str, Any]) -> TaskScore:
    answers = item_answers(task)
    return _score(
        name,
        results,
        _chance(task, answers),
        items=results["n-samples"].get(name, {}).get("effective", 0),
        few_shot=int(results["n-shot"].get(name) or 0),
        answers=answers,
    )


def _group_score(
    name: str, group: Any, tasks: Mapping[str, TaskScore], results: dict[str, Any]
) -> TaskScore:
    members = [tasks[member] for member in _members(name, results) if member in tasks]
    return _score(
        name,
        results,
        _group_chance(group, members),
        items=sum(member.items for member in members),
        few_shot=max((member.few_shot for member in members), default=0),
        answers=ItemAnswers(),
    )


def _score(name: str, results: dict[str, Any], chance: Mapping[str, float], **of: Any) -> TaskScore:
    metrics, errors = _metrics(name, results)
    if name in TASKS:
        chance = {TASKS[name].metric: TASKS[name].chance}
    better = results["higher_is_better"].get(name, {})
    return TaskScore(
        task=name,
        metrics=metrics,
        errors=errors,
        chance={metric: level for metric, level in chance.items() if metric in metrics},
        higher_is_better={metric: each for metric, each in better.items() if each is not None},
        version=str(results["versions"].get(name, "")),
        **of,
    )


def _metrics(name: str, results: dict[str, Any]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Read lm-eval's entry of a task or group, ``{"acc,none": 0.5, "acc_stderr,none": 0.1, ...}``, and
    put standard errors that lm-eval does not compute into it, and None for a metric that is NaN."""
    entry = results["results"].get(name, {})
    samples = results["samples"].get(name, [])
    metrics: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    for key, value in list(entry.items()):
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        if math.isnan(value):
            entry[key] = None  # JSON has no NaN
        label = metric if filtered == "none" else key
        error_key = f"{metric}_stderr,{filtered}"
        error = entry.get(error_key)
        if not isinstance(error, int | float):
            values = [
                sample[metric] for sample in samples if sample["filter"] == filtered and metric in sample
            ]
            error = standard_error(values, value)
            if error is not None:
                entry[error_key] = error
        metrics[label], errors[label] = float(value), None if error is None else float(error)
    return metrics, errors


def _members(group: str, results: Mapping[str, Any]) -> list[str]:
    """Return the tasks of a group, those of its groups included."""
    members: list[str] = []
    for name in results["group_subtasks"].get(group, ()):
        members += _members(name, results) if name in results["group_subtasks"] else [name]
    return members


def _chance(task: Any, answers: ItemAnswers) -> dict[str, float]:
    """Return the chance level of accuracies of a multiple-choice task: the mean of 1 / choices."""
    if task.OUTPUT_TYPE != "multiple_choice" or not any(answers.choices):
        return {}
    level = sum(1 / count for count in answers.choices) / len(answers.choices)
    return dict.fromkeys(("acc", "acc_norm", "acc_bytes"), level)


def _group_chance(group: Any, members: Sequence[TaskScore]) -> dict[str, float]:
    """Return the chance levels of a group: the mean over its tasks, weighted as their scores are, of
    each metric whose chance is known for all of them."""
    chances: dict[str, float] = {}
    for stated in group.aggregate_metric_list or ():
        levels = [member.chance.get(stated.metric) for member in members]
        if callable(stated.aggregation) or None in levels or not levels:
            continue
        weights = [member.items if stated.weight_by_size else 1 for member in members]
        chances[stated.metric] = float(np.average(levels, weights=weights))  # type: ignore[arg-type]
    return chances


def standard_error(values: Sequence[Any], aggregate: float) -> float | None:
    """Return the standard error of ``aggregate``, computed from one value per item; None for fewer than
    two items or another kind of metric.

    Three kinds are told apart by what gives ``aggregate`` back: the mean; with pairs (log-likelihood,
    weight), such as words or bytes, the perplexity exp(-sum l / sum w), or its log2. The last two are
    ratios of sums, whose error is linearised.
    """
    if len(values) < 2:
        return None
    if all(isinstance(value, int | float | np.number) for value in values):
        values_N = np.asarray(values, dtype=np.float64)
        if not np.isclose(values_N.mean(), aggregate, rtol=1e-6, atol=1e-12):
            return None
        return float(values_N.std(ddof=1) / math.sqrt(len(values_N)))
    if not all(isinstance(value, tuple | list) and len(value) == 2 for value in values):
        return None
    logs_N, weights_N = np.asarray(values, dtype=np.float64).T
    nats = -logs_N.sum() / weights_N.sum()
    residuals_N = -logs_N - nats * weights_N
    error = math.sqrt((residuals_N**2).sum() * len(values) / (len(values) - 1)) / weights_N.sum()
    if np.isclose(math.exp(min(nats, 700)), aggregate, rtol=1e-6):
        return float(aggregate * error)
    return float(error / math.log(2)) if np.isclose(nats / math.log(2), aggregate, rtol=1e-6) else None
