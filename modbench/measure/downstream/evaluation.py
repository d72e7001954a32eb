"""Evaluates a model on lm-eval's tasks, one task at a time."""

import contextlib
import io
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.tasks.manager import TaskDict, TaskManager

from modbench.data.config import DataConfig
from modbench.errors import UserError
from modbench.measure.downstream.item_answers import ItemAnswers, item_answers
from modbench.measure.downstream.local_data import localised
from modbench.measure.downstream.standard_error import standard_error
from modbench.measure.downstream.task_files import files_by_name
from modbench.measure.routed_lm import RoutedLM
from modbench.measure.scoring_passes import Cost
from modbench.measure.tasks import CHANCE

#: Draws of lm-eval's bootstrap, for metrics whose standard error has no closed form.
BOOTSTRAP = 1000
#: lm-eval's own seeds: of Python, of numpy, and of few-shot examples.
SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234


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
    ``samples``. ``tasks``: lm-eval's task objects by name.
    """

    name: str
    scores: list[TaskScore]
    cost: Cost
    rule: str
    truncated: int
    results: dict[str, Any]
    tasks: Mapping[str, Any]

    def score(self, task: str) -> TaskScore:
        """Return the scores of ``task``."""
        return next(one for one in self.scores if one.task == task)


def evaluate(
    lm: RoutedLM,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    data_dir: Path | None = None,
    data: DataConfig | None = None,
) -> Iterator[Evaluation]:
    """Evaluate ``lm`` on each of ``tasks``, ours or lm-eval's, and yield it when it is done. The global
    random generators are restored.

    Args:
        limit: number of items of each task; None: all.
        num_fewshot: examples before each item; None: as the task says. Tasks that fix it to 0 keep that.
        data_dir: folder of local files in place of the hub, see `localised`.
        data: the corpus whose held-out part our tasks are built from; None: the embedded one.

    Raises UserError: an unknown task, or a group and its member, before any is evaluated; then, when
    its turn comes, a task without items: a missing file, no network, code of a model that the task would
    run.
    """
    names = list(dict.fromkeys(tasks))
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be 1 or more")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"num_fewshot is {num_fewshot}; it must be 0 or more")
    files = files_by_name(names)
    for name in names:
        with localised(files[name], data_dir) as folder, _quiet(), _seeded():
            manager = TaskManager(
                include_path=str(folder),
                include_defaults=False,
                metadata={"data": asdict(data or DataConfig())},
            )
            with _data_sets(name, data_dir):
                loaded = manager.load([name])
                _prepare(name, loaded, files[name], num_fewshot, data_dir)
            lm.reset()
            with _data_sets(name, data_dir):
                results: Any = lm_eval_evaluate(
                    lm, loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=True
                )
        yield _evaluation(name, lm, loaded, results)


def _prepare(
    name: str,
    loaded: TaskDict,
    files: Mapping[str, Path],
    num_fewshot: int | None,
    data_dir: Path | None,
) -> None:
    """Set the few-shot number and seed of ``loaded``, as lm-eval's command line does. Raises UserError:
    a task without few-shot examples, or one that runs generated code."""
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task.config, "unsafe_code", False):
            raise UserError(f"task '{task_name}' runs code that the model writes; run it with lm-eval")
        stated = task.config.num_fewshot
        if stated != 0:
            wanted = num_fewshot if num_fewshot is not None else stated or 0
            setter = getattr(task, "set_num_fewshot", None)
            setter(wanted) if setter else task.set_config(key="num_fewshot", value=wanted)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        if data_dir is not None and task.config.num_fewshot and not len(task.fewshot_docs() or ()):
            split = task.config.fewshot_split or task.config.training_split
            raise UserError(
                f"task '{task_name}' takes its {task.config.num_fewshot} examples from "
                f"{task_name}_{split}.jsonl, which --data-dir {data_dir} lacks; add it, or use "
                "--num-fewshot 0"
            )
        if isinstance(task.config.metadata, dict) and task_name in files:
            task.config.metadata["config_source"] = str(files[task_name])  # not the temporary file


@contextmanager
def _data_sets(name: str, data_dir: Path | None) -> Iterator[None]:
    """Context in which data sets are loaded. Raises UserError: one cannot be reached."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (ConnectionError, TimeoutError, FileNotFoundError, DatasetsError) as error:
        instead = (
            "add its file there" if data_dir is not None else "give local files with --data-dir FOLDER"
        )
        raise UserError(
            f"the data set of task '{name}' could not be loaded from the Hugging Face hub "
            f"({' '.join(str(error).split())[:120]}); connect to a network, or {instead} "
            "(docs/evaluation.md)"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without lm-eval's progress bars, prints and warnings, and without its process pool."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # read by 0.4
    with contextlib.suppress(ImportError):  # 0.5 reads it once
        from lm_eval.api.metrics import stderr

        stderr.DISABLE_MULTIPROC = True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@contextmanager
def _seeded() -> Iterator[None]:
    """Context in which the global generators of Python and numpy start from lm-eval's own seeds."""
    python, arrays = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def _evaluation(name: str, lm: RoutedLM, loaded: TaskDict, results: dict[str, Any]) -> Evaluation:
    order = [*loaded.get("groups", {}), *loaded["tasks"]]
    scores = [
        score
        for one in order
        if one in results["results"]
        and (score := _task_score(one, loaded["tasks"].get(one), results)).metrics
    ]
    if not scores:
        raise UserError(f"task '{name}' has no metric; choose one with a metric, such as accuracy")
    return Evaluation(
        name=name,
        scores=scores,
        cost=lm.cost,
        rule=lm.rule,
        truncated=lm.truncated,
        results=results,
        tasks=loaded["tasks"],
    )


def _task_score(name: str, task: Any, results: dict[str, Any]) -> TaskScore:
    """Read lm-eval's entry of a task or group, ``{"acc,none": 0.5, "acc_stderr,none": 0.1, ...}``, and
    put standard errors that lm-eval does not compute into it, and None for a metric that is NaN."""
    entry = results["results"][name]
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
        found = entry.get(error_key)
        if not isinstance(found, int | float):
            values = [one[metric] for one in samples if one["filter"] == filtered and metric in one]
            found = standard_error(values, value)
            if found is not None:
                entry[error_key] = found
        metrics[label], errors[label] = float(value), None if found is None else float(found)
    answers = item_answers(task) if task is not None else ItemAnswers.empty()
    members = [name] if task is not None else _members(name, results)
    return TaskScore(
        task=name,
        metrics=metrics,
        errors=errors,
        chance=_chance(name, metrics, task, answers),
        higher_is_better={
            metric: better
            for metric, better in results["higher_is_better"].get(name, {}).items()
            if better is not None
        },
        items=sum(results["n-samples"].get(one, {}).get("effective", 0) for one in members),
        few_shot=int(results["n-shot"].get(name) or 0),
        version=str(results["versions"].get(name, "")),
        answers=answers,
    )


def _members(group: str, results: Mapping[str, Any]) -> list[str]:
    """Return the tasks of a group, those of its groups included."""
    found: list[str] = []
    for name in results["group_subtasks"].get(group, ()):
        found += _members(name, results) if name in results["group_subtasks"] else [name]
    return found


def _chance(
    name: str, metrics: Mapping[str, float], task: Any, answers: ItemAnswers
) -> dict[str, float]:
    """Return the chance level of each metric that has a known one: what our task states, or the mean of
    1 / choices for the accuracies of a multiple-choice task."""
    if name in CHANCE:
        main = "acc" if "acc" in metrics else next(iter(metrics))
        return {main: CHANCE[name]}
    if task is None or task.OUTPUT_TYPE != "multiple_choice" or not any(answers.choices):
        return {}
    level = sum(1 / count for count in answers.choices) / len(answers.choices)
    return {metric: level for metric in ("acc", "acc_norm", "acc_bytes") if metric in metrics}
