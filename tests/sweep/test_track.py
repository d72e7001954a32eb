"""Trackers: real event files of TensorBoard, and fakes with the calls of wandb 0.31 and trackio 0.43."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modbench.data.config import DataConfig
from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.records.run import RouterCode, Run
from modbench.sweep.rows import resolve
from modbench.sweep.suite import parse_suite
from modbench.sweep.track import TrackConfig, Trackers
from modbench.sweep.wanted import expand
from modbench.train.config import TrainConfig
from modbench.train.schedule import Schedule

KEY = "0123456789abcdef"
RUN = Run(
    router=RouterCode(name="mod", options={}),
    model=ModelConfig(),
    data=DataConfig(),
    train=TrainConfig(),
    schedule=Schedule(budgets=(1_500_000_000_000,)),
    seed=3,
)
NAME = "mod_small_25_-1.5e+12-seed3-01234567"
ALL = TrackConfig(wandb="offline", trackio=True, project="p")


class FakeRun:
    """A run of Weights & Biases or trackio, which have the same methods."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.finished = broken, False
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        if self.broken:
            raise ConnectionError("no\nnetwork")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


class FakeBackend:
    """Module ``wandb`` or ``trackio``."""

    def __init__(self, **settings: bool) -> None:
        self.run, self.asked = FakeRun(**settings), dict[str, Any]()

    def init(self, **asked: Any) -> FakeRun:
        self.asked = asked
        return self.run

    Settings = SimpleNamespace


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    return fake(monkeypatch, "wandb")


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    return fake(monkeypatch, "trackio")


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **settings: bool) -> FakeBackend:
    for variable in ("WANDB_ERROR_REPORTING", "TRACKIO_DIR"):
        monkeypatch.setenv(variable, "")  # restored at the end of the test
        monkeypatch.delenv(variable)
    backend = FakeBackend(**settings)
    monkeypatch.setitem(sys.modules, name, backend)  # type: ignore[arg-type]
    return backend


def opened(config: TrackConfig, folder: Path) -> Trackers:
    return Trackers(config, "s", "mod/small 25 %", RUN, folder / "runs" / KEY)


def step(number: int, loss: float) -> dict[str, Any]:
    event = {"event": "step", "phase": "train", "step": number, "steps": 4, "loss": loss}
    return event | {"flops": 10**24 * number, "budget": 10**25, "tokens": 8 * number}


POINT = {"event": "point", "step": 4, "tokens": 32, "flops": 4, "train_loss": 1.0, "heldout_loss": 1.5}
METRICS = {
    "event": "metrics",
    "metrics": {
        "train_steps": 4,
        "flip_rate": None,
        "step_time": {"median": 0.25, "iqr": None, "n": 3, "stable": None},
    },
}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs" / KEY / "tensorboard" / NAME))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags}


def test_tensorboard_has_the_curve_and_the_metrics_of_a_run(tmp_path: Path) -> None:
    trackers = opened(TrackConfig(tensorboard=True), tmp_path)
    for event in (step(1, 3.0), step(4, 1.0), POINT, METRICS, {"event": "phase", "phase": "audit"}):
        trackers.event(event)
    trackers.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(1, 3.0), (4, 1.0)]
    assert found["train/tokens"] == [(1, 8.0), (4, 32.0)]
    assert found["heldout/loss"] == [(4, 1.5)]
    assert found["metrics/step_time"] == [(5, 0.25)]
    assert found["metrics/train_steps"] == [(5, 4.0)]
    assert "metrics/flip_rate" not in found


def test_trackers_have_an_authors_series_until_the_end(wandb: FakeBackend, tmp_path: Path) -> None:
    routing = {"event": "routing", "series": {"heat": 2.0}}
    measured, trained = (opened(TrackConfig(wandb="offline"), tmp_path) for _ in range(2))
    measured.event({**routing, "step": None})  # of a process that took no step
    for event in ({**routing, "step": 0}, step(4, 1.0), {**routing, "step": None}):
        trained.event(event)
    trained.event({"event": "routing", "step": 2, "series": {}})
    logged = [(number, of["routing/heat"]) for number, of in wandb.run.logged if "routing/heat" in of]
    assert logged == [(0, 2.0), (5, 2.0)]
    assert len(wandb.run.logged) == 3


def test_tensorboard_has_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    config = TrackConfig(tensorboard=True)
    killed, stopped, resumed = (opened(config, tmp_path) for _ in range(3))
    for number in (1, 2, 3):
        killed.event(step(number, 5.0 - number))
    killed.close()
    stopped.event({"event": "metrics", "metrics": {"heldout_loss": 9.0}})  # before its first step
    stopped.close()
    resumed.event(step(2, 3.0))
    resumed.event(step(4, 1.0))
    resumed.close()
    assert scalars(tmp_path)["train/loss"] == [(1, 4.0), (2, 3.0), (4, 1.0)]


def test_wandb_gets_an_offline_run_with_the_key_in_the_folder_of_the_run(
    tmp_path: Path, wandb: FakeBackend, trackio: FakeBackend
) -> None:
    trackers = opened(ALL, tmp_path)
    trackers.event(step(2, 3.0))
    trackers.event(METRICS)
    trackers.close()
    asked = wandb.asked
    assert (asked["id"], asked["mode"], asked["resume"]) == (KEY, "offline", "allow")
    assert asked["dir"] == str(tmp_path / "runs" / KEY)
    assert (asked["project"], asked["group"], asked["name"]) == ("p", "s", NAME)
    assert asked["config"] == RUN.as_json() | {"label": "mod/small 25 %"}
    assert wandb.run.logged[0] == (2, {"train/loss": 3.0, "train/flops": 2e24, "train/tokens": 16.0})
    assert wandb.run.logged[1:] == [(5, {"metrics/train_steps": 4.0, "metrics/step_time": 0.25})]
    assert trackio.run.logged == wandb.run.logged
    assert wandb.run.finished
    assert trackio.run.finished


def test_a_tracker_that_raises_is_dropped_and_the_others_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trackio: FakeBackend,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake(monkeypatch, "wandb", broken=True)
    trackers = opened(ALL, tmp_path)
    trackers.event(step(1, 3.0))
    trackers.event(step(2, 2.0))
    trackers.close()
    assert [number for number, _ in trackio.run.logged] == [1, 2]
    said = "modbench: wandb failed (no network); the run goes on without it\n"
    assert capsys.readouterr().err == said


def test_trackers_are_no_part_of_a_run() -> None:
    suite = {
        "suite": {"name": "s"},
        "data": {"tokenizer": "bytes"},
        "sweep": {"budgets": [10**13]},
        "schemes": [{"router": "vanilla"}],
    }
    tracked = parse_suite(suite | {"track": {"tensorboard": True, "wandb": "offline"}}, "s.toml")
    assert tracked.track == TrackConfig(tensorboard=True, wandb="offline")
    assert expand(resolve(tracked)) == expand(resolve(parse_suite(suite, "s.toml")))
    with pytest.raises(UserError, match=r"\[track\] wandb is True; it should be 'off', 'offline' or"):
        parse_suite(suite | {"track": {"wandb": True}}, "s.toml")
