"""The model that an audit of a scheme runs on: a few training steps after initialisation.

B sequences, T tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch

from modbench.measure.audit.finding import Subject
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig
from modbench.train.loop import build_optimizer, training_step
from modbench.train.numerics import device

#: Training steps before the audit, so that thresholds, biases and predictors have changed.
STEPS = 8
#: Small, since a few steps at the full rate teach a predictor to skip all tokens.
RATE = 1e-4
#: Sequences of a training step, and their longest length.
SEQUENCES, LONGEST = 4, 64
#: The odd shape of every audit, and the number of sequences at the length of the given size.
ODD, LONG = (3, 63), 2


def warmed(
    config: ModelConfig, name: str, options: Mapping[str, Any], seed: int, sequence: int
) -> RoutedDecoder:
    """Build a model and train it for a few steps on random tokens, ``sequence`` (at most `LONGEST`) in
    each sequence."""
    model = build_model(config, build_router(name, options), seed).to(device())
    train = TrainConfig(budget=1, learning_rate=RATE)
    optimizer = build_optimizer(model, train)
    subject = Subject(model, seed)
    for number in range(STEPS):
        text_BT = subject.tokens(SEQUENCES, min(sequence, LONGEST) + 1, draw=1 + number)
        batch = text_BT[:, :-1], text_BT[:, 1:]
        training_step(model.train(), optimizer, train, batch, torch.float32)
    return model.eval()
