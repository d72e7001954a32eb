"""What is weighed: above what, after what, and against which prediction."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timed_made_up import SHAPE, subject
from torch import nn

from modbench.errors import UserError
from modbench.measure import footprint, memory
from modbench.measure.subject import BenchmarkTarget
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.layer import Layer
from modbench.plan.activations import Steps
from modbench.plan.inference import inference_memory
from modbench.plan.memory import Measured, Recipe
from modbench.routing.router import Router

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is built, run and weighed, in order; a peak is 10^9 bytes."""
    found: list[str] = []

    class Meter:
        def __init__(self, on: torch.device) -> None:
            found.append("meter")

        def forget(self) -> None:
            found.append("forget")

        def peak(self) -> int:
            found.append("peak")
            return 10**9

    def noted(name: str, right: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            found.append(name)
            return right(*given, **more)

        return run

    monkeypatch.setattr(footprint, "Meter", Meter)
    monkeypatch.setattr(BenchmarkTarget, "build", noted("build", BenchmarkTarget.build))
    monkeypatch.setattr(footprint, "_prefill", noted("prefill", footprint._prefill))
    step = noted("step", footprint.training_step)
    monkeypatch.setattr(footprint, "training_step", step)
    monkeypatch.setattr("modbench.train.loop.training_step", step)
    return found


def test_a_prefill_is_weighed_when_it_was_done_once(events: list[str]) -> None:
    found = footprint.inference_footprint(subject())
    assert events == ["build", "prefill", "meter", "build", "forget", "prefill", "peak"]
    assert found["activations"] == 10**9 - found["parameters"] - found["cache"]


def test_a_step_is_weighed_when_steps_were_done(events: list[str]) -> None:
    footprint.training_footprint(subject())
    assert events == ["build", "step", "meter", "build", "step", "forget", "step", "peak"]


def test_a_cells_steps_are_weighed_when_the_same_were_done(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two: a first one makes the optimizer's state, and holds less."""
    monkeypatch.setattr("modbench.train.numerics.make_deterministic", lambda: None)
    train = {"budget": 1, "sequence": 32, "batch": 2, "precision": "float32"}
    cell = {"router": {"name": "mod", "options": {}}, "model": SHAPE, "train": train}
    peak = memory._measure({"cell": cell, "plugins": [], "threads": 1})
    assert (peak, events) == (10**9, ["step", "step", "meter", "step", "step", "peak"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cells_steps_are_those_it_trains_by(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[Any, ...]] = []

    def step(model: Decoder, optimizer: Any, train: Any, batch: Any, dtype: torch.dtype) -> None:
        taken.append((model.training, *(tokens_BT.shape for tokens_BT in batch), dtype))

    monkeypatch.setattr("modbench.train.loop.training_step", step)
    monkeypatch.setattr("modbench.train.numerics.make_deterministic", lambda: None)
    train = {"budget": 1, "sequence": 31, "batch": 3, "precision": str(dtype).removeprefix("torch.")}
    cell = {"router": {"name": "mod", "options": {}}, "model": SHAPE, "train": train}
    memory._measure({"cell": cell, "plugins": [], "threads": 1})
    assert taken == 4 * [(True, (3, 31), (3, 31), dtype)]


def test_of_another_version_of_a_plugin_no_memory_is_measured() -> None:
    router = {"name": "mod", "options": {}, "plugin_sha256": "of a file that was another"}
    cell = {"router": router, "model": SHAPE, "train": {}}
    with pytest.raises(UserError, match=r"^router 'mod': its plugin file, .* has changed"):
        memory._measure({"cell": cell, "plugins": [], "threads": 1})


def test_the_largest_prefill_is_that_of_any_case() -> None:
    prompts, cached = {"prefill": [40], "prefill_batch": 5}, {"prefill": [20], "prefill_batch": 2}
    assert footprint.largest_prefill(subject(**prompts)) == (5, 40)
    assert footprint.largest_prefill(subject(**cached)) == (3, 30)


def test_a_peak_is_the_highest_resident_set_above_the_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = {"VmRSS": 1000, "VmHWM": 1700}
    monkeypatch.setattr(footprint, "resident_bytes", resident.__getitem__)
    monkeypatch.setattr(footprint, "forget_peak", lambda: None)
    assert footprint.Meter(CPU).peak() == 700


def test_a_resident_set_is_told_in_units_of_1024_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / Path(path).name)
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t  1500 kB\nVmRSS:\t  1000 kB\n")
    assert memory.resident_bytes("VmHWM") == 1500 * 1024
    assert memory.resident_bytes("VmRSS") == 1000 * 1024
    memory.forget_peak()
    assert (tmp_path / "clear_refs").read_text() == "5"  # of proc(5): the peak, not the pages


def test_a_process_that_weighs_gives_buffers_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "99")
    seen: dict[str, str] = {}

    def child(given: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        seen.update(environment)
        return subprocess.CompletedProcess([], 0, json.dumps({"peak_bytes": 5}), "")

    monkeypatch.setattr(memory, "_child", child)
    found = memory.peak_memory({"cell": {}, "plugins": []}, 3)
    assert found == {"median": 5, "iqr": None, "n": 1, "stable": None}
    assert seen.items() >= memory.WEIGHING.items()
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == "3"


@pytest.mark.parametrize("forced", [True, False])
def test_what_is_weighed_routes_as_what_is_timed(forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And reads prompts as they are read to decode: logits of the last token alone, no gradients."""
    seen: list[tuple[bool, ...]] = []
    contexts: list[tuple[Any, ...]] = []
    right_step, right_pass = footprint.training_step, Decoder.forward

    def step(*given: Any, **more: Any) -> Any:
        seen.append(more["forced_balance"])
        return right_step(*given, **more)

    def forward(self: Decoder, tokens_BT: torch.Tensor, context: Context) -> torch.Tensor:
        learns = self.training or torch.is_grad_enabled()
        contexts.append((context.selection, context.logits, context.forced_balance, learns))
        return right_pass(self, tokens_BT, context)

    of = subject("token_choice", forced_balance=forced)
    monkeypatch.setattr(footprint, "training_step", step)
    footprint.training_footprint(of)
    monkeypatch.setattr(Decoder, "forward", forward)
    footprint.inference_footprint(of)
    assert seen == [forced] * 3
    assert contexts == [("causal", "last", forced, False)] * 2


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
    measured, predicted = footprint.training_footprint(of), footprint.predicted_training(of)
    for found in (measured, predicted):
        assert found["parameters"] == 4 * (sum(learned) + fixed)
        assert found["gradients"] == 4 * sum(learned)
    assert predicted["optimizer"] == 8 * sum(learned)
    assert measured["optimizer"] == 8 * sum(learned) + 4 * len(learned)  # steps of each are counted
    # Cast to bfloat16 they stay frozen.
    cast = Steps(footprint._on_meta(of), 32, compute="bfloat16").cast(Fixed(of.config, 0))
    assert [name for name, weight in cast.named_parameters() if not weight.requires_grad] == ["fixed"]


@pytest.mark.parametrize(("on", "kernels"), [(CPU, "cpu"), (CUDA, "gpu")], ids=["cpu", "gpu"])
@pytest.mark.parametrize(
    ("dtype", "compute"), [(torch.float32, "float32"), (torch.bfloat16, "autocast")]
)
def test_a_step_is_predicted_as_it_is_taken(
    on: torch.device, kernels: Any, dtype: torch.dtype, compute: Any
) -> None:
    of = replace(subject(), on=on, dtype=dtype)
    expected = Measured(
        footprint._on_meta(of), of.train.sequence, Recipe(micro_batch=2), kernels, compute
    ).memory(2)
    assert footprint.predicted_training(of)["peak"] == expected.total


@pytest.mark.parametrize(("on", "kernels"), [(CPU, "cpu"), (CUDA, "gpu")], ids=["cpu", "gpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prefill_is_predicted_as_it_is_done(
    on: torch.device, kernels: Any, dtype: torch.dtype
) -> None:
    of = replace(subject(), on=on, dtype=dtype)
    expected = inference_memory(
        footprint._on_meta(of), 3, 30, bfloat16=dtype == torch.bfloat16, kernels=kernels
    )
    assert footprint.predicted_inference(of)["peak"] == expected.total


def test_predictions_tell_a_processor_from_a_gpu() -> None:
    """Else the tests above would hold whichever was asked for."""
    of = replace(subject(), dtype=torch.bfloat16)
    for predicted in (footprint.predicted_training, footprint.predicted_inference):
        assert predicted(of)["peak"] != predicted(replace(of, on=CUDA))["peak"]
