"""What is timed has the training options of its run: time and memory of a row are its own."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from timed_made_up import SHAPE, TIME

from modbench.data.config import DataConfig
from modbench.model.config import ModelConfig
from modbench.records.run import RouterCode, Run, Timed
from modbench.timing import benchmark_case, footprint
from modbench.timing.benchmark_case import BenchmarkTarget, training_cases
from modbench.timing.config import TimeConfig
from modbench.train.config import TrainConfig
from modbench.train.optimizer import Optimizer
from modbench.train.schedule import Schedule
from modbench.train.step import training_step

TRAIN = TrainConfig(sequence=32, batch=4, precision="float32")
#: Another value of each option.
OTHER: dict[str, Any] = {
    "sequence": 16,
    "batch": 2,
    "micro_batch": 1,
    "parallel": {"data": 2},
    "recompute": True,
    "optimizer": "muon",
    "learning_rate": 0.02,
    "muon_learning_rate": 0.03,
    "weight_decay": 0.2,
    "beta1": 0.8,
    "beta2": 0.8,
    "clip": 2.0,
    "precision": "bfloat16",
    "compile": "off",
    "evaluations": 3,
    "checkpoint_seconds": 1.0,
}
#: Options that alter neither time nor memory of a step, for a reason that someone gave: values of the
#: same arithmetic, and what [time] has.
NOT_TIMED = {"learning_rate", "muon_learning_rate", "weight_decay", "beta1", "beta2", "clip"}
NOT_TIMED |= {"compile", "evaluations", "checkpoint_seconds"}


def timed(train: TrainConfig) -> Timed:
    """What is timed of a run, as its job reads it."""
    run = Run(
        router=RouterCode(name="mod", options={}),
        model=ModelConfig(**SHAPE),
        data=DataConfig(),
        train=train,
        schedule=Schedule(budgets=(1000,)),
        seed=0,
    )
    return Timed.of(json.loads(json.dumps(run.timed.as_json())))


@pytest.mark.parametrize("option", [field.name for field in fields(TrainConfig)])
def test_time_and_memory_are_of_a_step_with_each_option(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = replace(TRAIN, optimizer="muon") if option == "muon_learning_rate" else TRAIN
    other = replace(base, **{option: OTHER[option]})
    assert getattr(other, option) != getattr(base, option)
    if option in NOT_TIMED:
        assert timed(other).key == timed(base).key
        return
    assert timed(other).key != timed(base).key
    steps: list[tuple[TrainConfig, Optimizer, str]] = []

    def step(
        model: Any, optimizer: Optimizer, train: TrainConfig, batch: Any, dtype: Any, **more: Any
    ) -> Any:
        steps.append((train, optimizer, str(dtype)))
        return training_step(model, optimizer, train, batch, dtype, **more)

    monkeypatch.setattr(benchmark_case, "training_step", step)
    monkeypatch.setattr(footprint, "training_step", step)
    target = BenchmarkTarget.of(timed(other), TimeConfig(**TIME))
    (case,) = (case for case in training_cases(target.build(), target) if case.phase == "train")
    case.prepare().run()
    footprint.training_footprint(target)
    assert len(steps) == 4
    for train, optimizer, dtype in steps:
        if option == "parallel":  # one process is timed, with its sequences
            assert (train.batch, train.parallel) == (TRAIN.batch // 2, None)
        else:
            assert getattr(train, option) == OTHER[option]
        assert hasattr(optimizer, "parts") == (train.optimizer == "muon")
        assert dtype == f"torch.{train.precision}"


def test_muons_memory_has_one_moment_of_each_matrix() -> None:
    found = {}
    for optimizer in ("adamw", "muon"):
        of = timed(replace(TRAIN, optimizer=optimizer))
        found[optimizer] = footprint.training_footprint(BenchmarkTarget.of(of, TimeConfig(**TIME)))
    matrices = 4 * (3 * 32 * 32 + 32 * 32 + 3 * 64 * 32)  # of float32, in each of four layers
    saved = found["adamw"]["optimizer"] - found["muon"]["optimizer"]
    steps = 4 * 4 * 4  # AdamW's number of steps of each of the four matrices
    assert saved == 4 * matrices + steps


def test_the_ceilings_of_a_machine_depend_on_the_size_of_a_step_alone() -> None:
    muon = replace(TRAIN, optimizer="muon", recompute=True)
    assert timed(muon).machine.key == timed(TRAIN).machine.key
    assert timed(replace(TRAIN, batch=2)).machine.key != timed(TRAIN).machine.key
