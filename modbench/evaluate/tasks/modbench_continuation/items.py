"""The items of ``modbench_continuation``: which of four sentences follows in the held-out text?

The three wrong ones follow other passages of the same source, and differ by at most a tenth in length.
"""

import math
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

from modbench.data.config import DataConfig
from modbench.evaluate.tasks.heldout import enough, read_heldout
from modbench.evaluate.tasks.quartets import Draft, Item, build_quartets, items_of
from modbench.evaluate.tasks.words import is_sentence, split_sentences

# These numbers decide the items: with another one, the version in the YAML file must be raised.
ITEMS = 1000  # a standard error of 1.4 points at chance
_SEED = "modbench_continuation 1"
_CONTEXT_WORDS = 40  # as many as two of the longest sentences
_LEAST_CONTEXT_WORDS = 16  # as in modbench_cloze
_SENTENCE_WORDS = (6, 20)  # least and most


@lru_cache(maxsize=4)
def items(config: DataConfig) -> tuple[Item, ...]:
    """The items, ``{"source", "context", "choices", "answer"}``. Raises UserError: the corpus is missing
    or altered, or has too few suitable sentences."""
    text = read_heldout(config)
    built = tuple(build_items(text.documents, sources=text.sources))
    enough("modbench_continuation", config, built)
    return built


def build_items(heldout: Sequence[str], *, sources: str | None = None, count: int = ITEMS) -> list[Item]:
    """Build up to ``count`` items from documents not used in training, the same on every machine.
    ``sources``: one letter per document; None: one source."""
    drafts: dict[str, Draft] = {}
    for source, text in zip(sources or "-" * len(heldout), heldout, strict=True):
        for draft in _drafts(source, text):
            drafts.setdefault(draft.answer, draft)
    rng = random.Random(_SEED)
    return items_of(build_quartets(drafts.values(), _ambiguous, rng, count // 4))


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
