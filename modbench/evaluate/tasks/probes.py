"""The copy and recall probes: a word that was seen a number of words earlier, among four."""

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from modbench.evaluate.tasks.heldout import HeldOut
from modbench.evaluate.tasks.quartets import Draft, Item, alike, build_quartets, items_of
from modbench.evaluate.tasks.words import bare, random_words, word_bands

# These numbers decide the items: with another one, the version in the YAML files must be raised.
QUARTETS = 100  # 400 items: a standard error of 2 points at chance
_COMMON = 1000  # words that a small model has seen often
_SEQUENCE = 6  # words of a copy probe, the one that is asked included
_MOST_PER_ANSWER = 4  # of 400 items: no word decides more than 1 % of the score


@dataclass(frozen=True)
class ProbeText:
    """``common``: frequent words of the held-out text, the most frequent first. ``streams``: the words
    of all held-out documents by source."""

    common: tuple[str, ...]
    bands: dict[str, tuple[int, int, int]]
    streams: dict[str, list[str]]

    def quartets(self, rng: random.Random) -> list[list[str]]:
        """Up to ``QUARTETS`` times four common words of one band; no word in more than four."""
        drafts = [
            Draft("", str(number), word, self.bands[word])
            for word in self.common
            for number in range(_MOST_PER_ANSWER)
        ]
        quartets = build_quartets(drafts, alike, rng, count=QUARTETS)
        return [[draft.answer for draft in quartet] for quartet in quartets]

    def filler(self, rng: random.Random, length: int, avoided: Collection[str]) -> tuple[str, list[str]]:
        """(source, ``length`` words of held-out text in a row, those in ``avoided`` left out). The text
        continues at its start after its end; fewer words if it is too short."""
        names = sorted(self.streams)
        source = names[int(rng.random() * len(names))]
        stream = self.streams[source]
        start = int(rng.random() * len(stream))
        in_turn = (stream[(start + step) % len(stream)] for step in range(len(stream)))
        kept = (word for word in in_turn if bare(word).lower() not in avoided)
        return source, list(islice(kept, length))


@lru_cache(maxsize=2)
def probe_text(text: HeldOut) -> ProbeText:
    """The words and streams of ``text``."""
    streams: dict[str, list[str]] = defaultdict(list)
    for source, document in zip(text.sources, text.documents, strict=True):
        streams[source] += document.split()
    bands = word_bands(text.words)
    present = {bare(word) for words in streams.values() for word in words} & bands.keys()
    common = sorted(present, key=lambda word: (-text.words.all[word], word))[:_COMMON]
    return ProbeText(tuple(common), bands, dict(streams))


def build_items(kind: str, text: HeldOut, *, distance: int) -> list[Item]:
    """Build the items of ``modbench_KIND_DISTANCE``, the same on every machine, of the same words and
    filler at every distance."""
    words, drafts_of = probe_text(text), {"copy": _copy, "recall": _recall}[kind]
    seed = f"modbench_{kind} 1"
    quartets: list[list[Draft]] = []
    for choices in words.quartets(random.Random(seed)):
        drafts = drafts_of(words, choices, distance, f"{seed} {len(quartets)}")
        if len(drafts) == 4:  # fewer if the text is too short
            quartets.append(drafts)
    return items_of(quartets)


def _copy(words: ProbeText, choices: Sequence[str], distance: int, seed: str) -> list[Draft]:
    """Random words, held-out text, and the words again without the last, which is asked. It was first
    seen ``distance`` words earlier; the other choices are words of the same length and frequency that do
    not occur in the context."""
    drafts = []
    for answer in choices:
        draw = random.Random(f"{seed} {answer}")
        cue = random_words(draw, words.common, _SEQUENCE - 1, avoided=choices)
        length = distance - _SEQUENCE
        source, filler = words.filler(draw, length, {*choices, *cue})
        if len(cue) == _SEQUENCE - 1 and len(filler) == length:
            context = "\n".join((" ".join([*cue, answer]), " ".join(filler), " ".join(cue)))
            drafts.append(Draft(source, context, answer, None))
    return drafts


def _recall(words: ProbeText, values: Sequence[str], distance: int, seed: str) -> list[Draft]:
    """Four pairs ``key: value.``, held-out text, and one of the keys again, whose value is asked; it was
    seen ``distance`` words earlier. The choices are the four values, so a model must know which one
    belongs to the key: each is asked once, with filler of a length that keeps the distance."""
    draw = random.Random(seed)
    keys = random_words(draw, words.common, 4, avoided=values)
    # Two words per later pair, the key that is asked, and the value itself.
    lengths = [distance - 2 * (3 - pair) - 2 for pair in range(4)]
    source, filler = words.filler(draw, max(lengths), {*values, *keys})
    if len(keys) < 4 or len(filler) < max(lengths):
        return []
    pairs = " ".join(f"{key}: {value}." for key, value in zip(keys, values, strict=True))
    return [
        Draft(source, f"{pairs}\n{' '.join(filler[:length])}\n{key}:", value, None)
        for key, value, length in zip(keys, values, lengths, strict=True)
    ]
