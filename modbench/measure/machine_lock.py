"""One timing at a time on this machine: work is done under a shared lock, timing under an exclusive one,
which waits until nobody works. Who waits for it says so by another lock, and who works gives way between
two pieces of work. All modbench processes of a user keep it, whatever suite they run.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from modbench.data.cache_folder import cache_folder

_POLL_SECONDS = 0.1


def _lock_files(folder: Path) -> tuple[IO[str], IO[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    machine = (folder / "machine.lock").open("w")
    try:
        return machine, (folder / "machine.queue").open("w")
    except BaseException:
        machine.close()
        raise


def nothing() -> None:
    """What is done while one waits, where nothing is."""


class Quiet:
    """The machine's lock, held shared from construction until `close`. Where a timing is on, waits for
    its end first: calls ``waits`` once, and ``check`` meanwhile, which may raise."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        waits: Callable[[], None] = nothing,
        check: Callable[[], None] = nothing,
    ) -> None:
        try:
            self._machine, self._queue = _lock_files(folder or cache_folder())
        except OSError:
            # A cache that somebody prepared for all and nobody may write to.
            shared = Path(tempfile.gettempdir()) / f"modbench-{os.getuid()}"
            self._machine, self._queue = _lock_files(shared)
        try:
            if not _taken(self._machine, fcntl.LOCK_SH):
                waits()
                _await(self._machine, fcntl.LOCK_SH, check)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def alone(self, check: Callable[[], None] = nothing) -> Iterator[None]:
        """Hold the machine alone; wait for it first, and call ``check`` meanwhile, which may raise."""
        # Two waiters that both kept their shared lock would wait for each other.
        _let_go(self._machine)
        _await(self._queue, fcntl.LOCK_EX, check)
        try:
            _await(self._machine, fcntl.LOCK_EX, check)
        finally:
            _let_go(self._queue)
        try:
            yield
        finally:
            fcntl.flock(self._machine, fcntl.LOCK_SH)

    def give_way(
        self, *, waits: Callable[[], None] = nothing, check: Callable[[], None] = nothing
    ) -> bool:
        """Let whoever waits to be alone go first, and say whether anybody did: calls ``waits`` once, and
        ``check`` meanwhile, which may raise; then the machine isn't held. Takes microseconds where
        nobody waits."""
        if not self._wanted():
            return False
        waits()
        _let_go(self._machine)
        while self._wanted():
            check()
            time.sleep(_POLL_SECONDS)
        _await(self._machine, fcntl.LOCK_SH, check)
        return True

    def _wanted(self) -> bool:
        if not _taken(self._queue, fcntl.LOCK_SH):
            return True
        _let_go(self._queue)
        return False

    def close(self) -> None:
        self._machine.close()
        self._queue.close()


def _await(file: IO[str], kind: int, check: Callable[[], None]) -> None:
    while not _taken(file, kind):
        check()
        time.sleep(_POLL_SECONDS)


def _taken(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_go(file: IO[str]) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)
