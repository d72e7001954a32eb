"""Three training steps are compared with the counter, and training is unchanged.

B sequences, T tokens, D model width.
"""

import re
from collections import Counter
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
from modbench.model.trace import Trace
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_names
from modbench.routing.router import Router
from modbench.train.config import TrainConfig
from modbench.train.counted import Charges, CountedSteps, flops_per_step
from modbench.train.loop import StoppedError, Trained, train_model
from modbench.train.schedule import Schedule

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
TRAIN = TrainConfig(sequence=32, batch=2, learning_rate=1e-2, evaluations=1)
TEXT_N = (np.arange(4000) * 7 % 97).astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class Twice(Router):
    """Runs its block twice in the steps ``dense`` and charges it once."""

    name = "twice"
    dense: tuple[int, ...] = ()
    times: int = 1  #: factor by which its ledger is too small in training mode

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
    router: Router,
    folder: Path,
    *,
    steps: int = 20,
    stop_after: int | None = None,
    seed: int = 1,
    **train: object,
) -> tuple[Decoder, Trained]:
    model = build_model(SHAPE, router, seed=1)
    folder.mkdir(exist_ok=True)
    asked = iter(range(10**6))
    trained = train_model(
        model,
        Batches(TEXT_N, sequence=32, batch=2, seed=seed),
        replace(TRAIN, **train),  # type: ignore[arg-type]
        Schedule(budgets=(steps * flops_per_step(model, TRAIN),)),
        dtype=torch.float32,
        evaluate=lambda model: 1.0,
        folder=folder,
        say=lambda event: None,
        stop=lambda: stop_after is not None and next(asked) >= stop_after,
    )
    return model, trained


def extra() -> int:
    """FLOPs that four more blocks add to a step."""
    model = build_model(SHAPE, Twice())
    ledgers = [layer.block.ledger(Workload.uniform(2, 32, "train")) for layer in model.layers]
    return sum(ledger.total() for ledger in ledgers)


