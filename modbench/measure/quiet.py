"""One timing at a time on this machine: work is done under a shared lock, timing under an exclusive one,
which waits until nobody works. All modbench processes of a user keep it, whatever suite they run.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from modbench.train.cache import cache_folder


def _lock_file(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "machine.lock").open("w")


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
            self._file = _lock_file(folder or cache_folder())
        except OSError:
            # A cache that somebody prepared for all and nobody may write to.
            self._file = _lock_file(Path(tempfile.gettempdir()) / f"modbench-{os.getuid()}")
        try:
            if not self._try(fcntl.LOCK_SH):
                waits()
                self._await(fcntl.LOCK_SH, check)
        except BaseException:
            self._file.close()
            raise

    @contextlib.contextmanager
    def alone(self, check: Callable[[], None] = nothing) -> Iterator[None]:
        """Hold the machine alone; wait for it first, and call ``check`` meanwhile, which may raise."""
        # Two waiters that both kept their shared lock would wait for each other.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._await(fcntl.LOCK_EX, check)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def _await(self, kind: int, check: Callable[[], None]) -> None:
        while not self._try(kind):
            check()
            time.sleep(0.1)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._file.close()
