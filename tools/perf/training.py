"""Training steps of any scheme on made-up text, as a run takes them.

B sequences, T tokens, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.compiled import compiled, eager
from modbench.train.config import TrainConfig
from modbench.train.optimizer import build_optimizer
from modbench.train.step import training_step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class MadeUpText:
    """Batches of tokens, a new one at each call. Frequencies fall with rank, as in text, and change from
    batch to batch, as with the topic: what routers send to an expert changes with them."""

    def __init__(
        self, vocabulary: int, sequences: int, tokens: int, on: torch.device | str = "cpu"
    ) -> None:
        self._shape, self._on = (sequences, tokens + 1), on
        self._usual_V = 1 / torch.arange(10, vocabulary + 10)
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (B, T) each."""
        topic_V = (0.5 * torch.randn(len(self._usual_V), generator=self._generator)).exp()
        sequences, tokens = self._shape
        drawn = torch.multinomial(
            self._usual_V * topic_V, sequences * tokens, replacement=True, generator=self._generator
        )
        window_BT = drawn.view(sequences, tokens).to(self._on)
        return window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()


class Trained:
    """A model of ``router`` in training: called with a batch, it takes a step and gives the loss."""

    def __init__(
        self,
        router: str,
        shape: ModelConfig,
        dtype: torch.dtype,
        on: torch.device | str = "cpu",
        compile: Literal["auto", "on", "off"] = "auto",
        **options: object,
    ) -> None:
        self.train = TrainConfig(compile=compile)
        self.dtype = dtype
        self.model = build_model(shape, build_router(router, options)).to(on).train()
        self.optimizer = build_optimizer(self.model, self.train)
        self.losses = compiled(eager(self.model), self.model, self.train.compile)

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        batch = (inputs_BT, targets_BT)
        return training_step(
            self.model, self.optimizer, self.train, batch, self.dtype, losses=self.losses
        )[0]

    def flops(self, sequences: int, tokens: int) -> int:
        """Nominal FLOPs of one step, convention ``model``."""
        return self.model.ledger(Workload.uniform(sequences, tokens, "train")).total("model")
