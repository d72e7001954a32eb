"""The lock of one machine: shared by processes that train, exclusive for a process that measures.

All modbench processes of a user take it, whatever suite they run. It is a shared lock of the system,
which filelock has not; a second lock, the queue, keeps overlapping training processes from starving a
measurement.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from modbench.data.cache_folder import cache_folder

_POLL_SECONDS = 0.1


class MachineLock:
    """Not held at first. ``poll`` is called while a method waits, and may raise."""

    def __init__(self, folder: Path | None = None) -> None:
        try:
            self._machine, self._queue = _open(folder or cache_folder())
        except OSError:  # a cache folder that is read-only, shared by several users
            self._machine, self._queue = _open(Path(tempfile.gettempdir()) / f"modbench-{os.getuid()}")

    def share(
        self, waiting: Callable[[], None] = lambda: None, poll: Callable[[], None] = lambda: None
    ) -> bool:
        """Hold the lock shared. While another process measures or waits to measure, release the lock,
        call ``waiting`` once and wait; return True if that was so. Takes microseconds otherwise."""
        if _try(self._queue, fcntl.LOCK_SH):
            _release(self._queue)
            if _try(self._machine, fcntl.LOCK_SH):
                return False
        waiting()
        _release(self._machine)
        _acquire(self._queue, fcntl.LOCK_SH, poll)
        _release(self._queue)
        _acquire(self._machine, fcntl.LOCK_SH, poll)
        return True

    @contextmanager
    def exclusive(self, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock alone, after all others have released it; a shared hold is given up."""
        _release(self._machine)  # two waiting processes that kept it would wait for each other
        _acquire(self._queue, fcntl.LOCK_EX, poll)
        try:
            _acquire(self._machine, fcntl.LOCK_EX, poll)
        finally:
            _release(self._queue)
        try:
            yield
        finally:
            _release(self._machine)

    def close(self) -> None:
        self._machine.close()
        self._queue.close()


def _open(folder: Path) -> tuple[IO[str], IO[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "machine.lock").open("w"), (folder / "machine.queue").open("w")


def _acquire(file: IO[str], kind: int, poll: Callable[[], None]) -> None:
    while not _try(file, kind):
        poll()
        time.sleep(_POLL_SECONDS)


def _try(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _release(file: IO[str]) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)
