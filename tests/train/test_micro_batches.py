"""Micro-batches: a step of several passes, with the gradient, the FLOPs and the losses of one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modbench.counting.counter import FlopCounter
from modbench.data.batches import Batches
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.compiled import eager
from modbench.train.config import TrainConfig
from modbench.train.counted import flops_per_step
from modbench.train.loop import Trained, train_model
from modbench.train.optimizer import build_optimizer
from modbench.train.schedule import Schedule
from modbench.train.step import parts_of, passes, training_step

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
TRAIN = TrainConfig(sequence=32, batch=8, learning_rate=1e-3, evaluations=3, precision="float32")
TEXT_N = (np.arange(9000) * 7 % 97).astype(np.uint16)
#: Schemes whose routing and losses in training are of each sequence by itself.
BY_SEQUENCE = {
    "vanilla": {},
    "mod": {"capacity": 0.25},
    "mod/random": {"capacity": 0.25, "scores": "gaussian"},
    "expert_choice": {"experts": 4},
    "token_choice": {"experts": 4, "balance_scope": "sequence"},
}


def trained(
    name: str, folder: Path, *, options: dict[str, Any] | None = None, **train: Any
) -> tuple[Decoder, Trained, list[float]]:
    """A model after ten steps, and the training loss of each."""
    settings = replace(TRAIN, **train)
    model = build_model(SHAPE, build_router(name.partition("/")[0], options or {}), seed=1)
    folder.mkdir()
    losses: list[float] = []
    spent = train_model(
        model,
        Batches(TEXT_N, sequence=32, batch=8, seed=1),
        replace(settings, evaluations=10),
        Schedule(budgets=(10 * flops_per_step(model, settings),)),
        dtype=torch.float32,
        evaluate=lambda model: 1.0,
        folder=folder,
        say=lambda event: losses.append(event["train_loss"]) if event["event"] == "point" else None,
    )
    return model, spent, losses


@pytest.mark.parametrize("name", BY_SEQUENCE)
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_loss_and_weights_equal_those_of_one_batch(name: str, micro_batch: int, tmp_path: Path) -> None:
    options = BY_SEQUENCE[name]
    whole, spent, losses = trained(name, tmp_path / "whole", options=options)
    parts, spent_in_parts, losses_in_parts = trained(
        name, tmp_path / "parts", options=options, micro_batch=micro_batch
    )
    assert len(losses) == 10
    assert losses_in_parts == pytest.approx(losses, rel=1e-4)
    assert spent_in_parts.end.flops == spent.end.flops
    assert spent_in_parts.end == spent.end
    assert not spent_in_parts.miscounted
    assert not spent_in_parts.recharged
    ours, theirs = whole.state_dict(), parts.state_dict()
    weights = [key for key in ours if ours[key].is_floating_point() and "threshold" not in key]
    for key in weights:  # Adam's first steps are as large for a small gradient as for a large one
        assert torch.allclose(ours[key], theirs[key], atol=2e-3), key
    moved = build_model(SHAPE, build_router(name.partition("/")[0], options), seed=1).state_dict()
    assert any((moved[key] - ours[key]).abs().max() > 5e-3 for key in weights)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("token_choice", {"experts": 4, "affinity": "sigmoid", "bias_step": 0.1, "balance": 0.0}),
        ("relu_routing", {"experts": 4}),
        ("mod", {"causal": "ema_threshold"}),
    ],
)
def test_biases_and_averages_move_once_a_step(name: str, options: dict[str, Any]) -> None:
    """By the loads of all micro-batches, and by the mean of their averages."""
    batch = Batches(TEXT_N, sequence=32, batch=8, seed=1).step(0)

    def moved(micro_batch: int) -> dict[str, torch.Tensor]:
        model = build_model(SHAPE, build_router(name, options), seed=1)
        train = replace(TRAIN, micro_batch=micro_batch)
        training_step(model, build_optimizer(model, train), train, batch, torch.float32)
        return stored(model)

    def stored(model: Decoder) -> dict[str, torch.Tensor]:
        state = model.state_dict()
        return {name: state[name] for name, _ in model.named_buffers() if name in state}

    whole, parts = moved(8), moved(2)
    start = stored(build_model(SHAPE, build_router(name, options), seed=1))
    assert any(not torch.equal(whole[key], start[key]) for key in whole)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-6, atol=0, msg=key)


def test_gradient_equals_that_of_one_batch() -> None:
    model = build_model(SHAPE, build_router("mod", {}), seed=1)
    batch = Batches(TEXT_N, sequence=32, batch=8, seed=1).step(0)

    def gradient(**train: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        settings = replace(TRAIN, **train)
        for part in parts_of(batch, settings):
            passes(eager(model), part, torch.float32, settings)
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole, parts = gradient(), gradient(micro_batch=2)
    largest = max(value.abs().max() for value in whole.values())
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert (parts[name] - value).abs().max() < 1e-5 * largest, name


@pytest.mark.parametrize("name", ["vanilla", "mod", "token_choice"])
def test_recomputed_layers_change_no_bit_and_are_counted(name: str, tmp_path: Path) -> None:
    whole, spent, losses = trained(name, tmp_path / "whole")
    again, spent_again, losses_again = trained(name, tmp_path / "again", recompute=True)
    assert losses == losses_again
    assert spent_again.end == spent.end  # budgets are in convention `model`
    assert spent_again.counted_steps == 3
    assert not spent_again.miscounted
    ours, theirs = whole.state_dict(), again.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_recomputed_layers_are_executed_twice() -> None:
    model = build_model(SHAPE, build_router("mod", {}), seed=1)
    train = replace(TRAIN, recompute=True)
    batch = Batches(TEXT_N, sequence=32, batch=8, seed=1).step(0)
    with FlopCounter() as counter:
        _, trace = passes(eager(model), batch, torch.float32, train)
    load = Workload.uniform(8, 32, "train", counts=trace.counts)
    again = model.loss_ledger(replace(load, checkpoint=True))
    assert again.total("executed") > model.loss_ledger(load).total("executed")
    assert counter.under("executed") == again.total("executed")


def test_batch_wide_routing_is_over_the_micro_batch() -> None:
    options = {"pool": "batch", "experts": 4}
    model = build_model(SHAPE, build_router("expert_choice", options), seed=1)
    train = replace(TRAIN, micro_batch=2)
    parts = parts_of(Batches(TEXT_N, sequence=32, batch=8, seed=1).step(0), train)
    traces = [passes(eager(model), part, torch.float32, train)[1] for part in parts]
    loads = [trace.tensors[0, "load"].tolist() for trace in traces]
    assert all(len(set(load)) == 1 for load in loads)  # each expert takes as many of each micro-batch
    assert sum(map(sum, loads)) == 8 * 32 * build_router("expert_choice", options).capacity
