"""The target of a timing or memory measurement: a scheme at one size, or only the machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model, outline
from modbench.routing.registry import build_router
from modbench.routing.router import Router
from modbench.timing.config import TimeConfig
from modbench.train.config import TrainConfig
from modbench.train.numerics import device, precision


@dataclass(frozen=True, kw_only=True)
class BenchmarkTarget:
    """``router`` is None if only the machine is measured."""

    config: ModelConfig
    train: TrainConfig
    time: TimeConfig
    router: Router | None
    on: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> "BenchmarkTarget":
        """Build from ``cell`` (router, model, train, time) for this machine. Raises UserError: an
        unknown router, option or field, or a wrong value."""
        on, router = device(), cell["router"]
        # Timing spends no budget.
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
        """Build the scheme's model with random weights."""
        assert self.router is not None
        return build_model(self.config, self.router).to(self.on)

    def outline(self) -> RoutedDecoder:
        """Build the model on the meta device, without values."""
        assert self.router is not None
        return outline(self.config, self.router)
