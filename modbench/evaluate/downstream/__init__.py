"""Downstream tasks, scored by lm-eval under the causal selection rule."""

from modbench.evaluate.downstream.evaluation import Evaluation, TaskScore, evaluate

__all__ = ["Evaluation", "TaskScore", "evaluate"]
