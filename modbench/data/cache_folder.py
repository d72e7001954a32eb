"""The user's cache folder: one process at a time makes a file, and files are replaced whole."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from modbench.errors import UserError


def cache_folder() -> Path:
    """The folder that ``MODBENCH_CACHE`` names, else the user's cache folder of this platform."""
    if os.environ.get("MODBENCH_CACHE"):
        return Path(os.environ["MODBENCH_CACHE"])
    from platformdirs import user_cache_path

    return user_cache_path("modbench")


@contextlib.contextmanager
def file_lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of ``path`` while it is made; other processes wait. The lock of a killed process is
    free. Raise a `UserError` if the folder can't be written."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    with writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is preparing {path.name}: waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def put(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file of ``content``; the caller holds its `file_lock`.

    A process killed at any moment leaves the old file or the new one, whole. Raise a `UserError` if the
    folder can't be written or the disk is full; ``path`` is unchanged then."""
    temporary = path.with_name(f"{path.name}.part")
    with writable(path.parent):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Raise a `UserError` for an error of the file system inside: ``folder`` can't be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cache folder {folder} can't be written ({error.strerror}); "
            "set MODBENCH_CACHE to a folder that can"
        ) from None
