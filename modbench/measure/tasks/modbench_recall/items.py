"""The items of ``modbench_recall_DISTANCE``: four pairs ``key: value.``, held-out text, and one of the
keys again, whose value is asked.

The value was seen DISTANCE words earlier. The choices are the four values, so a model must know which
one belongs to the key: each value occurs once, and each is asked once, with filler of a length that
keeps the distance.
"""

import random
from functools import lru_cache

from modbench.data.config import DataConfig
from modbench.measure.tasks.heldout import HeldOut, enough, read_heldout
from modbench.measure.tasks.probe_text import probe_text
from modbench.measure.tasks.quartets import Draft, Item, items_of
from modbench.measure.tasks.words import random_words

_SEED = "modbench_recall 1"  # the same pairs and filler at every distance


@lru_cache(maxsize=16)
def items(config: DataConfig, *, distance: int) -> tuple[Item, ...]:
    """The items, ``{"source", "context", "choices", "answer"}``. Raises UserError: the corpus is missing
    or altered, or its text is too short."""
    built = tuple(build_items(read_heldout(config), distance=distance))
    enough(f"modbench_recall_{distance}", config, built)
    return built


def build_items(text: HeldOut, *, distance: int) -> list[Item]:
    """Build the items, the same on every machine."""
    probe = probe_text(text)
    rng = random.Random(_SEED)
    quartets: list[list[Draft]] = []
    for values in probe.quartets(rng):
        draw = random.Random(f"{_SEED} {len(quartets)}")
        keys = random_words(draw, probe.common, 4, avoided=values)
        # Two words per later pair, the key that is asked, and the value itself.
        lengths = [distance - 2 * (3 - place) - 2 for place in range(4)]
        source, filler = probe.filler(draw, max(lengths), {*values, *keys})
        if len(keys) == 4 and len(filler) == max(lengths):
            pairs = " ".join(f"{key}: {value}." for key, value in zip(keys, values, strict=True))
            quartets.append(
                [
                    Draft(source, f"{pairs}\n{' '.join(filler[:length])}\n{key}:", value, None)
                    for key, value, length in zip(keys, values, lengths, strict=True)
                ]
            )
    return items_of(quartets)
