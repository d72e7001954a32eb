"""Batch shift: how much a model's scores depend on the batch size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modbench.evaluate.scored_lm import ScoredLM

#: Batch sizes that are compared.
BATCHES = (1, 7, 32)
#: Most items, and their characters, that are scored at each, of all tasks of a group together: scoring
#: one by one is slow.
ITEMS, CHARACTERS = 32, 100_000


@dataclass(frozen=True, kw_only=True)
class BatchShift:
    """Scores of the first ``items`` items at each of `BATCHES`: ``nats``, the largest difference of a
    log-probability, and ``flipped`` items, whose chosen answer or generated text differs."""

    nats: float
    flipped: int
    items: int
    batches: tuple[int, ...] = BATCHES


def batch_shift(lm: ScoredLM, tasks: Mapping[str, Any], *, items: int = ITEMS) -> BatchShift:
    """Score the first items of each of ``tasks``, lm-eval tasks that were evaluated, at batch sizes 1, 7
    and 32: about ``items`` together. The cost is not added to that of ``lm``."""
    nats = 0.0
    flipped = 0
    scored = 0
    for task in tasks.values():
        kept = _first_items(task, max(1, items // len(tasks)))
        instances = [instance for instance in task.instances if instance.doc_id in kept]
        answers = [_answers(lm, batch, instances) for batch in BATCHES]
        for other in answers[1:]:
            for answer, again in zip(answers[0], other, strict=True):
                if isinstance(answer, tuple):
                    nats = max(nats, abs(answer[0] - again[0]))
        chosen = [_chosen(task, instances, each) for each in answers]
        flipped += sum(len({each[doc] for each in chosen}) > 1 for doc in kept)
        scored += len(kept)
    return BatchShift(nats=nats, flipped=flipped, items=scored)


def _first_items(task: Any, items: int) -> list[int]:
    """Return the numbers of the first items, at most ``items``, whose requests have at most `CHARACTERS`
    characters together; the first item in any case."""
    sizes: dict[int, int] = {}
    for instance in task.instances:
        size = sum(len(text) for text in instance.args if isinstance(text, str))
        sizes[instance.doc_id] = sizes.get(instance.doc_id, 0) + size
    kept: list[int] = []
    characters = 0
    for doc_id in sorted(sizes)[:items]:
        characters += sizes[doc_id]
        if kept and characters > CHARACTERS:
            break
        kept.append(doc_id)
    return kept


def _answers(lm: ScoredLM, batch: int, instances: Sequence[Any]) -> list[Any]:
    """Return (log-probability, greedy) or a text for each instance, in batches of ``batch``."""
    other = lm.with_batch(batch)
    by_number: dict[int, Any] = {}
    for kind in dict.fromkeys(instance.request_type for instance in instances):
        asked = [number for number, instance in enumerate(instances) if instance.request_type == kind]
        given = getattr(other, kind)([instances[number] for number in asked])
        for number, answer in zip(asked, given, strict=True):
            by_number[number] = (answer, False) if isinstance(answer, float) else answer
    return [by_number[number] for number in range(len(instances))]


def _chosen(task: Any, instances: Sequence[Any], answers: Sequence[Any]) -> dict[int, Any]:
    """Return what each item's answer is: the index of the most likely choice, or the answer itself
    without its log-probability."""
    by_item: dict[int, list[Any]] = {}
    for instance, answer in zip(instances, answers, strict=True):
        by_item.setdefault(instance.doc_id, []).append(answer)
    if task.OUTPUT_TYPE == "multiple_choice":
        return {
            doc: max(range(len(each)), key=lambda choice: each[choice][0])
            for doc, each in by_item.items()
        }
    return {doc: each[0][1] if isinstance(each[0], tuple) else each[0] for doc, each in by_item.items()}
