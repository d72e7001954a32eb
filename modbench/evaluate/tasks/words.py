"""Sentences, word counts, and bands of words that only context tells apart."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_LEAST_FREQUENCY = 20  # rarer words say little about a small model
_PUNCTUATION = ".,;:!?()[]{}\"'`*_<>-"


class WordCounts(NamedTuple):
    """Counts of words in a text: all, and those followed by a full stop, ! or ?."""

    all: Counter[str]
    last: Counter[str]


def bare(token: str) -> str:
    """``token`` without surrounding punctuation."""
    return token.strip(_PUNCTUATION)


def count_words(texts: Iterable[str]) -> WordCounts:
    """Count words without surrounding punctuation; case matters."""
    tokens = Counter(token for text in texts for token in text.split())
    words = WordCounts(all=Counter(), last=Counter())
    for token, count in tokens.items():
        word = bare(token)
        words.all[word] += count
        if token.rstrip("\"')]").endswith((".", "?", "!")):
            words.last[word] += count
    return words


def word_bands(words: WordCounts) -> dict[str, tuple[int, int, int]]:
    """The band of each plain word: words of one band have about the same length and, within a factor of
    two, the same frequency, overall and at the end of sentences."""
    bands = {}
    for word, count in words.all.items():
        plain = len(word) >= 3 and word.isascii() and word.isalpha() and word.islower()
        # Words that are often names would be poor distractors.
        if plain and count >= _LEAST_FREQUENCY and words.all[word.capitalize()] * 4 <= count:
            bands[word] = (
                min(len(word), 9) // 2,
                count.bit_length(),
                (words.last[word] + 1).bit_length(),
            )
    return bands


def overlap(word: str, other: str) -> bool:
    """Return True if a word is a prefix of the other: a tokenizer may then add their probabilities."""
    return word.startswith(other) or other.startswith(word)


def shuffled(rng: random.Random, pool: Iterable[T]) -> list[T]:
    """``pool`` in random order; the same in every version of Python, which only ``Random.random``
    guarantees."""
    drawn = list(pool)
    for index in range(len(drawn)):
        other = index + int(rng.random() * (len(drawn) - index))
        drawn[index], drawn[other] = drawn[other], drawn[index]
    return drawn


def random_words(
    rng: random.Random, pool: Sequence[str], number: int, avoided: Iterable[str] = ()
) -> list[str]:
    """Draw ``number`` words of ``pool``, none a prefix of another or of those ``avoided``; fewer if a
    hundred times as many draws don't find them."""
    taken = list(avoided)
    drawn = list[str]()
    for _ in range(100 * number):
        word = pool[int(rng.random() * len(pool))]
        if len(drawn) < number and not any(overlap(word, other) for other in taken):
            taken.append(word)
            drawn.append(word)
    return drawn


#: White space after the end of a sentence and before a capital letter, or a blank line.
_BOUNDARY = re.compile(
    r"(?:(?<=[.?!])|(?<=[.?!][\"')\]])|(?<=[.?!][\"')\]]{2}))"
    r"(?<!e\.g\.)(?<!i\.e\.)\s+(?=[\"'(\[]*[A-Z])|\n\s*\n"
)
_WHOLE = re.compile(r"[\"'(\[]*[A-Z].*[.?!][\"')\]]*", re.DOTALL)


def split_sentences(text: str) -> list[str]:
    """The sentences, headings and labels of ``text`` in order, with single spaces between words."""
    pieces = (" ".join(piece.split()) for piece in _BOUNDARY.split(text))
    return [piece for piece in pieces if piece]


def is_sentence(piece: str, least: int, most: int) -> bool:
    """Return True if ``piece`` starts with a capital letter, ends with a full stop, ! or ?, and has
    ``least`` to ``most`` words."""
    return least <= piece.count(" ") + 1 <= most and _WHOLE.fullmatch(piece) is not None
