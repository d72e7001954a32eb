"""The items of ``modbench_cloze``: which of four words ends a held-out sentence?

Only the context tells the answer from its three distractors: they are as frequent in the training text,
end sentences as often (both within a factor of two), and are about as long and in lower case. The items
depend on the text only, not on a model or tokenizer.
"""

import random
import re
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from modbench.data.config import DataConfig
from modbench.data.token_data import load
from modbench.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from modbench.data.tokenizer import Tokenizer

T = TypeVar("T")
Item = dict[str, Any]

ITEMS = 600
LEAST_ITEMS = 100  # fewer would have a standard error of five points and more
_SEED = "modbench_cloze 1"
_CONTEXT_WORDS = 24  # about 47 tokens of the default tokenizer; 48 words score no better on small models
_LEAST_CONTEXT_WORDS = 16
_LEAST_SENTENCE_WORDS = 4  # before the last one
_LEAST_FREQUENCY = 20  # rarer words say little about a small model
_LEAST_POOL = 8  # words to draw three distractors from
_MOST_PER_ANSWER = 4

#: Source of each held-out piece of the embedded corpus, in order: s Shakespeare, b Bible, d Django; a
#: dot for a second translation of a passage, which is left out.
PIECES = (
    "sb..d.bdb.bsdbsb.bdssb.dsd.b.bs.b.dbbdsbsssb.bb.dbbsss..b.s.b.d..dbd"
    "dsbbbd.b.ss.s.dsbsbdb...dbds..b..sb.sbs..bssb..bddbsb.sb.b.bb...bsbs"
    "sbdbbd..bb...sb..bd.d.bsbdsb..sbsss.bb..d...bs..d..sbbbb.sdsb.dbb."
)

_PUNCTUATION = ".,;:!?()[]{}\"'`*_<>-"
_ANSWER = re.compile(
    r"(?<=[a-z,;:] )[a-z]{3,}"  # one space before it, no line break
    r"(?=[.?!][\"')\]]*(?:\s+[\"'(\[]*[A-Z]|\s*\Z))"  # and then a new sentence, so not an abbreviation
)


def dataset(data: Mapping[str, Any] | None = None, **_: Any) -> "dict[str, Dataset]":
    """The task's documents; called by lm-eval with its metadata.

    Args:
        data: the fields of a `DataConfig`; None: the embedded corpus.

    Raises:
        UserError: as `items`.
    """
    from datasets import Dataset

    return {"validation": Dataset.from_list(list(items(DataConfig(**(data or {})))))}


@lru_cache(maxsize=4)
def items(config: DataConfig) -> tuple[Item, ...]:
    """The items, ``{"source", "context", "choices", "answer"}``, alternating between sources. Raises
    UserError: the corpus is missing or altered, or has too few suitable sentences."""
    data = load(config)
    heldout = _documents(data.heldout_N, data.tokenizer)
    words = count_words(_documents(data.train_N, data.tokenizer))
    pieces = PIECES if config.source == "pypi-en-v1" else None
    built = tuple(build_items(heldout, words, sources=pieces))
    if len(built) < LEAST_ITEMS:
        raise UserError(
            f"the held-out part of data source '{config.source}' yields {len(built)} cloze items, but "
            f"modbench_cloze needs {LEAST_ITEMS}; give more text, or take it out of measure downstream"
        )
    return built


def _documents(stream_N: "np.ndarray", tokenizer: "Tokenizer") -> list[str]:
    """Split the token stream at end-of-text tokens, and decode."""
    ends = np.flatnonzero(stream_N == tokenizer.end_of_text)
    return [tokenizer.decode(ids_N.tolist()) for ids_N in np.split(stream_N, ends + 1) if len(ids_N)]


class WordCounts(NamedTuple):
    """Counts of words in a text: all, and those followed by a full stop, ! or ?."""

    all: Counter[str]
    last: Counter[str]


