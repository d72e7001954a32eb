"""The items of ``modbench_copy_DISTANCE``: a sequence of random words, held-out text, and the sequence
again without its last word, which is asked.

The last word was first seen DISTANCE words earlier. The wrong choices are words of the same length and
frequency that do not occur in the context.
"""

import random
from functools import lru_cache

from modbench.data.config import DataConfig
from modbench.measure.tasks.heldout import HeldOut, enough, read_heldout
from modbench.measure.tasks.probe_text import probe_text
from modbench.measure.tasks.quartets import Draft, Item, items_of
from modbench.measure.tasks.words import random_words

_SEED = "modbench_copy 1"  # the same words and filler at every distance
_SEQUENCE = 6  # words, the one that is asked included


@lru_cache(maxsize=16)
def items(config: DataConfig, *, distance: int) -> tuple[Item, ...]:
    """The items, ``{"source", "context", "choices", "answer"}``. Raises UserError: the corpus is missing
    or altered, or its text is too short."""
    built = tuple(build_items(read_heldout(config), distance=distance))
    enough(f"modbench_copy_{distance}", config, built)
    return built


def build_items(text: HeldOut, *, distance: int) -> list[Item]:
    """Build the items, the same on every machine."""
    probe = probe_text(text)
    rng = random.Random(_SEED)
    quartets: list[list[Draft]] = []
    for choices in probe.quartets(rng):
        drafts = []
        for answer in choices:
            draw = random.Random(f"{_SEED} {len(quartets)} {answer}")
            cue = random_words(draw, probe.common, _SEQUENCE - 1, avoided=choices)
            length = distance - _SEQUENCE
            source, filler = probe.filler(draw, length, {*choices, *cue})
            if len(cue) == _SEQUENCE - 1 and len(filler) == length:
                context = "\n".join((" ".join([*cue, answer]), " ".join(filler), " ".join(cue)))
                drafts.append(Draft(source, context, answer, None))
        if len(drafts) == 4:
            quartets.append(drafts)
    return items_of(quartets)
