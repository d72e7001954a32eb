"""Quartets: four questions that share their four choices, each the right answer once.

A scorer that ignores the context prefers the same choice in all four questions, so it is right in
exactly one: chance is a quarter, however the answers are distributed. The right answer stands once in
each place, so a scorer that always takes the first choice is right in one of four, too.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from modbench.evaluate.tasks.words import overlap, shuffled

Item = dict[str, Any]


class Draft(NamedTuple):
    """A question and its answer. Answers of one ``band`` may be choices of the same question."""

    source: str
    context: str
    answer: str
    band: Hashable


def alike(first: Draft, second: Draft) -> bool:
    """Return True if an answer is a prefix of the other."""
    return overlap(first.answer, second.answer)


def build_quartets(
    drafts: Iterable[Draft], clash: Callable[[Draft, Draft], bool], rng: random.Random, count: int
) -> list[tuple[Draft, ...]]:
    """Form up to ``count`` quartets of drafts of one band without pairs that ``clash``; each draft is
    used once. The answers with most drafts are used first, so that few are left over."""
    bands: dict[Hashable, dict[str, list[Draft]]] = defaultdict(lambda: defaultdict(list))
    for draft in shuffled(rng, drafts)[: 32 * count]:  # eight times the drafts that are needed
        bands[draft.band][draft.answer].append(draft)
    quartets = []
    for _, queues in sorted(bands.items(), key=lambda band: str(band[0])):
        left = list(queues.values())
        while len(left) >= 4:
            left.sort(key=len, reverse=True)
            chosen = _compatible(left, clash)
            if len(chosen) == 4:
                quartets.append([queue[-1] for queue in chosen])
            # A draft that fits no three others is dropped.
            for queue in chosen if len(chosen) == 4 else chosen[:1]:
                queue.pop()
            left = [queue for queue in left if queue]
    return [tuple(shuffled(rng, quartet)) for quartet in shuffled(rng, quartets)[:count]]


def _compatible(
    queues: Sequence[list[Draft]], clash: Callable[[Draft, Draft], bool]
) -> list[list[Draft]]:
    """The first up to four of ``queues`` whose last drafts don't clash."""
    chosen: list[list[Draft]] = []
    for queue in queues:
        if len(chosen) < 4 and not any(clash(queue[-1], other[-1]) for other in chosen):
            chosen.append(queue)
    return chosen


def items_of(quartets: Iterable[Sequence[Draft]]) -> list[Item]:
    """The items of ``quartets``, in order: ``{"source", "context", "choices", "answer"}``. Choices are
    sorted, so that their order says nothing about an item."""
    items = []
    for quartet in quartets:
        choices = sorted(draft.answer for draft in quartet)
        for draft in quartet:
            items.append(
                {
                    "source": draft.source,
                    "context": draft.context,
                    "choices": choices,
                    "answer": choices.index(draft.answer),
                }
            )
    return items
