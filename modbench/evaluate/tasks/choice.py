"""The scores of a multiple-choice item, as the YAML files name them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modbench.analysis.items import SharedChoices, centred_correct, score_item


def process_results(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, float | SharedChoices]:
    """Accuracy, bits per byte of the right answer, and margin in nats; called by lm-eval with the
    log-likelihood of each choice. The bytes are those of the scored continuation: a space and the
    answer. For `centred_accuracy`, the log-likelihoods themselves."""
    choices, answer = doc["choices"], doc["answer"]
    nats = tuple(float(result[0]) for result in results)
    scored = score_item(nats, answer, len(f" {choices[answer]}".encode()))
    return {
        "acc": scored.correct,
        "acc_centred": SharedChoices("\n".join(choices), nats, answer),
        "bits_per_byte_answer": scored.bits_per_byte,
        "margin": scored.margin,
    }


def centred_accuracy(items: Sequence[SharedChoices]) -> float:
    """Accuracy after the prior of each choice is removed, see `centred_correct`; NaN without a complete
    quartet. Called by lm-eval with the items of a task."""
    correct_N = centred_correct(SharedChoices(*item) for item in items)
    known_N = correct_N[~np.isnan(correct_N)]
    return float(known_N.mean()) if len(known_N) else math.nan
