"""Timing alone, memory above the idle process, and what is timed."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from modbench.measure import machine_lock as quiets
from modbench.measure import timing
from modbench.measure.machine_lock import Quiet
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


def test_nobody_works_while_one_is_alone(tmp_path: Path) -> None:
    one, other = Quiet(tmp_path), Quiet(tmp_path)
    waited: list[bool] = []

    class GaveUpError(Exception):
        pass

    def give_up() -> None:
        waited.append(True)
        raise GaveUpError

    with pytest.raises(GaveUpError), one.alone(give_up):
        pytest.fail("the other one was at work")
    assert waited
    other.close()
    with one.alone(give_up):
        newcomer = threading.Thread(target=lambda: Quiet(tmp_path).close(), daemon=True)
        newcomer.start()
        newcomer.join(0.3)
        assert newcomer.is_alive()  # it waits to be let in
    newcomer.join(5)
    assert not newcomer.is_alive()
    one.close()


def test_who_comes_during_a_timing_says_that_it_waits_and_can_be_stopped(tmp_path: Path) -> None:
    one = Quiet(tmp_path)
    heard: list[str] = []

    class StoppedError(Exception):
        pass

    def check() -> None:
        heard.append("asked")
        if len(heard) > 2:
            raise StoppedError

    with one.alone(), pytest.raises(StoppedError):
        Quiet(tmp_path, waits=lambda: heard.append("waits"), check=check)
    assert heard == ["waits", "asked", "asked"]
    with one.alone():  # who gave up holds nothing
        pass
    one.close()
    Quiet(tmp_path, waits=lambda: pytest.fail("nobody times"), check=check).close()


def test_who_works_gives_way_to_who_waits(tmp_path: Path) -> None:
    at_work, waiting = Quiet(tmp_path), Quiet(tmp_path)
    heard: list[str] = []
    assert not at_work.give_way(waits=lambda: pytest.fail("nobody waits"))
    timed = threading.Event()

    def time_it() -> None:
        with waiting.alone():
            timed.set()
            time.sleep(0.3)
            heard.append("timed")

    timing = threading.Thread(target=time_it, daemon=True)
    timing.start()
    assert not timed.wait(0.3)  # somebody is at work
    while not at_work.give_way(waits=lambda: heard.append("waits")):
        time.sleep(0.01)
    assert heard == ["waits", "timed"]
    timing.join(5)
    newcomer = Quiet(tmp_path)
    with pytest.raises(BlockingIOError), newcomer.alone(_nobody):
        pytest.fail("who gave way is at work again")
    for quiet in (at_work, waiting, newcomer):
        quiet.close()


def _nobody() -> None:
    raise BlockingIOError


def test_two_who_wait_are_served_and_one_who_gave_up_is_waited_for_no_more(tmp_path: Path) -> None:
    at_work, one, other = (Quiet(tmp_path) for _ in range(3))
    with pytest.raises(BlockingIOError), one.alone(_nobody):
        pytest.fail("somebody is at work")
    assert not at_work.give_way()
    served: list[str] = []

    def time_it(quiet: Quiet, name: str) -> None:
        with quiet.alone():
            served.append(name)
        quiet.close()

    threads = [
        threading.Thread(target=time_it, args=pair, daemon=True)
        for pair in ((one, "one"), (other, "other"))
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(served) < 2 and time.monotonic() < until:
        at_work.give_way()
        time.sleep(0.01)
    assert sorted(served) == ["one", "other"]
    at_work.close()


def test_who_gives_way_can_be_stopped(tmp_path: Path) -> None:
    at_work, waiting = Quiet(tmp_path), Quiet(tmp_path)
    timed = threading.Event()
    over = threading.Event()

    def time_it() -> None:
        with waiting.alone():
            timed.set()
            over.wait(20)

    timing = threading.Thread(target=time_it, daemon=True)
    timing.start()

    def work() -> None:
        while True:
            at_work.give_way(check=_nobody)
            time.sleep(0.01)

    with pytest.raises(BlockingIOError):
        work()
    assert timed.wait(5)  # for who gave way holds nothing
    over.set()
    timing.join(5)
    at_work.close()
    waiting.close()


def test_a_cache_nobody_may_write_to_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(quiets.tempfile, "gettempdir", lambda: str(tmp_path))
    Quiet(blocked / "cache").close()
    assert list(tmp_path.glob("modbench-*/machine.lock"))


def test_a_whole_batch_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(SHAPE, build_router("vanilla"))
    seen: set[tuple[int, ...]] = set()
    right = type(model).forward

    def forward(self, tokens_BT: torch.Tensor, context: Context) -> torch.Tensor:
        seen.add(tuple(tokens_BT.shape))
        return right(self, tokens_BT, context)

    monkeypatch.setattr(type(model), "forward", forward)
    train = TrainConfig(budget=1, sequence=48, batch=3)
    text_N = np.random.default_rng(0).integers(97, size=2000)
    found = timing.time_model(model, train, dtype=torch.float32, repeats=3, text=text_N)
    assert seen == {(3, 48)}
    assert found["forward_seconds"]["n"] == found["train_step_seconds"]["n"] == 3
