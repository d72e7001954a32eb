"""The timing of a cell."""

import numpy as np
import pytest
import torch

from modbench.measure import timing
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


def test_a_whole_batch_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(SHAPE, build_router("vanilla"))
    seen: set[tuple[int, ...]] = set()
    right = type(model).forward

    def forward(self, tokens_BT: torch.Tensor, context: Context) -> torch.Tensor:
        seen.add(tuple(tokens_BT.shape))
        return right(self, tokens_BT, context)

    monkeypatch.setattr(type(model), "forward", forward)
    train = TrainConfig(budget=1, sequence=48, batch=3)
    text_N = np.random.default_rng(0).integers(97, size=2000)
    found = timing.time_model(model, train, dtype=torch.float32, repeats=3, text=text_N)
    assert seen == {(3, 48)}
    assert found["forward_seconds"]["n"] == found["train_step_seconds"]["n"] == 3
