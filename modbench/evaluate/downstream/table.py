"""The table that `modbench eval` prints, and what it says about each task."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from modbench.evaluate.downstream.evaluation import Evaluation
from modbench.evaluate.downstream.section import answer_means
from modbench.evaluate.downstream.validity import BatchShift

HEADS = (
    "task", "metric", "value", "stderr", "chance", "items", "few-shot", "version", "rule",
)  # fmt: skip
_LEFT = (0, 1)  # columns of words: task and metric
NON_CAUSAL = "topk (non-causal)"


def rule_label(rule: str) -> str:
    """Return the name of a selection rule; the training rule is labelled non-causal."""
    return rule if rule == "causal" else NON_CAUSAL


def rows(evaluations: Iterable[Evaluation]) -> list[tuple[str, ...]]:
    """Return a row per metric of each task, columns as `HEADS`; a group that lacks tasks is marked."""
    return [
        (
            score.task + " (partial)" * bool(score.missing),
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


def as_table(evaluations: Iterable[Evaluation]) -> str:
    """Return the table as text."""
    align = ["left" if column in _LEFT else "right" for column in range(len(HEADS))]
    lines = rows(evaluations)
    return tabulate(lines, HEADS, "plain", disable_numparse=True, colalign=align)


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
    if evaluation.missing:
        facts["missing"] = list(evaluation.missing)
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


def missing_sentence(name: str, missing: Sequence[str], scored: int) -> str:
    """Return one line on the tasks of a group that are left out."""
    return (
        f"{name} is partial: {scored} of {scored + len(missing)} tasks are scored, since the folder of "
        f"local files lacks {', '.join(f'{task}.jsonl' for task in missing)}"
    )


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"
