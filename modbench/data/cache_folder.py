"""The user's cache folder, and how a file gets into it: whole, and from one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from modbench.errors import UserError


def cache_folder() -> Path:
    """The folder that ``MODBENCH_CACHE`` names, else the user's cache folder of this platform."""
    if os.environ.get("MODBENCH_CACHE"):
        return Path(os.environ["MODBENCH_CACHE"])
    from platformdirs import user_cache_path

    return user_cache_path("modbench")


@contextlib.contextmanager
def alone(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Be the one process that makes ``path``; others wait. A process that is killed gives the lock up.

    Raises:
        UserError: the folder can't be written, on entering or within.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(path.parent, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is preparing {path.name}: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def put(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step, within :func:`alone`.

    Whenever the process ends, the old file or the new one is there, whole; what a killed process left in
    the temporary file is overwritten by the next.

    Raises:
        UserError: the folder can't be written, or the disk is full; ``path`` is as it was.
    """
    temporary = path.with_name(f"{path.name}.part")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, is on disk
        finally:
            os.close(folder)
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"cache folder {folder} can't be written ({error.strerror}); "
        "set MODBENCH_CACHE to a folder that can"
    )
