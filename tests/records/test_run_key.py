"""The key of a run depends on all that fixes its weights, and on nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from modbench.data.config import DataConfig
from modbench.model.config import ModelConfig
from modbench.records.run import RouterCode, Run
from modbench.train.config import TrainTable
from modbench.train.schedule import Schedule


def make_run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "router": RouterCode(name="mod", options={"capacity": 0.5}),
        "model": ModelConfig(width=32, layers=2, heads=4),
        "data": DataConfig(vocabulary=1024),
        "train": TrainTable(sequence=32, batch=2).config(),
        "schedule": Schedule(budgets=(1000,)),
        "seed": 0,
    }
    return Run(**{**fields, **changes})


RUN = make_run()


@pytest.mark.parametrize(
    "changed",
    [
        replace(RUN, router=replace(RUN.router, name="vanilla")),
        replace(RUN, router=replace(RUN.router, options={"capacity": 0.25})),
        replace(RUN, router=replace(RUN.router, plugin_sha256="ab" * 32)),
        replace(RUN, model=replace(RUN.model, width=64)),
        replace(RUN, model=replace(RUN.model, tied_head=not RUN.model.tied_head)),
        replace(RUN, model=replace(RUN.model, qk_norm=True)),
        replace(RUN, data=DataConfig(tokenizer="bytes")),
        replace(RUN, data=replace(RUN.data, vocabulary=512)),
        replace(RUN, train=replace(RUN.train, sequence=16)),
        replace(RUN, train=replace(RUN.train, batch=4)),
        replace(RUN, train=replace(RUN.train, learning_rate=1e-2)),
        replace(RUN, train=replace(RUN.train, weight_decay=0.0)),
        replace(RUN, train=replace(RUN.train, beta1=0.8)),
        replace(RUN, train=replace(RUN.train, beta2=0.9)),
        replace(RUN, train=replace(RUN.train, clip=2.0)),
        replace(RUN, train=replace(RUN.train, precision="float32")),
        replace(RUN, train=replace(RUN.train, compile="on")),
        replace(RUN, train=replace(RUN.train, optimizer="muon")),
        replace(RUN, train=replace(RUN.train, optimizer="muon", muon_learning_rate=0.1)),
        replace(RUN, schedule=replace(RUN.schedule, kind="wsd")),
        replace(RUN, schedule=replace(RUN.schedule, budgets=(2000,))),
        replace(RUN, schedule=replace(RUN.schedule, warmup=0.2)),
        replace(RUN, schedule=replace(RUN.schedule, final_learning_rate=0.0)),
        replace(RUN, seed=1),
    ],
)
def test_a_field_that_alters_weights_changes_the_key(changed: Run) -> None:
    assert len(changed.key) == len(RUN.key) == 16
    assert changed.key != RUN.key


def test_training_options_of_later_versions_are_stated_where_they_differ_from_their_defaults() -> None:
    always = {"sequence", "batch", "learning_rate", "weight_decay", "beta1", "beta2", "clip"}
    always |= {"precision", "compile"}
    stated = RUN.as_json()["train"]
    assert set(stated) == always
    muon = replace(RUN.train, optimizer="muon")
    assert muon.as_json() == stated | {"optimizer": "muon"}
    # The same weights.
    for same in (replace(muon, muon_learning_rate=muon.learning_rate), muon):
        assert same.as_json() == muon.as_json()
    assert replace(RUN.train, muon_learning_rate=0.1).as_json() == stated
    other = make_run(train=replace(muon, muon_learning_rate=0.1))
    assert Run.of(other.as_json()) == other


def test_a_shape_of_earlier_versions_has_the_json_that_it_had() -> None:
    assert "qk_norm" not in RUN.as_json()["model"]
    assert replace(RUN, model=replace(RUN.model, qk_norm=True)).as_json()["model"]["qk_norm"]


def test_the_decay_is_in_the_key_of_wsd_alone() -> None:
    for kind, differs in (("cosine", False), ("wsd", True)):
        run = replace(RUN, schedule=replace(RUN.schedule, kind=kind))
        longer = replace(run, schedule=replace(run.schedule, decay=0.3))
        assert (run.key != longer.key) == differs


@pytest.mark.parametrize("changes", [{"evaluations": 3}, {"checkpoint_seconds": 9.0}])
def test_a_setting_that_alters_no_weights_leaves_the_key(changes: dict[str, Any]) -> None:
    assert make_run(train=replace(RUN.train, **changes)).key == RUN.key


def test_neither_labels_nor_tasks_are_fields_of_a_run() -> None:
    """So that a row that is renamed, or scored on more tasks, is not trained again."""
    assert set(RUN.as_json()) == {"router", "model", "data", "train", "schedule", "seed"}
    assert set(RUN.as_json()["router"]) == {"name", "options", "plugin_sha256"}


def test_the_order_of_options_leaves_the_key() -> None:
    one, other = ({"every": 2, "capacity": 0.5}, {"capacity": 0.5, "every": 2})
    keys = {make_run(router=RouterCode(name="mod", options=options)).key for options in (one, other)}
    assert len(keys) == 1


def test_what_is_timed_depends_on_neither_seed_nor_schedule() -> None:
    others = (
        make_run(seed=1),
        make_run(schedule=Schedule(kind="wsd", budgets=(2,))),
        make_run(data=DataConfig(tokenizer="bytes")),
    )
    assert {run.timed.key for run in others} == {RUN.timed.key}
    wider = make_run(model=replace(RUN.model, width=64))
    assert wider.timed.key != RUN.timed.key
    assert RUN.timed.machine.key != RUN.timed.key
