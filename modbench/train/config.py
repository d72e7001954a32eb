"""The [train] table of a suite. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from modbench.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training settings. Raise a `UserError` for a field out of range."""

    budget: int  #: training FLOPs of the realised routing, convention ``model``
    sequence: int = 256  #: tokens per sequence
    batch: int = 8  #: sequences per step
    learning_rate: float = 3e-3  #: peak
    warmup: float = 0.1  #: fraction of the budget in which the learning rate rises linearly
    final_learning_rate: float = 0.1  #: fraction of the peak at the end of the cosine
    weight_decay: float = 0.1  #: of matrices; vectors and the embedding have none
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0  #: gradient norm
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  #: auto: bfloat16 where it pays
    compile: Literal["auto", "on", "off"] = "auto"  #: compile training steps; auto: on a GPU
    evaluations: int = 8  #: points of the learning curve
    checkpoint_seconds: float = 30.0  #: seconds between checkpoints

    def __post_init__(self) -> None:
        for name in ("budget", "sequence", "batch", "evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"train {name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("learning_rate", "clip", "checkpoint_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"train {name} is {getattr(self, name)}; it must be above 0")
        for name in ("warmup", "final_learning_rate", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train {name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.weight_decay < 0:
            raise UserError(f"train weight_decay is {self.weight_decay}; it must be 0 or more")