@pytest.mark.parametrize("name", router_names())
def test_counting_changes_no_bit_and_finds_nothing_off(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, spent = run(build_router(name), tmp_path / "counted", steps=5)
    assert spent.miscounted == spent.recharged == ""
    assert spent.counted_steps == 3
    monkeypatch.setattr(CountedSteps, "count", lambda *arguments: None)
    plain, alone = run(build_router(name), tmp_path / "plain", steps=5)
    assert alone.counted_steps == 0
    assert (spent.end, spent.curve) == (alone.end, alone.curve)
    ours, theirs = counted.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_router_that_computes_more_at_the_start_or_the_end_is_found(tmp_path: Path) -> None:
    _, trained = run(Twice(dense=(1, 2, 21)), tmp_path)  # the last step is counted after it is taken
    assert trained.miscounted == f"{-extra():+d} in training step 1, {-extra():+d} in training step 20"
    assert (trained.end.steps, trained.counted_steps) == (20, 3)


def drawn_step(folder: Path, seed: int, **stop: int) -> int:
    """The one step of nine between the first and the last that is found off if all of them are."""
    _, trained = run(Twice(dense=tuple(range(2, 9))), folder, steps=9, seed=seed, **stop)
    (number,) = re.findall(r"[-+]\d+ in training step (\d+)", trained.miscounted)
    return int(number)


def test_a_step_that_the_seed_draws_is_counted(tmp_path: Path) -> None:
    drawn = [drawn_step(tmp_path / str(seed), seed) for seed in range(6)]
    assert set(drawn) <= set(range(2, 9))
    assert len(set(drawn)) > 2
    for seed in range(2):
        assert drawn_step(tmp_path / f"again {seed}", seed) == drawn[seed]
        for cut in (2, 6):
            folder = tmp_path / f"parts {seed} {cut}"
            with pytest.raises(StoppedError):
                drawn_step(folder, seed, stop_after=cut)
            assert drawn_step(folder, seed) == drawn[seed]


@dataclass(frozen=True, kw_only=True)
class OfTheLastPass(Router):
    """Runs its block once or twice by turns. Its ledger takes the number from its last pass, in place of
    the counts it is asked for."""

    name = "of_the_last_pass"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return OfTheLastPassLayer(model, layer)


class OfTheLastPassLayer(Layer):
    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.block, self.times = layer, Block(model, layer), 1
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def initialise(self, seed: int) -> None:
        self.steps.zero_()

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        self.steps += 1
        self.times = 1 + int(self.steps) % 2
        context.trace.count(self.layer, "times", [self.times])
        for _ in range(self.times):
            x_BTD = self.block(x_BTD, context)
        return x_BTD

    def ledger(self, load: Workload) -> Ledger:
        return self.block.ledger(load) * self.times


def test_a_ledger_that_answers_differently_when_asked_again_is_found(tmp_path: Path) -> None:
    _, trained = run(OfTheLastPass(), tmp_path, steps=9)
    assert (trained.miscounted, trained.counted_steps) == ("", 3)
    last = trained.end.steps
    # The last pass is the counted one, of the step after the last.
    off = -extra() if last % 2 else extra()
    wrong = [step for step in range(1, last + 1) if (last + 1 - step) % 2]
    named = ", ".join(f"{off:+d} for training step {step}" for step in wrong[:3])
    more = f", and for {len(wrong) - 3} more" if len(wrong) > 3 else ""
    assert trained.recharged == named + more


def test_charges_are_sampled_evenly_and_by_the_seed() -> None:
    steps: Counter[int] = Counter()
    for seed in range(300):
        charges = Charges()
        for step in range(1, 97):
            charges.add(seed, step, {(0, "depth"): (step,)}, step)
        assert len(charges.kept) == 32
        steps.update(charge["step"] for charge in charges.kept)
    thirds = [sum(steps[step] for step in range(start, start + 32)) / 300 for start in (1, 33, 65)]
    assert thirds == pytest.approx([32 / 3] * 3, rel=0.05)


def test_a_ledger_that_states_less_in_training_is_found(tmp_path: Path) -> None:
    _, trained = run(Twice(times=10), tmp_path, steps=3)
    assert trained.miscounted.startswith("-")
    assert "in training step 1" in trained.miscounted


def test_counts_survive_a_stop(tmp_path: Path) -> None:
    router = Twice(dense=(1, 21))
    _, whole = run(router, tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(router, tmp_path / "parts", stop_after=4)
    _, parts = run(router, tmp_path / "parts")
    assert whole == parts


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


@pytest.mark.usefixtures("uncountable")
def test_a_step_that_cannot_be_counted_is_taken_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, trained = run(Twice(dense=(3,)), tmp_path / "odd", steps=4)
    assert trained.miscounted.startswith("training step 1 raised UserError: FLOPs of op ")
    assert trained.counted_steps == 0
    monkeypatch.setattr(CountedSteps, "count", lambda *arguments: None)
    plain, _ = run(Twice(dense=(3,)), tmp_path / "plain", steps=4)
    ours, theirs = odd.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_counting_leaves_no_trace() -> None:
    model, counts = build_model(SHAPE, Twice(dense=(1,))), CountedSteps()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()

    def passes() -> Trace:
        context, tokens_BT = Context(selection="topk"), torch.randint(97, (2, 32))
        model.loss(tokens_BT, tokens_BT, context).backward()
        return context.trace

    counts.count(1, model, Workload.uniform(2, 32, "train"), passes)
    assert counts.figure() == f"{-extra():+d} in training step 1"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_that_memory_does_not_hold_under_the_counter_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(counter: FlopCounter) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(FlopCounter, "__enter__", fails)
    _, trained = run(Twice(), tmp_path, steps=9)
    assert (trained.counted_steps, trained.unseen_steps, trained.miscounted) == (0, 3, "")
