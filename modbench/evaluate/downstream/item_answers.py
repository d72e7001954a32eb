"""Answers of a task's requests for each item: the right answer's log-probability and bytes, its margin
over the best wrong answer, and whether it is chosen."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from modbench.analysis.items import score_item

NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class ItemAnswers:
    """One entry per item, in the order of the task's documents.

    ``logprob``: ln p of the right answer given the context, in nats; ``bytes``: its UTF-8 bytes as
    scored, with the space before it; ``margin``: its log-probability minus that of the most likely wrong
    answer, in nats; ``correct``: 1.0 if it has the largest log-probability (multiple choice), if each of
    its tokens is the most likely (log-likelihood), or if it equals the generated text; NaN where a task
    has no such number. ``choices``: number of choices, 0 where there are none.
    """

    doc_id: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)

    @property
    def bits_per_byte(self) -> list[float]:
        """-log2 p of the right answer over its bytes, of each item; NaN without a right answer."""
        pairs = zip(self.logprob, self.bytes, strict=True)
        return [-logprob / (math.log(2) * size) if size else NAN for logprob, size in pairs]

    def __len__(self) -> int:
        return len(self.doc_id)


def item_answers(task: Any) -> ItemAnswers:
    """Read the items of ``task``, an lm-eval task that was evaluated."""
    requests: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        requests[instance.doc_id].append(instance)
    rows = [
        (doc_id, *_item(task, sorted(requests[doc_id], key=lambda request: request.idx)))
        for doc_id in sorted(requests)
    ]
    # No items have no columns.
    columns = (list(column) for column in zip(*rows, strict=True))
    return ItemAnswers(**dict(zip(ItemAnswers.__dataclass_fields__, columns, strict=False)))


def _item(task: Any, instances: list[Any]) -> tuple[float, int, float, float, int]:
    """Return log-probability, bytes, margin, correctness and choices of one item."""
    first = instances[0]
    if first.request_type == "loglikelihood_rolling":
        return first.resps[0], _size(first.args[0]), NAN, NAN, 0
    if first.request_type != "loglikelihood":
        return NAN, 0, NAN, NAN, 0
    if task.OUTPUT_TYPE != "multiple_choice":
        total, greedy = first.resps[0]
        return total, _size(first.args[1]), NAN, float(greedy), 0
    # Tasks that also ask for choices without a context put these last.
    instances = instances[: _choices(task, first.doc, len(instances))]
    totals = [instance.resps[0][0] for instance in instances]
    right = _right(task, first.doc, len(instances))
    if right is None:
        return NAN, 0, NAN, NAN, len(instances)
    size = _size(instances[right].args[1])
    scored = score_item(totals, right, size)
    return totals[right], size, scored.margin, scored.correct, len(instances)


def _choices(task: Any, doc: Any, requests: int) -> int:
    count = len(task.doc_to_choice(doc) or ())
    return count if requests == 2 * count else requests


def _right(task: Any, doc: Any, choices: int) -> int | None:
    """Return the place of the right answer; None if there are several or none. A task in which contexts
    are the choices, such as winogrande, states it as its text."""
    text = task.doc_to_text(doc)
    target = text if isinstance(text, int) else task.doc_to_target(doc)
    if isinstance(target, str):
        listed = list(task.doc_to_choice(doc) or ())
        target = listed.index(target) if target in listed else None
    return target if isinstance(target, int) and 0 <= target < choices else None


def _size(text: str) -> int:
    return len(text.encode("utf-8", errors="replace"))
