"""What a process of `modbench time` measures: one scheme at one size, or a machine's own ceilings at the
size's matmuls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modbench.measure.time_config import TimeConfig
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router
from modbench.routing.router import Router
from modbench.train.config import TrainConfig
from modbench.train.numerics import device, precision


@dataclass(frozen=True, kw_only=True)
class BenchmarkTarget:
    """``router`` is None where the machine alone is measured."""

    config: ModelConfig
    train: TrainConfig
    time: TimeConfig
    router: Router | None
    on: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> "BenchmarkTarget":
        """The one that ``cell`` (router, model, train, time) describes, on this machine.

        Raises:
            UserError: an unknown router, option or field, or a wrong value.
        """
        on, router = device(), cell["router"]
        # What is timed spends no budget.
        train = TrainConfig(**{**cell["train"], "budget": 1})
        return cls(
            config=ModelConfig(**cell["model"]),
            train=train,
            time=TimeConfig(**cell["time"]).resolved(train.sequence),
            router=None if router is None else build_router(router["name"], router["options"]),
            on=on,
            dtype=precision(train.precision, on),
        )

    def build(self) -> RoutedDecoder:
        """The scheme's model with random weights."""
        assert self.router is not None
        return build_model(self.config, self.router).to(self.on)
