"""The copy and recall probes: their words and filler, and their items."""

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from modbench.data.config import DataConfig
from modbench.evaluate.tasks.heldout import HeldOut, enough, read_heldout
from modbench.evaluate.tasks.quartets import Draft, Item, build_quartets, items_of
from modbench.evaluate.tasks.words import bare, overlap, word_bands

# These numbers decide the items: with another one, the version in the YAML files must be raised.
QUARTETS = 100  # 400 items: a standard error of 2 points at chance
_COMMON = 1000  # words that a small model has seen often
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
        quartets = build_quartets(
            drafts, lambda first, second: overlap(first.answer, second.answer), rng, count=QUARTETS
        )
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


@dataclass(frozen=True)
class Probe:
    """The tasks ``TASK_DISTANCE``.

    ``drafts(words, choices, distance, seed)`` returns the four drafts of a quartet with the answers
    ``choices``; fewer if the text is too short for them.
    """

    task: str
    drafts: Callable[[ProbeText, Sequence[str], int, str], list[Draft]]

    def items(self, config: DataConfig, *, distance: int) -> tuple[Item, ...]:
        """The items, ``{"source", "context", "choices", "answer"}``. Raises UserError: the corpus is
        missing or altered, or its text is too short."""
        return _items(self, config, distance)

    def build_items(self, text: HeldOut, *, distance: int) -> list[Item]:
        """Build the items, the same on every machine, of the same words and filler at every distance."""
        words = probe_text(text)
        seed = f"{self.task} 1"
        quartets: list[list[Draft]] = []
        for choices in words.quartets(random.Random(seed)):
            drafts = self.drafts(words, choices, distance, f"{seed} {len(quartets)}")
            if len(drafts) == 4:
                quartets.append(drafts)
        return items_of(quartets)


@lru_cache(maxsize=32)
def _items(probe: Probe, config: DataConfig, distance: int) -> tuple[Item, ...]:
    built = tuple(probe.build_items(read_heldout(config), distance=distance))
    enough(f"{probe.task}_{distance}", config, built)
    return built
