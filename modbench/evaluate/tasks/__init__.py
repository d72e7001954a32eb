"""modbench's own lm-eval tasks: names, chance levels and versions; the YAML files lie in the folders
here. Light to import, so that names can be checked before lm-eval is loaded.
"""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent

#: Distances of the copy and recall probes, in words: each four times the last, so that four tasks
#: cover short and long contexts.
DISTANCES = (16, 64, 256, 1024)


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """A task, or a group of tasks with the mean of its ``members``' accuracies."""

    chance: float  #: of ``metric``, for a scorer that ignores the context
    version: int  #: scores of different versions are not comparable
    description: str
    metric: str = "acc"
    members: tuple[str, ...] = ()


def _choice(version: int, description: str, members: tuple[str, ...] = ()) -> TaskInfo:
    return TaskInfo(chance=0.25, version=version, description=description, members=members)


#: Our tasks and groups by name.
TASKS: dict[str, TaskInfo] = {
    "modbench_cloze": _choice(2, "last word of a held-out sentence, among four frequency-matched words"),
    "modbench_continuation": _choice(
        1, "next held-out sentence, among four of the same source and length"
    ),
    "modbench_bits_per_byte": TaskInfo(
        chance=8.0,  # every byte equally likely
        version=1,
        metric="bits_per_byte",
        description="bits per byte of held-out documents, in rolling windows",
    ),
    **{
        f"modbench_copy_{distance}": _choice(
            1, f"word of a repeated sequence, first seen {distance} words earlier"
        )
        for distance in DISTANCES
    },
    **{
        f"modbench_recall_{distance}": _choice(
            1, f"value of a key, seen {distance} words earlier among four pairs"
        )
        for distance in DISTANCES
    },
    "modbench_mixture_easy": _choice(
        1, "last word of a sentence that occurs for the third time, between unrelated sentences"
    ),
    "modbench_mixture_hard": _choice(
        1, "last word of a held-out sentence, with a repeated sentence in between"
    ),
}
_COPY, _RECALL, _MIXTURE = (
    tuple(name for name in TASKS if name.startswith(f"modbench_{kind}"))
    for kind in ("copy", "recall", "mixture")
)
TASKS |= {
    "modbench_copy": _choice(1, "copying a word over 16 to 1,024 words", _COPY),
    "modbench_recall": _choice(1, "key-value recall over 16 to 1,024 words", _RECALL),
    "modbench_mixture": _choice(1, "predictable and unpredictable words in one text", _MIXTURE),
    "modbench_probes": _choice(1, "copy, recall and mixture", (*_COPY, *_RECALL, *_MIXTURE)),
}
