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
    learning_rate: Positive = 3e-3  #: peak learning rate
    warmup: Share = 0.1  #: fraction of the budget in which the learning rate rises linearly
    final_learning_rate: Share = 0.1  #: fraction of the peak at the end of the cosine
    #: AdamW's weight decay of matrices; vectors and the embedding have none
    weight_decay: NotNegative = 0.1
    beta1: Share = 0.9  #: decay of AdamW's first moment
    beta2: Share = 0.95  #: decay of AdamW's second moment
    clip: Positive = 1.0  #: largest norm of the gradient; larger ones are scaled down
    #: of matmuls; auto: bfloat16 on GPUs and on CPUs with bfloat16 instructions
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  #: compile training steps; auto: on a GPU
    evaluations: Count = 8  #: points of the learning curve
    checkpoint_seconds: Positive = 30.0  #: seconds between checkpoints
