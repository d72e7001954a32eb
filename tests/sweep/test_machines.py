"""Machines without a common folder, as on docs/clusters.md, and several GPUs on one machine."""

from pathlib import Path

import pytest
from small_suite import modbench_says, write_suite

from modbench.sweep.local import Devices
from modbench.sweep.process import environment_of


def test_rows_of_two_machines_are_joined_by_copying_their_records(tmp_path: Path) -> None:
    labels = ("vanilla", "token_choice")
    write_suite(tmp_path, "shared", *labels)
    for label in labels:
        words = ("run", "suite.toml", "--only", label, "--results", label)
        code, out = modbench_says(tmp_path, *words)
        assert code == 0, out
    for path in (tmp_path / "token_choice" / "shared" / "records").iterdir():
        path.rename(tmp_path / "vanilla" / "shared" / "records" / path.name)  # no name is taken
    code, out = modbench_says(tmp_path, "run", "suite.toml", "--results", "vanilla")
    assert code == 0, out
    assert "shared: 2 of 2 runs done" in out


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
