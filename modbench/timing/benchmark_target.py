"""The target of a timing or memory measurement: a scheme at one size, or only the machine."""

from dataclasses import dataclass
from typing import Any

import torch

from modbench.hf.config import stretched
from modbench.hf.models import model_of, outline_of
from modbench.model.language_model import LanguageModel
from modbench.model.shape import TRANSFORMERS, HubConfig, Shape
from modbench.records.run import Timed
from modbench.routing.build import build_model, outline
from modbench.routing.registry import build_router
from modbench.routing.router import Router
from modbench.timing.config import TimeConfig
from modbench.train.config import TrainConfig
from modbench.train.numerics import device, precision


@dataclass(frozen=True, kw_only=True)
class BenchmarkTarget:
    """``router`` is None if only the machine is measured, or a model of transformers as it is."""

    config: Shape
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
        router = None
        if timed.router is not None and timed.router.name != TRANSFORMERS:
            router = build_router(timed.router.name, timed.router.options)
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
            router=router,
            on=on,
            dtype=precision(train.precision, on),
        )

    def build(self) -> LanguageModel:
        """Build the scheme's model with random weights."""
        if isinstance(self.config, HubConfig):
            return model_of(self._stretched(self.config), *self._stated).to(self.on)
        assert self.router is not None
        return build_model(self.config, self.router).to(self.on)

    def outline(self) -> LanguageModel:
        """Build the model on the meta device, without values."""
        if isinstance(self.config, HubConfig):
            return outline_of(self._stretched(self.config), *self._stated)
        assert self.router is not None
        return outline(self.config, self.router)

    @property
    def _stated(self) -> tuple[str, dict[str, Any]]:
        """Name and options of the router of a model of transformers."""
        return (TRANSFORMERS, {}) if self.router is None else (self.router.name, self.router.options())

    def _stretched(self, shape: HubConfig) -> HubConfig:
        """``shape`` with positions for all timed lengths: a learned position embedding has a row for
        each."""
        time = self.time
        return stretched(shape, max(*time.prefill, max(time.decode_past) + time.decode_tokens))
