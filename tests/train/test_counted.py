"""Real training steps under the counter: which, what is held against them, and that nothing is changed.

B sequences, T tokens, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from modbench.counting.counter import FlopCounter
from modbench.data.batches import Batches
from modbench.errors import UserError
from modbench.ledger import Flops, Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.layer import Layer
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_names
from modbench.routing.router import Router
from modbench.train.budget import flops_per_step
from modbench.train.config import TrainConfig
from modbench.train.counted import CountedSteps
from modbench.train.loop import StoppedError, Trained, train_model

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
TRAIN = TrainConfig(budget=10**12, sequence=32, batch=2, learning_rate=1e-2, evaluations=1)
TEXT_N = (np.arange(4000) * 7 % 97).astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class Twice(Router):
    """Runs its block twice in the steps ``dense`` and charges it once"""

    dense: tuple[int, ...] = ()
    times: int = 1  #: its ledger in training mode is so many times too small

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return TwiceLayer(self, model, layer)


class TwiceLayer(Layer):
    def __init__(self, options: Twice, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.options, self.block = options, Block(model, layer)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def initialise(self, seed: int) -> None:
        self.steps.zero_()

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if self.training:
            self.steps += 1
            if int(self.steps) in self.options.dense:
                x_BTD = self.block(x_BTD, context)
        return self.block(x_BTD, context)

    def ledger(self, load: Workload) -> Ledger:
        ledger, times = self.block.ledger(load), self.options.times if self.training else 1
        return Ledger(
            {k: Flops(*(n // times for n in (f.model, f.full, f.executed))) for k, f in ledger}
        )


def run(
    router: Router, folder: Path, *, steps: int = 20, stop_after: int | None = None, **train: object
) -> tuple[Decoder, Trained]:
    model = build_model(SHAPE, router, seed=1)
    folder.mkdir(exist_ok=True)
    asked = iter(range(10**6))
    trained = train_model(
        model,
        Batches(TEXT_N, sequence=32, batch=2, seed=1),
        replace(TRAIN, budget=steps * flops_per_step(model, TRAIN), **train),  # type: ignore[arg-type]
        dtype=torch.float32,
        evaluate=lambda model: 1.0,
        folder=folder,
        say=lambda event: None,
        stop=lambda: stop_after is not None and next(asked) >= stop_after,
    )
    return model, trained


def due(seed: int, most: int) -> list[int]:
    counts = CountedSteps(seed=seed)
    return [number for number in range(1, most + 1) if counts.due(number)]


def test_powers_of_256_are_counted_and_one_drawn_between() -> None:
    for seed in range(5):
        first, drawn, second, *more = due(seed, 300)
        assert (first, second) == (1, 256)
        assert 1 < drawn < 256
        assert len(more) < 2
    assert due(0, 300) == due(0, 300)
    assert len({tuple(due(seed, 300)) for seed in range(5)}) > 1


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two are counted."""
    monkeypatch.setattr(CountedSteps, "due", lambda self, number: number & (number - 1) == 0)


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("name", router_names())
def test_counting_changes_no_bit_and_finds_nothing_off(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, spent = run(build_router(name), tmp_path / "counted", steps=9)
    assert spent.miscounted == ""
    assert spent.counted_steps >= 3  # how many steps the budget buys is the routing's to decide
    monkeypatch.setattr(CountedSteps, "due", lambda self, number: False)
    plain, alone = run(build_router(name), tmp_path / "plain", steps=9)
    assert alone.counted_steps == 0
    assert (spent.flops, spent.curve) == (alone.flops, alone.curve)
    ours, theirs = counted.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def extra() -> int:
    """What four blocks more cost a step."""
    model = build_model(SHAPE, Twice())
    ledgers = [layer.block.ledger(Workload.uniform(2, 32, "train")) for layer in model.layers]
    return sum(ledger.total() for ledger in ledgers)


@pytest.mark.usefixtures("_often")
def test_a_router_that_spends_more_while_it_warms_up_is_told(tmp_path: Path) -> None:
    _, trained = run(Twice(dense=tuple(range(1, 6))), tmp_path)
    off = -extra()
    assert trained.miscounted == ", ".join(f"{off:+d} in training step {n}" for n in (1, 2, 4))
    assert trained.steps == 20


@pytest.mark.usefixtures("_often")
def test_more_than_three_steps_are_summed_up(tmp_path: Path) -> None:
    _, trained = run(Twice(dense=tuple(range(1, 100))), tmp_path)
    off = -extra()
    said = ", ".join(f"{off:+d} in training step {n}" for n in (1, 2, 4))
    assert (
        trained.miscounted == f"{said} and {trained.counted_steps - 3} more of {trained.counted_steps}"
    )


def test_a_ledger_that_says_less_in_training_is_told(tmp_path: Path) -> None:
    _, trained = run(Twice(times=10), tmp_path, steps=3)
    assert trained.miscounted.startswith("-")
    assert "in training step 1" in trained.miscounted


@pytest.mark.usefixtures("_often")
def test_what_was_counted_outlives_a_stop(tmp_path: Path) -> None:
    router = Twice(dense=(2, 3, 8))
    _, whole = run(router, tmp_path / "whole")
    for cut in (2, 4):
        with pytest.raises(StoppedError):
            run(router, tmp_path / "parts", stop_after=cut)
    _, parts = run(router, tmp_path / "parts")
    assert whole == parts
    assert "in training step 2, " in whole.miscounted
    assert "in training step 8" in whole.miscounted


def test_a_charge_that_was_reckoned_from_an_older_ledger_is_told() -> None:
    model, counts = build_model(SHAPE, Twice()), CountedSteps(seed=0)
    load = Workload.uniform(2, 32, "train")

    def take() -> tuple[Tensor, Context]:
        context = Context(selection="topk")
        tokens_BT = torch.zeros(2, 32, dtype=torch.long)
        loss = model.loss(tokens_BT, tokens_BT, context)
        loss.backward()
        return loss, context

    counts.taken(1, model, load, take)
    right = model.ledger(load).total()
    counts.charged(1, right)
    assert counts.figure() == ""
    counts.charged(1, right - 5)
    assert counts.figure() == "-5 in training step 1"


@pytest.fixture
def uncountable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An op of each step that the counter doesn't know."""
    right = FlopCounter.add

    def add(self: FlopCounter, op: str, *arguments: object) -> None:
        if "mm" in op:
            raise UserError(f"FLOPs of op '{op}' are not known")
        right(self, op, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FlopCounter, "add", add)
    return


@pytest.mark.usefixtures("uncountable", "_often")
def test_steps_that_raised_are_among_those_that_are_summed_up(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(Twice(), tmp_path, steps=20, stop_after=6)
    _, trained = run(Twice(), tmp_path, steps=20)
    assert trained.miscounted.endswith(" and 2 more of 5")  # steps 1, 2, 4, 8 and 16


@pytest.mark.usefixtures("uncountable")
def test_a_step_that_cannot_be_counted_is_taken_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, trained = run(Twice(dense=(3,)), tmp_path / "odd", steps=4)
    assert trained.miscounted.startswith("training step 1 raised UserError: FLOPs of op ")
    assert trained.counted_steps == 0
    monkeypatch.setattr(CountedSteps, "due", lambda self, number: False)
    plain, _ = run(Twice(dense=(3,)), tmp_path / "plain", steps=4)
    ours, theirs = odd.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_pass_beside_a_step_leaves_no_trace() -> None:
    model, counts = build_model(SHAPE, Twice(dense=(1,))), CountedSteps(seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()

    def passes() -> tuple[Tensor, Context]:
        context, tokens_BT = Context(selection="topk"), torch.randint(97, (2, 32))
        loss = model.loss(tokens_BT, tokens_BT, context)
        loss.backward()
        return loss, context

    counts.beside(1, model, Workload.uniform(2, 32, "train"), passes)
    assert counts.figure() == f"{-extra():+d} in training step 1"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    counts.beside(2, model, Workload.uniform(2, 32, "train"), too_large)
    assert (counts.counted, counts.unseen) == (1, 1)
    assert counts.figure() == f"{-extra():+d} in training step 1"


def too_large() -> tuple[Tensor, Context]:
    """More than any memory holds: on a CPU, PyTorch calls it a RuntimeError."""
    torch.empty(2**60, dtype=torch.uint8)
    pytest.fail("it was held")


def test_a_shortage_that_passes_is_nobodys_fault() -> None:
    model, counts = build_model(SHAPE, Twice()), CountedSteps(seed=0)
    tries = [too_large, lambda: (torch.ones(()), Context(selection="topk"))]
    loss, _ = counts.taken(1, model, Workload.uniform(2, 32, "train"), lambda: tries.pop(0)())
    assert loss == 1
    assert (counts.counted, counts.unseen, counts.figure()) == (0, 1, "")


@pytest.mark.usefixtures("_often")
def test_a_run_says_how_many_steps_memory_did_not_hold_under_the_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(counter: FlopCounter) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(FlopCounter, "__enter__", fails)
    with pytest.raises(StoppedError):
        run(Twice(), tmp_path, steps=9, stop_after=3)
    _, trained = run(Twice(), tmp_path, steps=9)
    assert (trained.counted_steps, trained.unseen_steps, trained.miscounted) == (0, 4, "")
