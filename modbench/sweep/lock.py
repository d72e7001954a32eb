"""Who may work in a folder: one `modbench run` per suite, one process per cell."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modbench.errors import UserError

LOCK = ".lock"


def make_folder(folder: Path) -> None:
    """``folder`` and its parents.

    Raises:
        UserError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"the results folder {folder} can't be written ({error.strerror}); "
        "give another one with --results, or mend its permissions"
    )


def try_lock(folder: Path) -> int | None:
    """The lock on ``folder`` as a file descriptor that keeps it while any process has it open; None if
    another process has it.

    Raises:
        UserError: the folder can't be written.
    """
    make_folder(folder)
    descriptor = None
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if descriptor is not None and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise _unwritable(folder, error) from error
    return descriptor


@contextmanager
def suite_lock(folder: Path, verb: str = "run") -> Iterator[None]:
    """Hold results/<suite> for this run of ``modbench <verb>``.

    Raises:
        UserError: another run holds it, or it can't be written.
    """
    descriptor = try_lock(folder)
    if descriptor is None:
        raise UserError(
            f"another `modbench {verb}` is at work in {folder}; wait for it to end, or give another "
            "folder with --results"
        )
    try:
        yield
    finally:
        os.close(descriptor)


def wait_for_orphans(folders: Sequence[Path], say: Callable[[str], None], seconds: float = 60.0) -> None:
    """Wait for cells of an earlier run that was killed: they notice, store a checkpoint and end.

    Raises:
        UserError: one is still at work after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    for folder in folders:
        if not (folder / LOCK).exists():
            continue
        told = False
        while (descriptor := try_lock(folder)) is None:
            if not told:
                say("a cell of an earlier, killed run is storing its checkpoint; waiting for it to end")
                told = True
            if time.monotonic() > deadline:
                raise UserError(
                    f"a process of an earlier run still works in {folder}; end it and run again"
                )
            time.sleep(0.1)
        os.close(descriptor)
