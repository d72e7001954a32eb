"""The lock of `modbench time` on a suite's folder. Runs need none: see `modbench.sweep.claim`."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from modbench.errors import UserError

LOCK = ".lock"


def suite_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold results/<suite> for a command that measures times. Raises UserError: another one holds it, or
    it can't be written."""
    busy = f"another `modbench` is at work in {folder}; wait for it to end, or give another --results"
    return _locked(folder / LOCK, busy)


@contextmanager
def _locked(file: Path, busy: str) -> Iterator[None]:
    lock = FileLock(file)
    make_folder(file.parent)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(busy) from None
    try:
        yield
    finally:
        lock.release()


def make_folder(folder: Path) -> None:
    """Make results/<suite>. Raises UserError: it can't be written to."""
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
