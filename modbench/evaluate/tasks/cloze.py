"""The items of ``modbench_cloze``: which of four words ends a held-out sentence?

Only the context tells the answer from its three distractors: they end other held-out sentences, are as
frequent in the training text, end sentences as often (both within a factor of two), and are about as
long and in lower case. The items depend on the text only, not on a model or tokenizer.
"""

import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from modbench.evaluate.tasks.heldout import HeldOut
from modbench.evaluate.tasks.quartets import Draft, Item, alike, build_quartets, items_of
from modbench.evaluate.tasks.words import shuffled, word_bands

# These numbers decide the items: with another one, the version in the YAML file must be raised.
ITEMS = 2000  # a standard error of 1 point at chance
_SEED = "modbench_cloze 2"
_CONTEXT_WORDS = 24  # about 47 tokens of the default tokenizer; 48 words score no better on small models
_LEAST_CONTEXT_WORDS = 16  # fewer say less about the last word; more leave fewer items
_LEAST_SENTENCE_WORDS = 4  # before the last one
_MOST_PER_ANSWER = 4  # of 2,000 items: no word decides more than 0.2 % of the score

_ANSWER = re.compile(
    r"(?<=[a-z,;:] )[a-z]{3,}"  # one space before it, no line break
    r"(?=[.?!][\"')\]]*(?:\s+[\"'(\[]*[A-Z]|\s*\Z))"  # and then a new sentence, so not an abbreviation
)


def build_items(text: HeldOut, *, count: int = ITEMS) -> list[Item]:
    """Build up to ``count`` items, the same on every machine."""
    bands = word_bands(text.words)
    rng = random.Random(_SEED)
    used: Counter[str] = Counter()
    seen: set[str] = set()
    drafts = []
    candidates = [
        Draft(source, context, answer, bands[answer])
        for source, document in zip(text.sources, text.documents, strict=True)
        for context, answer in _sentences(document, bands)
    ]
    for draft in shuffled(rng, candidates):
        end = " ".join(re.findall(r"[a-z]+", draft.context.lower())[-8:])
        if end not in seen and used[draft.answer] < _MOST_PER_ANSWER:
            used[draft.answer] += 1
            seen.add(end)
            drafts.append(draft)
    return items_of(build_quartets(drafts, alike, rng, count // 4))


def _sentences(text: str, known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(context, last word) of each sentence of ``text`` that ends with a known word."""
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    for match in _ANSWER.finditer(text):
        before = bisect_left(starts, match.start())
        if match.group() not in known or before < _LEAST_CONTEXT_WORDS:
            continue
        context = text[starts[max(0, before - _CONTEXT_WORDS)] : match.start() - 1]
        if not any(word.endswith((".", "?", "!")) for word in context.split()[-_LEAST_SENTENCE_WORDS:]):
            yield context, match.group()
