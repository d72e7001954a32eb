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


class Quiet:
    """The machine's lock, held shared from construction until `close`."""

    def __init__(self, folder: Path | None = None) -> None:
        try:
            self._file = _lock_file(folder or cache_folder())
        except OSError:
            # A cache that somebody prepared for all and nobody may write to.
            self._file = _lock_file(Path(tempfile.gettempdir()) / f"modbench-{os.getuid()}")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def alone(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the machine alone; wait for it first, and call ``check`` meanwhile, which may raise."""
        # Two waiters that both kept their shared lock would wait for each other.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        while not self._try_alone():
            check()
            time.sleep(0.1)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def _try_alone(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._file.close()
