"""Learning rate over a run; a trapezoid's trunk and its decays, to the bit."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import SHAPE, TEXT_N, TRAIN, run, shape_of

from modbench.data.batches import Batches
from modbench.model.decoder import Decoder
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.counted import flops_per_step
from modbench.train.loop import StoppedError, train_model
from modbench.train.schedule import Schedule


def test_learning_rate_warms_up_and_ends_with_the_run() -> None:
    schedule = Schedule(budgets=(10**12,), warmup=0.1, final_learning_rate=0.1)
    rates = [schedule.learning_rate(1.0, (step + 1) / 100, 10**12) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert max(rates) == rates[9]
    assert rates[-1] == pytest.approx(0.1)
    for step in (31, 54, 80):
        progress = (step - 9) / 90
        assert rates[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
    assert replace(schedule, warmup=0.0).learning_rate(1.0, 1.0, 10**12) == pytest.approx(0.1)


def test_a_trapezoid_is_flat_between_warm_up_and_decay() -> None:
    schedule = Schedule(
        kind="trapezoid", budgets=(100, 400), warmup=0.1, decay=0.2, final_learning_rate=0.0
    )
    small = [schedule.learning_rate(1.0, flops / 100, 100) for flops in range(1, 101)]
    large = [schedule.learning_rate(1.0, flops / 400, 400) for flops in range(1, 401)]
    assert small[4] == large[4] == pytest.approx(0.5)
    assert [*small[9:80], *large[40:320]] == pytest.approx([1.0] * (71 + 280))
    assert small[89] == large[359] == pytest.approx(0.5)
    assert small[-1] == large[-1] == pytest.approx(0.0)


def test_no_step_of_the_trunk_decays_although_it_ends_in_the_decay() -> None:
    schedule = Schedule(kind="trapezoid", budgets=(100,), warmup=0.0, decay=0.2)
    assert schedule.learning_rate(1.0, 0.805, 100) < 1.0
    assert schedule.learning_rate(1.0, 0.805, 100, in_trunk=True) == 1.0


def trapezoid(model: Decoder, steps: tuple[int, ...]) -> Schedule:
    each = flops_per_step(model, TRAIN)
    return Schedule(kind="trapezoid", budgets=tuple(each * number for number in steps), decay=0.25)


@pytest.mark.parametrize("name", ["vanilla", "mod", "mode_integrated", "expert_threshold"])
def test_a_trunk_is_the_same_to_the_bit_with_and_without_a_decay_that_branches_off(
    name: str, tmp_path: Path
) -> None:
    """And resumed in each of its parts."""
    model = build_model(shape_of(name), build_router(name), seed=1)
    both, alone = trapezoid(model, (12, 24)), trapezoid(model, (24,))
    # The warm-up is a part of the smallest budget.
    alone = replace(alone, warmup=both.warmup / 2)
    whole, spent = run(name, tmp_path / "both", schedule=both, steps=None)
    single, of_single = run(name, tmp_path / "alone", schedule=alone, steps=None)
    assert spent.ends[-1] == of_single.ends[-1]
    if name in ("vanilla", "mod"):  # steps of equal FLOPs
        assert spent.left_behind == 3 * flops_per_step(model, TRAIN)
    ours, theirs = whole.state_dict(), single.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for cut in (5, 6, 4, 5):
        with pytest.raises(StoppedError):
            run(name, tmp_path / "parts", schedule=both, steps=None, stop_after=cut)
    parts, spent_in_parts = run(name, tmp_path / "parts", schedule=both, steps=None)
    assert spent_in_parts == spent
    assert all(torch.equal(ours[key], value) for key, value in parts.state_dict().items())


def test_a_decay_from_a_trunk_equals_a_run_to_its_budget_alone(tmp_path: Path) -> None:
    model = build_model(SHAPE, build_router("mod"), seed=1)
    both, alone = trapezoid(model, (12, 24)), trapezoid(model, (12,))
    weights: list[dict[str, torch.Tensor]] = []
    branching = build_model(SHAPE, build_router("mod"), seed=1)
    train_model(
        branching,
        Batches(TEXT_N, sequence=32, batch=2, seed=1),
        TRAIN,
        both,
        dtype=torch.float32,
        evaluate=lambda model: 1.0,
        folder=tmp_path,
        say=lambda event: None,
        at_end=lambda end: weights.append(
            {name: value.clone() for name, value in branching.state_dict().items()}
        ),
    )
    single, _ = run("mod", tmp_path / "alone", schedule=alone, steps=None)
    assert len(weights) == 2
    assert all(torch.equal(weights[0][name], value) for name, value in single.state_dict().items())
    assert not torch.equal(weights[0]["norm.weight"], weights[1]["norm.weight"])
