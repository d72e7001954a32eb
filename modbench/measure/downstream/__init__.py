"""Downstream tasks, scored by lm-eval under the causal selection rule."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from modbench.data.config import DataConfig
from modbench.data.tokenizer import Tokenizer
from modbench.measure.downstream.evaluation import Evaluation, TaskScore, evaluate
from modbench.measure.routed_lm import RoutedLM

__all__ = ["Evaluation", "TaskScore", "evaluate", "score"]


def score(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    tasks: Sequence[str],
    batch: int | Literal["auto"] = "auto",
    limit: int | None = None,
    sequence: int = 256,
    data: DataConfig | None = None,
) -> dict[str, float]:
    """Score ``model`` on lm-eval ``tasks``, ours or lm-eval's; for the arguments see `RoutedLM` and
    `evaluate`.

    Returns:
        For each task, ``<task>``: its accuracy, or its first metric if none is called ``acc``;
        ``<task>_items``: the number of items; and ``<task>_stderr``, where there is one. A group without
        a metric gives those of its members.

    Raises UserError: as `evaluate`.
    """
    if not tasks:
        return {}
    lm = RoutedLM(model, tokenizer, sequence=sequence, batch=batch)
    found: dict[str, float] = {}
    for evaluation in evaluate(lm, tasks, limit=limit, data=data):
        named = [one for one in evaluation.scores if one.task == evaluation.name]
        for one in named or evaluation.scores:
            metric = "acc" if "acc" in one.metrics else next(iter(one.metrics))
            error = one.errors[metric]
            found[one.task] = one.metrics[metric]
            found[f"{one.task}_items"] = float(one.items)
            if error is not None:
                found[f"{one.task}_stderr"] = error
    return found
