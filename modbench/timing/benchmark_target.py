"""The target of a timing or memory measurement: a scheme at one size, or only the machine."""

from dataclasses import dataclass

import torch

from modbench.model.config import ModelConfig
from modbench.records.run import Timed
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
    def of(cls, timed: Timed, time: TimeConfig) -> "BenchmarkTarget":
        """Build for this machine. Raises UserError: an unknown router, option or field, or a wrong
        value."""
        on = device()
        router = timed.router
        train = TrainConfig(
            sequence=timed.sequence,
            batch=timed.batch,
            micro_batch=timed.micro_batch,
            recompute=timed.recompute,
            precision=timed.precision,  # type: ignore[arg-type]
        )
        return cls(
            config=timed.model,
            train=train,
            time=time.resolved(timed.sequence),
            router=None if router is None else build_router(router.name, router.options),
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
