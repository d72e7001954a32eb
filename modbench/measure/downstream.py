"""Downstream tasks, scored by lm-eval under the causal selection rule."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.tasks.manager import TaskDict, TaskManager
from torch import nn

from modbench.data.config import DataConfig
from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError, known_names
from modbench.measure.routed_lm import RoutedLM
from modbench.measure.tasks import CHANCE, FOLDER


def score(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    tasks: Sequence[str],
    batch: int = 32,
    limit: int | None = None,
    sequence: int = 256,
    data: DataConfig | None = None,
) -> dict[str, float]:
    """Score ``model`` on lm-eval ``tasks``, ours or lm-eval's.

    Args:
        model: called as ``model(tokens_BT, context) -> logits_BTV``; its mode and the global random
            generators are restored.
        batch, sequence: see `RoutedLM`; ``sequence`` is the model's training length.
        limit: number of items of each task; None: all.
        data: the corpus whose held-out part our tasks are built from; None: the embedded one.

    Returns:
        For each task, ``<task>``: its accuracy, or its first metric if none is called ``acc``;
        ``<task>_items``: the number of items; for accuracies ``<task>_stderr``: the standard error. A
        group without a metric gives those of its members.

    Raises:
        UserError: unknown task, or one that generates text.
    """
    if not tasks:
        return {}
    lm = RoutedLM(model, tokenizer, sequence=sequence, batch=batch)
    # lm-eval draws from Python's global generator, even to name a task.
    state = random.getstate()
    try:
        loaded = _load(list(dict.fromkeys(tasks)), data or DataConfig())
        merged: Any = {
            part: {name: entry for one in loaded.values() for name, entry in one[part].items()}
            for part in ("tasks", "groups", "group_map")
        }
        # `simple_evaluate` would reseed all global generators, and the bootstrap would start a process
        # pool; the standard error of an accuracy has a closed form.
        results: Any = evaluate(lm, merged, limit=limit, bootstrap_iters=0, log_samples=False)
    finally:
        random.setstate(state)
    scores: dict[str, float] = {}
    for task, entry in loaded.items():
        figures = _flat(task, results)
        for name in [] if figures else entry["tasks"]:
            figures |= _flat(name, results)
        if not figures:
            raise UserError(f"task '{task}' has no metric; choose one with a metric, such as accuracy")
        scores |= figures
    return scores


def _flat(name: str, results: Mapping[str, Any]) -> dict[str, float]:
    """Convert lm-eval's entry of a task or group, ``{"acc,none": 0.5, ...}``; {} without a metric."""
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
    # lm-eval's own index takes up to a minute and a half to build.
    manager = TaskManager(
        include_path=FOLDER,
        include_defaults=any(task not in CHANCE for task in tasks),
        metadata={"data": asdict(data)},
    )
    for task in tasks:
        if task not in manager.task_index:
            raise UserError(
                f"task '{task}' is not known; {known_names(task, CHANCE)}; for others, see "
                "`lm-eval ls tasks`"
            )
    return {task: manager.load([task]) for task in tasks}
