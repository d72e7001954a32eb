"""Shares of a suite for machines without a common folder, as on docs/clusters.md, and several GPUs on
one machine."""

from pathlib import Path

import pytest
from small_suite import modbench_says, write_suite

from modbench.records.store import read_suite
from modbench.sweep.local import Devices
from modbench.sweep.process import environment_of


def test_the_shares_of_two_machines_are_all_runs_once_they_are_merged(tmp_path: Path) -> None:
    sweep = {"budgets": [1e7], "seeds": [0, 1, 2]}
    write_suite(tmp_path, "shared", "vanilla", sweep=sweep)
    for number in (1, 2):
        words = ("run", "suite.toml", "--shard", f"{number}/2", "--results", f"from-{number}")
        code, out = modbench_says(tmp_path, *words)
        assert code == 0, out
    seeds = [
        sorted(run.what.seed for run in read_suite(tmp_path / f"from-{number}" / "shared").runs)
        for number in (1, 2)
    ]
    assert seeds == [[0, 2], [1]]
    code, out = modbench_says(tmp_path, "merge", "from-1", "from-2", "--results", "all")
    assert code == 0, out
    code, out = modbench_says(tmp_path, "run", "suite.toml", "--results", "all")
    assert code == 0, out
    assert "shared: 3 of 3 runs done" in out


def test_a_device_is_held_by_one_job_of_any_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = Devices(("test-0", "test-1")), Devices(("test-0", "test-1"))
    taken = [first.take(), second.take()]
    assert taken == [("test-0",), ("test-1",)]
    assert first.take() is second.take() is None
    assert first.free() == 0
    first.give(["test-0"])
    assert second.free() == 1
    assert second.take() == ("test-0",)
    second.give(["test-0", "test-1"])
    assert second.take(3) is None
    assert first.take(2) == ("test-0", "test-1")  # those that were too few were given back
    first.give(["test-0", "test-1"])


def test_a_job_sees_its_device_only() -> None:
    assert environment_of(1, device="3")["CUDA_VISIBLE_DEVICES"] == "3"
    assert Devices.here().take() == ()  # without a GPU jobs need none
