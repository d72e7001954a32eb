"""Checks of all items."""

import hashlib
import json
from collections import Counter, defaultdict

from made_up import made_up_text

from modbench.evaluate.tasks.heldout import HeldOut
from modbench.evaluate.tasks.words import count_words


def made_up_heldout() -> HeldOut:
    documents = tuple(made_up_text(300, seed) for seed in (1, 2))
    return HeldOut(documents, "ab", count_words([made_up_text(1500)]))


def fingerprint(built) -> str:
    text = json.dumps(list(built), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def accuracy(built, scorer) -> float:
    """Accuracy of ``scorer(context, choice)``, the first of equals counting."""
    right = 0
    for item in built:
        scores = [scorer(item["context"], choice) for choice in item["choices"]]
        right += scores.index(max(scores)) == item["answer"]
    return right / len(built)


def assert_quartets(built) -> None:
    """Each set of choices is shared by four items, or a multiple, and each choice is as often right."""
    answers = defaultdict(Counter)
    for item in built:
        answers[tuple(item["choices"])][item["answer"]] += 1
    for counts in answers.values():
        assert len(counts) == 4
        assert len(set(counts.values())) == 1
