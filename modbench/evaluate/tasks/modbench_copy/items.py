"""The items of ``modbench_copy_DISTANCE``: a sequence of random words, held-out text, and the sequence
again without its last word, which is asked.

The last word was first seen DISTANCE words earlier. The wrong choices are words of the same length and
frequency that do not occur in the context.
"""

import random
from collections.abc import Sequence

from modbench.evaluate.tasks.probe_text import Probe, ProbeText
from modbench.evaluate.tasks.quartets import Draft
from modbench.evaluate.tasks.words import random_words

_SEQUENCE = 6  # words, the one that is asked included


def _drafts(words: ProbeText, choices: Sequence[str], distance: int, seed: str) -> list[Draft]:
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


COPY = Probe("modbench_copy", _drafts)
