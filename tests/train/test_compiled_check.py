"""A compiled program that teaches less than what is written is refused; the check leaves no trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modbench.data.batches import Batches
from modbench.errors import UserError
from modbench.measure.cases import training_cases
from modbench.measure.time_config import TimeConfig
from modbench.model.block import MLP
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.compiled import losses_of, written
from modbench.train.compiled_check import check_gradients
from modbench.train.config import TrainConfig
from modbench.train.loop import train_model

SHAPE = ModelConfig(vocabulary=64, width=32, layers=4, heads=2, mlp_width=96)
BATCH = tuple(torch.arange(2 * 40).view(2, 40) * n % 64 for n in (3, 5))

# torch.compile's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As inductor traces and differentiates, without its kernels."""
    compile: Any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **kept: compile(run, backend="aot_eager", **kept))
    torch._dynamo.reset()


def model_of(router: str, **options: Any) -> Decoder:
    return build_model(SHAPE, build_router(router, options)).train()


def check(model: Decoder, losses: Any = None, **kept: Any) -> None:
    check_gradients(model, losses or losses_of(model, "on"), BATCH, torch.float32, **kept)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("router", "options"),
    [
        ("vanilla", {}),
        ("mod", {"causal": "ema_threshold"}),
        ("mod", {"scores": "gaussian"}),
        ("token_choice", {"bias_step": 0.01, "balance": 0.0}),
        ("expert_choice", {}),
        ("mode_staged", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("forced", [False, True])
def test_what_learns_passes_and_stays_as_it_was(router: str, options: Any, forced: bool) -> None:
    model = model_of(router, **options)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    check(model, forced_balance=forced)
    assert torch.equal(torch.get_rng_state(), generator)
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def _loses_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    forward: Any = MLP.forward

    def detached(part: MLP, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD: Tensor = forward(part, x_BTD, context)
        return y_BTD.detach() if torch.compiler.is_compiling() else y_BTD

    monkeypatch.setattr(MLP, "forward", detached)


@pytest.mark.usefixtures("_loses_a_gradient")
def test_a_part_that_learns_nothing_when_compiled_is_refused() -> None:
    model = model_of("vanilla")
    with pytest.raises(UserError, match=r"up\.weight, \S+ and \d+ more is 0, .* compile to 'off'"):
        check(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.usefixtures("_loses_a_gradient")
def test_neither_a_run_nor_a_timing_goes_on_with_one(tmp_path: Path) -> None:
    model, text_N = model_of("vanilla"), np.arange(1000) % SHAPE.vocabulary
    for compile in ("on", "off"):
        train = TrainConfig(budget=10**9, sequence=32, batch=2, compile=compile)  # type: ignore[arg-type]
        timed = TimeConfig(compile=compile)  # type: ignore[arg-type]

        def trained(train: TrainConfig = train) -> None:
            train_model(
                model,
                Batches(text_N, sequence=32, batch=2, seed=1),
                train,
                dtype=torch.float32,
                evaluate=lambda _: 1.0,
                folder=tmp_path,
                say=lambda _: None,
            )

        def cases(train: TrainConfig = train, timed: TimeConfig = timed) -> None:
            for case in training_cases(model, timed, train, torch.float32):
                case.prepare()

        for run in (trained, cases):
            if compile == "off":
                run()
                continue
            with pytest.raises(UserError, match="set compile to 'off'"):
                run()


def test_a_layer_that_is_drawn_now_and_then_is_not_taken_for_lost() -> None:
    """What is compiled draws other numbers: the first passes may leave out what is written computed."""
    model, passes = model_of("vanilla"), 0

    def losses(*given: Any) -> tuple[Tensor, Tensor | float]:
        nonlocal passes
        passes += 1
        loss, auxiliary = written(model)(*given)
        return (loss * 0 if passes < 4 else loss), auxiliary

    check(model, losses)
    assert passes == 4


class Moves(nn.Module):
    """Buffers of every kind that a plugin may have; each forward pass changes what can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("expanded", torch.ones(1).expand(5), persistent=False)
        self.register_buffer("late", None, persistent=False)
        self.register_buffer("swapped", torch.zeros(1))
        self.register_buffer("written", torch.tensor([torch.nan, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        self.late, self.swapped = torch.ones(3), torch.ones(7)
        self.written += 1
        self.register_buffer("more", torch.ones(()))
        return x * self.expanded[0]


def test_buffers_of_every_kind_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model, moves = model_of("vanilla"), Moves()
    model.layers[1].moves = moves
    block: Any = type(model.layers[1])
    forward: Any = block.forward
    monkeypatch.setattr(
        block,
        "forward",
        lambda layer, x_BTD, context: getattr(layer, "moves", nn.Identity())(
            forward(layer, x_BTD, context)
        ),
    )
    held = dict(moves.named_buffers())
    check(model, written(model))
    assert dict(moves.named_buffers()).keys() == held.keys()
    assert all(moves.get_buffer(name) is buffer for name, buffer in held.items())
    assert moves.late is None
    assert moves.swapped.tolist() == [0]
    assert moves.written[1] == 1


def test_what_learns_nothing_as_written_either_is_none_of_its_business() -> None:
    model = model_of("vanilla")
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(requires_grad=False)
    check(model)


def test_one_lost_parameter_is_named() -> None:
    model = model_of("mod")
    lost = "layers.1.router"

    def losses(*given: Any) -> tuple[Tensor, Tensor | float]:
        loss, auxiliary = written(model)(*given)
        if len(given[0]) == 2:  # all of the batch: what is compiled
            dict(model.named_parameters())[lost].register_hook(torch.zeros_like)
        return loss, auxiliary

    with pytest.raises(UserError, match=f"the gradient of {lost} is 0, and as written it is not"):
        check(model, losses)
