"""The target of a timing or memory measurement: a scheme at one size, or only the machine."""

from dataclasses import dataclass

import torch

from modbench.hf.config import stretched
from modbench.hf.models import model_of, outline_of
from modbench.model.language_model import LanguageModel
from modbench.model.shape import HubConfig, Shape
from modbench.records.run import RouterCode, Timed
from modbench.timing.config import TimeConfig
from modbench.train.config import TrainConfig
from modbench.train.numerics import device, precision


@dataclass(frozen=True, kw_only=True)
class BenchmarkTarget:
    """``router`` is None if only the machine is measured."""

    config: Shape
    train: TrainConfig
    time: TimeConfig
    router: RouterCode | None
    on: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, timed: Timed, time: TimeConfig) -> "BenchmarkTarget":
        """Build for this machine. Raises UserError: an unknown router, option or field, or a wrong
        value."""
        on = device()
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
            router=timed.router,
            on=on,
            dtype=precision(train.precision, on),
        )

    @property
    def _shape(self) -> Shape:
        """The shape, with positions for all timed lengths: a learned position embedding has a row for
        each."""
        if not isinstance(self.config, HubConfig):
            return self.config
        time = self.time
        return stretched(self.config, max(*time.prefill, max(time.decode_past) + time.decode_tokens))

    def build(self) -> LanguageModel:
        """Build the scheme's model with random weights."""
        assert self.router is not None
        return model_of(self._shape, self.router.name, self.router.options).to(self.on)

    def outline(self) -> LanguageModel:
        """Build the model on the meta device, without values."""
        assert self.router is not None
        return outline_of(self._shape, self.router.name, self.router.options)
