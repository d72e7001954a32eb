"""One timing at a time on this machine: work is done under a shared lock, timing under an exclusive one,
which waits until nobody works. All modbench processes of a user keep it, whatever suite they run.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from platformdirs import user_cache_path


class Quiet:
    """The machine's lock, held shared from construction until `close`."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or Path(os.environ.get("MODBENCH_CACHE") or user_cache_path("modbench"))
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = (folder / "machine.lock").open("w")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the machine alone; wait for it first."""
        # Two waiters that both kept their shared lock would wait for each other.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def close(self) -> None:
        self._file.close()
