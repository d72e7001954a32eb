"""Statistics on the items of a task. Shapes: N items."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from modbench.analysis.noise import Array


class ItemScore(NamedTuple):
    """Scores of one multiple-choice item, see `score_item`."""

    correct: float
    bits_per_byte: float
    margin: float


def score_item(choices_nats: Sequence[float], answer: int, answer_bytes: int) -> ItemScore:
    """Score one item from the log-probabilities of its choices.

    Args:
        choices_nats: ln p(choice | context), summed over the tokens of the choice.
        answer: index of the right choice.
        answer_bytes: UTF-8 bytes of the right choice as scored, with the delimiter before it.

    Returns:
        ``correct``: 1 if the right choice has the highest log-probability, else 0; the first of equals
        counts, as in lm-eval. ``bits_per_byte``: ``-choices_nats[answer] / (ln 2 * answer_bytes)``.
        ``margin``: log-probability of the right choice minus that of the best wrong one, in nats; NaN
        without a wrong choice.
    """
    right = choices_nats[answer]
    wrong = [*choices_nats[:answer], *choices_nats[answer + 1 :]]
    return ItemScore(
        correct=float(max(range(len(choices_nats)), key=choices_nats.__getitem__) == answer),
        bits_per_byte=-right / (math.log(2) * answer_bytes),
        margin=right - max(wrong) if wrong else math.nan,
    )


class SharedChoices(NamedTuple):
    """Log-probabilities of the choices of one item; items with equal ``key`` have the same choices."""

    key: str
    choices_nats: tuple[float, ...]
    answer: int


def centred_correct(items: Iterable[SharedChoices]) -> Array:
    """Correctness after the prior of each choice is removed: array (N,) of 1, 0 and NaN.

    From the log-probability of a choice, its mean over the items with the same choices is subtracted, so
    that a preference for a frequent word costs nothing. NaN for the items of a key whose choices are not
    equally often the answer, such as those cut off by a limit: knowing the other items would help there.
    """
    items = list(items)
    places: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        places[item.key].append(index)
    correct_N = np.full(len(items), math.nan)
    for group in places.values():
        nats = np.array([items[index].choices_nats for index in group], dtype=np.float64)
        answers = np.array([items[index].answer for index in group])
        if len(set(np.bincount(answers, minlength=nats.shape[1]))) == 1:
            correct_N[group] = (nats - nats.mean(axis=0)).argmax(axis=1) == answers
    return correct_N


def mean_with_stderr(values: Sequence[float] | Array) -> tuple[float, float]:
    """Mean and its standard error, ``s / sqrt(N)`` with ``s`` from N - 1 degrees of freedom; NaN for
    fewer than two items."""
    values_N = np.asarray(values, dtype=np.float64)
    if len(values_N) < 2:
        return (float(values_N[0]) if len(values_N) else math.nan), math.nan
    return float(values_N.mean()), float(values_N.std(ddof=1) / math.sqrt(len(values_N)))
