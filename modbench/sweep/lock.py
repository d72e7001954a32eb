"""File locks on results folders: one `modbench run` per suite, one process per run and per audit."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from modbench.errors import UserError

LOCK = ".lock"
_POLL_SECONDS = 0.2  #: short next to the seconds that a job takes to end


def suite_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold results/<suite> for this run. Raises UserError: another run holds it, or it can't be
    written."""
    busy = f"another `modbench` is at work in {folder}; wait for it to end, or give another --results"
    return _locked(folder / LOCK, busy)


def job_lock(
    folder: Path, *, seconds: float = 10.0, waiting: Callable[[], None] = lambda: None
) -> AbstractContextManager[None]:
    """Hold the folder of one run, as its own process does while it works. ``waiting`` is called
    while another process holds it. Raises UserError: another process still holds it after ``seconds``,
    or it can't be written."""
    busy = f"a process of an earlier run still works in {folder}; end it and run again"
    return _locked(folder / LOCK, busy, seconds=seconds, waiting=waiting)


def audit_lock(results: Path, key: str, *, waiting: Callable[[], None]) -> AbstractContextManager[None]:
    """Hold the audit ``key`` of results/<suite>. ``waiting`` is called repeatedly while another process
    holds it, and may raise."""
    file = results / "runs" / f"audit-{key}.lock"
    return _locked(file, "", seconds=math.inf, waiting=waiting)


def wait_for_orphans(folders: Sequence[Path], say: Callable[[str], None]) -> None:
    """Wait for jobs of an earlier command that was killed: they notice it, store a checkpoint and end.
    Raises UserError: one still works after a minute."""
    message = "a job of an earlier, killed command is storing its checkpoint; waiting for it to end"
    once = cache(lambda: say(message))
    for folder in folders:
        if (folder / LOCK).exists():
            with job_lock(folder, seconds=60.0, waiting=once):
                pass


@contextmanager
def _locked(
    file: Path, busy: str, *, seconds: float = 0.0, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    lock = FileLock(file)
    end = time.monotonic() + seconds
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if time.monotonic() >= end:
                    raise UserError(busy) from None
                waiting()
                time.sleep(_POLL_SECONDS)
    except OSError as error:
        raise UserError(
            f"the results folder {file.parent} can't be written ({error.strerror}); "
            "give another one with --results, or fix its permissions"
        ) from error
    try:
        yield
    finally:
        lock.release()
