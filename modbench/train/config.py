"""The [train] table of a suite. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from modbench.typed import Count, NotNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training settings. Ranges are checked where a suite is read."""

    budget: Count  #: training FLOPs of the realised routing, convention ``model``
    sequence: Count = 256  #: tokens per sequence
    batch: Count = 8  #: sequences per step
    learning_rate: Positive = 3e-3  #: peak
    warmup: Share = 0.1  #: fraction of the budget in which the learning rate rises linearly
    final_learning_rate: Share = 0.1  #: fraction of the peak at the end of the cosine
    weight_decay: NotNegative = 0.1  #: of matrices; vectors and the embedding have none
    beta1: Share = 0.9
    beta2: Share = 0.95
    clip: Positive = 1.0  #: gradient norm
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  #: auto: bfloat16 where it pays
    compile: Literal["auto", "on", "off"] = "auto"  #: compile training steps; auto: on a GPU
    evaluations: Count = 8  #: points of the learning curve
    checkpoint_seconds: Positive = 30.0  #: seconds between checkpoints
