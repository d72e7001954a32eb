"""Downstream tasks: lm-eval's scores of our models, under the causal selection rule."""

import difflib
import logging
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.tasks.manager import TaskDict, TaskManager
from torch import nn

from modbench.data.config import DataConfig
from modbench.errors import UserError, known_names
from modbench.measure.routed_lm import RoutedLM, Tokenizer
from modbench.measure.tasks import CHANCE, FOLDER

__all__ = ["RoutedLM", "chance", "score"]


def score(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    tasks: Sequence[str],
    batch: int = 32,
    limit: int | None = None,
    autocast: AbstractContextManager[Any] | None = None,
    sequence: int = 256,
    data: DataConfig | None = None,
) -> dict[str, float]:
    """Score ``model`` on lm-eval ``tasks``, ours or any that lm-eval knows.

    Args:
        model: keeps the contract ``model(tokens_BT, context) -> logits_BTV``; its mode and the global
            random generators are left as they were.
        batch, sequence, autocast: see `RoutedLM`; ``sequence`` is what the model was trained on.
        limit: the first so many items of each task; None: all.
        data: the text whose held-out part our own tasks are made from; None: the embedded corpus.

    Returns:
        Per task, ``<task>``: its accuracy (or the first metric that it has, if none is called ``acc``),
        ``<task>_items``: how many items that is the mean of, and, for accuracies,
        ``<task>_stderr``: the standard error of that mean. A group without a mean of its own answers
        with its members.

    Raises:
        UserError: unknown task, a task whose data can't be had, or one that asks for what a language
            model of ours doesn't do.
    """
    if not tasks:
        return {}
    # lm-eval draws from Python's generator, even for the name of a task that has one.
    state = random.getstate()
    try:
        return _score(
            RoutedLM(model, tokenizer, sequence=sequence, batch=batch, autocast=autocast),
            list(dict.fromkeys(tasks)),
            limit,
            data or DataConfig(),
        )
    finally:
        random.setstate(state)


def _score(lm: RoutedLM, tasks: list[str], limit: int | None, data: DataConfig) -> dict[str, float]:
    loaded = _load(tasks, data)
    merged: Any = {
        part: {name: entry for one in loaded.values() for name, entry in one[part].items()}
        for part in ("tasks", "groups", "group_map")
    }
    # Not `simple_evaluate`: it reseeds every global generator and spends seconds on describing the
    # machine. No bootstrap either: it starts a process pool; an accuracy's error has a closed form.
    results: Any = evaluate(lm, merged, limit=limit, bootstrap_iters=0, log_samples=False)
    scores: dict[str, float] = {}
    for task in tasks:
        figures = _flat(task, results)
        for name in [] if figures else loaded[task]["tasks"]:
            figures |= _flat(name, results)
        if not figures:
            raise UserError(f"task '{task}' gave no figure; choose one with a metric, such as accuracy")
        scores |= figures
    return scores


def chance(task: str) -> float:
    """The accuracy of guessing at one of our tasks.

    Raises:
        UserError: not a task of ours.
    """
    if task not in CHANCE:
        raise UserError(f"task '{task}' has no known chance level; {known_names(task, CHANCE)}")
    return CHANCE[task]


def _flat(name: str, results: Mapping[str, Any]) -> dict[str, float]:
    """``{"acc,none": 0.5, ...}``, lm-eval's entry for a task or group, as ours; {} if it has none."""
    figures: dict[str, float] = {}
    for key, value in results["results"].get(name, {}).items():
        metric, comma, _filter = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            figures.setdefault(metric, float(value))
    if not figures:
        return {}
    metric = "acc" if "acc" in figures else next(iter(figures))
    flat = {name: figures[metric]}
    items = results["n-samples"].get(name, {}).get("effective", 0)
    if items:
        flat[f"{name}_items"] = float(items)
    if metric == "acc" and items > 1:
        flat[f"{name}_stderr"] = math.sqrt(figures[metric] * (1 - figures[metric]) / (items - 1))
    return flat


def _load(tasks: list[str], data: DataConfig) -> dict[str, TaskDict]:
    foreign = [task for task in tasks if task not in CHANCE]
    for task in foreign:
        # Before lm-eval's index, which takes up to a minute and a half to build.
        if task.startswith("modbench") or difflib.get_close_matches(task, CHANCE, cutoff=0.8):
            raise UserError(f"task '{task}' is not known; {known_names(task, CHANCE)}")
    manager = TaskManager(
        include_path=FOLDER, include_defaults=bool(foreign), metadata={"data": asdict(data)}
    )
    for task in foreign:
        if task not in manager.task_index:
            near = difflib.get_close_matches(task, manager.all_tasks, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(
                f"task '{task}' is known neither to modbench ({', '.join(CHANCE)}) nor to lm-eval; "
                f"{hint}`lm-eval ls tasks` lists them"
            )
    return {task: _load_one(task, manager) for task in tasks}


def _load_one(task: str, manager: TaskManager) -> TaskDict:
    if task in CHANCE:
        # lm-eval warns whoever uses a custom_dataset, on how to set its options.
        log = logging.getLogger("lm_eval.api.task")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            return manager.load([task])
        finally:
            log.setLevel(level)
    try:
        return manager.load([task])
    except Exception as error:
        # What goes wrong in there is lm-eval's and the data host's, and comes in many types.
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"task '{task}': lm-eval could not load it ({type(error).__name__}: {reason}); "
            "check the network, or that its data is in the Hugging Face cache"
        ) from error
