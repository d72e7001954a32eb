"""The lease on a folder: the right to do its job and to store the records of it, which one process of
all machines that share the folder has. It is `filelock.SoftFileLease`: a marker file with a heartbeat,
which needs neither working file locks nor clocks that agree.

A process that finds a marker whose heartbeat has stood still for `EXPIRY_SECONDS`, by its own clock, or
whose holder on this machine has ended, takes the lease over. A holder that was stopped meanwhile
(SIGSTOP, a file server that is away) notices it at its next heartbeat, or before it stores a record.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from modbench.errors import UserError
from modbench.records.store import refuse_links

#: Seconds without a heartbeat after which a lease has expired, and between two heartbeats.
EXPIRY_SECONDS, BEAT_SECONDS = 60.0, 5.0
#: A process that takes a lease over moves the marker for a moment, and a server may be slow.
_LOOKS, _LOOK_SECONDS = 5, 0.2
_POLL_SECONDS = 0.2  #: short next to the seconds that a job takes to end
#: Errors of a file server that is away for a moment.
_AWAY = {errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOTCONN}


class LostError(Exception):
    """Another process has taken over a lease."""


class Lease:
    """The lease on ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._lost = False  #: another process has taken it over while this one held it
        self._looked = 0.0
        self._marker = folder / ".lease"
        self._lock = SoftFileLease(
            self._marker,
            lease_duration=EXPIRY_SECONDS,
            heartbeat_interval=BEAT_SECONDS,
            on_compromise=lambda _: setattr(self, "_lost", True),
            thread_local=False,
        )

    def take(self, patience: float = 0.0) -> bool:
        """Take the lease; return False if another process holds it for ``patience`` seconds. One that
        has no heartbeat expires for an object that asks repeatedly. Raises UserError: the folder can't
        be written to."""
        try:
            self._marker.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=patience, poll_interval=_POLL_SECONDS)
            except Timeout:  # the first attempt of filelock 3.30 only removes a marker that has expired
                self._lock.acquire(timeout=0)
        except (Timeout, ValueError):  # ValueError: written with another duration
            return False
        except OSError as error:
            if error.errno in _AWAY:
                return False
            raise _not_writable(self._marker.parent, error.strerror) from error
        self._lost, self._looked = False, time.monotonic()
        return True

    def free(self) -> bool:
        """Return True if no process holds it."""
        if not os.path.lexists(self._marker):
            return True
        taken = self.take()
        self.release()
        return taken

    def check(self) -> None:
        """Raises LostError: another process has taken it over, or it was given up."""
        for _ in range(_LOOKS):
            owner = self._lock.owner
            if owner is not None and owner.token == self._lock.token and not self._lost:
                return
            time.sleep(_LOOK_SECONDS)
        raise LostError(str(self._marker))

    def watch(self) -> None:
        """`check`, at most once in `BEAT_SECONDS`: for a process that may have been stopped since."""
        if self._lost or time.monotonic() - self._looked > BEAT_SECONDS:
            self.check()
            self._looked = time.monotonic()

    def release(self) -> None:
        """Give it up, if this process holds it."""
        if self._lock.is_locked:
            self._lock.release(force=True)

    @contextmanager
    def held(self, waiting: Callable[[], object] = lambda: None) -> Iterator["Lease"]:
        """Hold it; ``waiting`` is called repeatedly while another process does, and may raise."""
        while not self.take():
            waiting()
            time.sleep(_POLL_SECONDS)
        try:
            yield self
        finally:
            self.release()


@contextmanager
def suite_lease(folder: Path, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold results/<suite> for a command that measures times. ``waiting``: called once with a sentence,
    and the lease is waited for, if another command holds it. Raises UserError: another one holds it and
    it isn't waited for, or it can't be written."""
    make_folder(folder)
    lease = Lease(folder)
    if not lease.take():
        busy = f"another `modbench` is at work in {folder}"
        if waiting is None:
            raise UserError(f"{busy}; wait for it to end, or give another --results")
        waiting(f"{busy} and measures times; this one goes on once it has ended")
    with lease.held():
        yield


def make_folder(folder: Path) -> None:
    """Make results/<suite>. Raises UserError: it can't be written to, or holds a link."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise _not_writable(folder, reason)
    refuse_links(folder)


def _not_writable(folder: Path, reason: str | None) -> UserError:
    return UserError(
        f"the results folder {folder} can't be written ({reason}); give another one with --results, or "
        "fix its permissions"
    )