def count_words(texts: Iterable[str]) -> WordCounts:
    """Count words without surrounding punctuation; case matters."""
    tokens = Counter(token for text in texts for token in text.split())
    words = WordCounts(all=Counter(), last=Counter())
    for token, count in tokens.items():
        word = token.strip(_PUNCTUATION)
        words.all[word] += count
        if token.rstrip("\"')]").endswith((".", "?", "!")):
            words.last[word] += count
    return words


def build_items(
    heldout: Sequence[str], words: WordCounts, *, sources: str | None = None, count: int = ITEMS
) -> list[Item]:
    """Build up to ``count`` items, the same on every machine.

    Args:
        heldout: documents not used in training.
        words: counts in the training text.
        sources: one letter per document, a dot for one to leave out; items are divided evenly among
            letters as far as possible. None: one source.
    """
    sources = "-" * len(heldout) if sources is None else sources
    bands = _bands(words)
    band_of = {word: band for band in bands for word in band}
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for source, text in zip(sources, heldout, strict=True):
        if source != ".":
            found[source] += _sentences(text, band_of)

    used: Counter[str] = Counter()
    seen: set[str] = set()
    turns = deque((name, _drafts(name, found[name], band_of, used, seen)) for name in sorted(found))
    drafts: list[tuple[str, str, str, list[str]]] = []
    while turns and len(drafts) < count:
        source, queue = turns.popleft()
        if draft := next(queue, None):
            drafts.append((source, *draft))
            turns.append((source, queue))
    places = _shuffled(random.Random(_SEED), [number % 4 for number in range(len(drafts))])
    return [
        {
            "source": source,
            "context": context,
            "choices": [*wrong[:place], answer, *wrong[place:]],
            "answer": place,
        }
        for (source, context, answer, wrong), place in zip(drafts, places, strict=True)
    ]


def _bands(words: WordCounts) -> list[tuple[str, ...]]:
    """Group words of similar length and frequencies. Bands are fixed, since an answer would stand out
    as the centre of its nearest neighbours."""
    bands: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for word, count in words.all.items():
        plain = len(word) >= 3 and word.isascii() and word.isalpha() and word.islower()
        # Words that are often names would be poor distractors.
        if plain and count >= _LEAST_FREQUENCY and words.all[word.capitalize()] * 4 <= count:
            band = min(len(word), 9) // 2, count.bit_length(), (words.last[word] + 1).bit_length()
            bands[band].append(word)
    return [tuple(sorted(band)) for band in bands.values()]


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


def _drafts(
    source: str,
    sentences: Sequence[tuple[str, str]],
    band_of: Mapping[str, tuple[str, ...]],
    used: Counter[str],
    seen: set[str],
) -> Iterator[tuple[str, str, list[str]]]:
    """(context, answer, three distractors), in random order. ``used`` (answers) and ``seen`` (ends of
    sentences) are shared among sources."""
    rng = random.Random(f"{_SEED} {source}")
    for context, answer in _shuffled(rng, sentences):
        end = " ".join(re.findall(r"[a-z]+", context.lower())[-8:])
        # If a word is a prefix of another, a tokenizer may add their probabilities.
        pool = [word for word in band_of[answer] if not _overlap(word, answer)]
        if end in seen or used[answer] >= _MOST_PER_ANSWER or len(pool) < _LEAST_POOL:
            continue
        wrong: list[str] = []
        for word in _shuffled(rng, pool):
            if len(wrong) < 3 and not any(_overlap(word, other) for other in wrong):
                wrong.append(word)
        if len(wrong) == 3:
            used[answer] += 1
            seen.add(end)
            yield context, answer, wrong


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _shuffled(rng: random.Random, pool: Sequence[T]) -> list[T]:
    """``pool`` in random order; the same in every version of Python, which only ``Random.random``
    guarantees."""
    drawn = list(pool)
    for place in range(len(drawn)):
        other = place + int(rng.random() * (len(drawn) - place))
        drawn[place], drawn[other] = drawn[other], drawn[place]
    return drawn
