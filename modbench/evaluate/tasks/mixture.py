"""The items of ``modbench_mixture_easy`` and ``modbench_mixture_hard``: predictable words between
unpredictable ones.

Each text is a refrain R, a held-out sentence that returns, between held-out sentences S in their
order: R S R S R S. The easy items ask for the last word of R when it occurs for the third time, the hard
ones for the last word of the third S. Wrong choices are words of the same length and frequency that end
other sentences and, for easy items, do not occur in the context.
"""

import random
import re
from collections import Counter, deque
from collections.abc import Collection, Container, Iterable, Iterator
from typing import NamedTuple

from modbench.evaluate.tasks.heldout import HeldOut
from modbench.evaluate.tasks.quartets import Draft, Item, alike, build_quartets, items_of
from modbench.evaluate.tasks.words import (
    bare,
    is_sentence,
    shuffled,
    split_sentences,
    word_bands,
)

# These numbers decide the items: with another one, the version in the YAML files must be raised.
ITEMS = 400  # a standard error of 2 points at chance
_SEED = "modbench_mixture 1"
_REFRAIN_WORDS = (5, 9)  # least and most
_SENTENCE_WORDS = (4, 20)  # least and most: labels are short, and long ones fill a small model's window
_MOST_PER_ANSWER = 4  # of 400 items: no word decides more than 1 % of the score


_LAST = re.compile(r"([a-z]{3,})[.?!][\"')\]]*")


class _Run(NamedTuple):
    """Consecutive sentences. The last one is ``head`` and the known word ``answer``; ``words`` are those
    of all of them, in lower case."""

    source: str
    sentences: tuple[str, ...]
    head: str
    answer: str
    words: frozenset[str]


def build_items(text: HeldOut, *, hard: bool) -> list[Item]:
    """Build up to `ITEMS` items, the same on every machine."""
    rng = random.Random(f"{_SEED} {hard}")
    bands = word_bands(text.words)
    refrains = _runs(text, bands, 1, *_REFRAIN_WORDS)
    passages = _runs(text, bands, 3, *_SENTENCE_WORDS)
    asked, others = (passages, refrains) if hard else (refrains, passages)
    run_of = {run.sentences[-1]: run for run in asked}

    def clash(first: Draft, second: Draft) -> bool:
        return (
            alike(first, second)
            or first.answer in run_of[second.context].words
            or second.answer in run_of[first.context].words
        )

    drafts = [Draft(run.source, run.sentences[-1], run.answer, bands[run.answer]) for run in asked]
    partners = deque(shuffled(rng, others))
    quartets = []
    for quartet in build_quartets(_capped(shuffled(rng, drafts)), clash, rng, ITEMS // 4):
        choices = {draft.answer for draft in quartet}
        drawn = [_partner(partners, choices) for _ in quartet]
        quartets.append(
            [
                draft._replace(context=_context(run_of[draft.context], other, hard))
                for draft, other in zip(quartet, drawn, strict=True)
                if other
            ]
        )
    return items_of(quartet for quartet in quartets if len(quartet) == 4)


def _runs(text: HeldOut, known: Container[str], number: int, least: int, most: int) -> list[_Run]:
    """All runs of ``number`` sentences with ``least`` to ``most`` words that end with a known word."""
    runs: dict[str, _Run] = {}
    for source, document in zip(text.sources, text.documents, strict=True):
        pieces = split_sentences(document)
        for start in range(len(pieces) - number + 1):
            sentences = tuple(pieces[start : start + number])
            head, _, last = sentences[-1].rpartition(" ")
            match = _LAST.fullmatch(last)
            short = all(least <= sentence.count(" ") + 1 <= most for sentence in sentences)
            if not (match and match[1] in known and short and is_sentence(sentences[-1], least, most)):
                continue
            if match[1] not in _words([head]):
                run = _Run(source, sentences, head, match[1], _words(sentences))
                runs.setdefault(sentences[-1], run)
    return list(runs.values())


def _words(sentences: Iterable[str]) -> frozenset[str]:
    return frozenset(bare(word).lower() for sentence in sentences for word in sentence.split())


def _capped(drafts: Iterable[Draft]) -> Iterator[Draft]:
    """The first drafts of each answer."""
    used: Counter[str] = Counter()
    for draft in drafts:
        used[draft.answer] += 1
        if used[draft.answer] <= _MOST_PER_ANSWER:
            yield draft


def _partner(candidates: deque[_Run], choices: Collection[str]) -> _Run | None:
    """The next of ``candidates`` without any of the ``choices``, in turn."""
    for _ in range(len(candidates)):
        candidates.rotate(-1)
        if candidates[-1].words.isdisjoint(choices):
            return candidates[-1]
    return None


def _context(asked: _Run, other: _Run, hard: bool) -> str:
    """R S R S R S without the last word, or R S R S R without the last word."""
    refrain, passage = (other, asked) if hard else (asked, other)
    (again,), (first, second, _) = refrain.sentences, passage.sentences
    return " ".join([again, first, again, second, *([again] if hard else []), asked.head])
