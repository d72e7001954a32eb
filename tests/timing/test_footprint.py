"""Memory is measured above the right baseline."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timed_made_up import subject
from torch import nn

from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.layer import Layer
from modbench.routing.router import Router
from modbench.timing import footprint
from modbench.timing.benchmark_case import BenchmarkTarget

CPU = torch.device("cpu")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Events in order; every peak is 10^9 bytes."""
    found: list[str] = []

    class MemoryMeter:
        def __init__(self, on: torch.device) -> None:
            found.append("meter")

        def reset_peak(self) -> None:
            found.append("reset")

        def peak(self) -> int:
            found.append("peak")
            return 10**9

    def noted(name: str, right: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            found.append(name)
            return right(*given, **more)

        return run

    monkeypatch.setattr(footprint, "MemoryMeter", MemoryMeter)
    monkeypatch.setattr(BenchmarkTarget, "build", noted("build", BenchmarkTarget.build))
    monkeypatch.setattr(footprint, "_prefill", noted("prefill", footprint._prefill))
    step = noted("step", footprint.training_step)
    monkeypatch.setattr(footprint, "training_step", step)
    return found


def test_a_prefill_is_measured_after_a_first_one(events: list[str]) -> None:
    found = footprint.inference_footprint(subject())
    assert events == ["build", "prefill", "meter", "build", "reset", "prefill", "peak"]
    assert found["activations"] == 10**9 - found["parameters"] - found["cache"]


def test_a_step_is_measured_after_a_first_one(events: list[str]) -> None:
    footprint.training_footprint(subject())
    assert events == ["build", "step", "meter", "build", "step", "reset", "step", "peak"]


def test_a_peak_is_the_highest_resident_set_above_the_baseline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1000 * 1024))
    monkeypatch.setattr(footprint.psutil, "Process", lambda: now)
    monkeypatch.setattr(footprint, "Path", lambda path: tmp_path / Path(path).name)
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t  1500 kB\nVmRSS:\t  1200 kB\n")
    assert footprint.MemoryMeter(CPU).peak() == 500 * 1024
    assert (tmp_path / "clear_refs").read_text() == "5"  # proc(5): resets the peak


def test_measured_memory_routes_as_timed_cases_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """And reads prompts as they are read to decode: logits of the last token alone, no gradients."""
    seen: list[bool] = []
    contexts: list[tuple[Any, ...]] = []
    right_step, right_pass = footprint.training_step, Decoder.forward

    def step(*given: Any, **more: Any) -> Any:
        seen.append(more["forced_balance"])
        return right_step(*given, **more)

    def forward(self: Decoder, tokens_BT: torch.Tensor, context: Context) -> torch.Tensor:
        learns = self.training or torch.is_grad_enabled()
        contexts.append((context.selection, context.logits, context.forced_balance, learns))
        return right_pass(self, tokens_BT, context)

    of = subject("token_choice")
    monkeypatch.setattr(footprint, "training_step", step)
    footprint.training_footprint(of)
    monkeypatch.setattr(Decoder, "forward", forward)
    footprint.inference_footprint(of)
    assert seen == [True] * 3
    assert contexts == [("causal", "last", True, False)] * 2


class Fixed(Block):
    """A block, and before it a matrix that is never learned."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__(model, layer)
        self.fixed = nn.Parameter(torch.empty(model.width, model.width), requires_grad=False)

    def initialise(self, seed: int) -> None:
        nn.init.eye_(self.fixed)

    def forward(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
        return super().forward(x_BTD @ self.fixed, context)


@dataclass(frozen=True, kw_only=True)
class WithFixed(Router):
    name = "with_fixed"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Fixed(model, layer)


def test_weights_that_are_frozen_have_neither_gradient_nor_optimizer_state() -> None:
    of = replace(subject(), router=WithFixed())
    weights = list(of.build().parameters())
    learned = [weight.numel() for weight in weights if weight.requires_grad]
    fixed = 4 * 32 * 32
    assert sum(weight.numel() for weight in weights) == sum(learned) + fixed
    found = footprint.training_footprint(of)
    assert found["parameters"] == 4 * (sum(learned) + fixed)
    assert found["gradients"] == 4 * sum(learned)
    assert found["optimizer"] == 8 * sum(learned) + 4 * len(learned)  # steps of each are counted
