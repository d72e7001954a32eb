"""Cells share the machine; a measurement has it alone, and waits only until they pause."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modbench.measure import machine_lock
from modbench.measure.machine_lock import MachineLock

New = Callable[[], MachineLock]


@pytest.fixture
def new(tmp_path: Path) -> Iterator[New]:
    """Another process's lock of the same machine."""
    locks: list[MachineLock] = []

    def create() -> MachineLock:
        locks.append(MachineLock(tmp_path))
        return locks[-1]

    yield create
    for lock in locks:
        lock.close()


def give_up() -> None:
    raise TimeoutError


def test_a_measurement_waits_for_a_cell_and_a_new_cell_for_the_measurement(new: New) -> None:
    cell, measurement, newcomer = new(), new(), new()
    assert not cell.share()
    with pytest.raises(TimeoutError), measurement.exclusive(give_up):
        pytest.fail("the cell was at work")
    cell.close()
    heard: list[str] = []
    with measurement.exclusive(give_up), pytest.raises(TimeoutError):
        newcomer.share(lambda: heard.append("waiting"), give_up)
    assert heard == ["waiting"]
    with new().exclusive(give_up):  # a lock that gave up is not held
        pass


def test_two_measurements_do_not_overlap(new: New) -> None:
    one, other = new(), new()
    with one.exclusive(give_up), pytest.raises(TimeoutError), other.exclusive(give_up):
        pytest.fail("both measured")


def test_overlapping_cells_do_not_starve_measurements(new: New) -> None:
    cells, measurements = [new(), new()], [new(), new()]
    measured: list[int] = []
    for cell in cells:
        assert not cell.share()

    def measure(number: int) -> None:
        with measurements[number].exclusive():
            measured.append(number)

    def work(cell: MachineLock) -> None:
        while len(measured) < 2:
            cell.share()
            time.sleep(0.01)

    threads = [threading.Thread(target=measure, args=(n,), daemon=True) for n in range(2)]
    threads += [threading.Thread(target=work, args=(cell,), daemon=True) for cell in cells]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(measured) == [0, 1]


def test_a_read_only_cache_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(machine_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    MachineLock(tmp_path / "file" / "cache").close()
    assert list(tmp_path.glob("modbench-*/machine.lock"))
