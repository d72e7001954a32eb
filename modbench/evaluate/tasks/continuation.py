"""The items of ``modbench_continuation``: which of four sentences follows in the held-out text?

The three wrong ones follow other passages of the same source, and differ by at most a tenth in length.
"""

import math
import random
from collections.abc import Iterator

from modbench.evaluate.tasks.heldout import HeldOut
from modbench.evaluate.tasks.quartets import Draft, Item, build_quartets, items_of
from modbench.evaluate.tasks.words import is_sentence, split_sentences

# These numbers decide the items: with another one, the version in the YAML file must be raised.
ITEMS = 1000  # a standard error of 1.4 points at chance
_SEED = "modbench_continuation 1"
_CONTEXT_WORDS = 40  # as many as two of the longest sentences
_LEAST_CONTEXT_WORDS = 16  # as in modbench_cloze
_SENTENCE_WORDS = (6, 20)  # least and most


def build_items(text: HeldOut) -> list[Item]:
    """Build up to `ITEMS` items, the same on every machine."""
    drafts: dict[str, Draft] = {}
    for source, document in zip(text.sources, text.documents, strict=True):
        for draft in _drafts(source, document):
            drafts.setdefault(draft.answer, draft)
    rng = random.Random(_SEED)
    return items_of(build_quartets(drafts.values(), _ambiguous, rng, ITEMS // 4))


def _drafts(source: str, text: str) -> Iterator[Draft]:
    pieces = split_sentences(text)
    words: list[str] = []
    for piece in pieces:
        if len(words) >= _LEAST_CONTEXT_WORDS and is_sentence(piece, *_SENTENCE_WORDS):
            band = source, int(math.log(len(piece.encode()), 1.1))
            yield Draft(source, " ".join(words[-_CONTEXT_WORDS:]), piece, band)
        words += piece.split()


def _ambiguous(draft: Draft, other: Draft) -> bool:
    """Return True if the context of one question contains the answer of the other, as in passages that
    are close to each other."""
    return draft.answer in other.context or other.answer in draft.context
