"""The items of ``modbench_recall_DISTANCE``: four pairs ``key: value.``, held-out text, and one of the
keys again, whose value is asked.

The value was seen DISTANCE words earlier. The choices are the four values, so a model must know which
one belongs to the key: each value occurs once, and each is asked once, with filler of a length that
keeps the distance.
"""

import random
from collections.abc import Sequence

from modbench.evaluate.tasks.probe_text import Probe, ProbeText
from modbench.evaluate.tasks.quartets import Draft
from modbench.evaluate.tasks.words import random_words


def _drafts(words: ProbeText, values: Sequence[str], distance: int, seed: str) -> list[Draft]:
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


RECALL = Probe("modbench_recall", _drafts)
