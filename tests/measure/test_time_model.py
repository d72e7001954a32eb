"""The timings of `modbench run`: which runs are timed, by which clock, and with which settings."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modbench.measure import timing
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


def test_a_pass_and_a_step_are_timed_warm_and_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the first three of each move by 100 s, then a pass by 1 s and a step by 3 s."""
    now, passes, steps = [0.0], [0], [0]
    seen: set[tuple[Any, ...]] = set()

    def spend(runs: list[int], seconds: float) -> None:
        runs[0] += 1
        now[0] += 100.0 if runs[0] <= 3 else seconds

    def forward(self: Decoder, tokens_BT: torch.Tensor, context: Context) -> torch.Tensor:
        spend(passes, 1.0)
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        seen.add((context.selection, autocast, torch.is_grad_enabled(), self.training))
        return tokens_BT

    def step(model: Decoder, optimizer: Any, train: Any, batch: Any, dtype: Any, **_: Any) -> Any:
        spend(steps, 3.0)
        assert (dtype, model.training) == (torch.bfloat16, True)
        return torch.zeros(()), None

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Decoder, "forward", forward)
    monkeypatch.setattr(timing, "training_step", step)
    train = TrainConfig(budget=1, sequence=48, batch=3, compile="off")
    text_N = np.zeros(2000, dtype=np.uint16)
    model = build_model(SHAPE, build_router("vanilla"))
    found = timing.time_model(model, train, dtype=torch.bfloat16, repeats=4, text=text_N)
    assert (found["forward_seconds"]["median"], found["forward_seconds"]["n"]) == (1.0, 4)
    assert (found["train_step_seconds"]["median"], found["train_step_seconds"]["n"]) == (3.0, 4)
    assert passes == steps == [3 + 4]
    assert seen == {("topk", torch.bfloat16, False, False)}


def test_on_a_gpu_a_run_ends_when_its_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call launches 2 s of work and returns at once; synchronising waits for all of it."""
    now, given_out = [0.0], [50.0]  # some that came before

    def run() -> None:
        given_out[0] += 2.0

    def synchronize(on: torch.device) -> None:
        assert on.type == "cuda"
        now[0] += given_out.pop()
        given_out.append(0.0)

    monkeypatch.setattr(timing, "WARM_UP", 0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    found = timing._time(run, 4, torch.device("cuda"))
    assert (found["median"], found["iqr"], found["stable"]) == (2.0, 0.0, True)
