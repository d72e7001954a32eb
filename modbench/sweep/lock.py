"""The lock of `modbench time` on a suite's folder. Runs need none: see `modbench.sweep.claim`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from modbench.errors import UserError
from modbench.records.store import refuse_links

LOCK = ".lock"


@contextmanager
def suite_lock(folder: Path, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold results/<suite> for a command that measures times. ``waiting``: called once with a sentence,
    and the lock is waited for, if another command holds it. Raises UserError: another one holds it and
    it isn't waited for, or it can't be written."""
    lock = FileLock(folder / LOCK)
    make_folder(folder)
    busy = f"another `modbench` is at work in {folder}"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise UserError(f"{busy}; wait for it to end, or give another --results") from None
        waiting(f"{busy} and measures times; this one goes on once it has ended")
        lock.acquire(poll_interval=1.0)
    try:
        yield
    finally:
        lock.release()


def make_folder(folder: Path) -> None:
    """Make results/<suite>. Raises UserError: it can't be written to, or holds a link."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(
            f"the results folder {folder} can't be written ({reason}); give another one with "
            "--results, or fix its permissions"
        )
    refuse_links(folder)
