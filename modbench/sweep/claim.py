"""Claims: the right to work on a run or an audit, held by one process of any machine that shares the
results folder. Needs neither working file locks nor clocks that agree.

A claim is a file with a number in a folder; creating the next number is what the file system does for
one process only. Its holder writes a heartbeat into it. A process that finds a claim whose heartbeat has
stood still for `EXPIRY_SECONDS`, by its own clock, or whose holder on this machine has ended, creates
the next number and so takes over. A holder that has lost its claim notices it at its next heartbeat, or
before it stores a record. The newest file stays when a claim is given up: numbers never repeat.

`modbench time` holds a lock on the whole folder instead.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from modbench.errors import UserError
from modbench.records.store import refuse_links

#: Seconds without a heartbeat after which a claim of another machine has expired.
EXPIRY_SECONDS = 60.0
BEAT_SECONDS = 5.0
_POLL_SECONDS = 0.2  #: short next to the seconds that a job takes to end
_PREFIX = "claim-"
_LENGTH = 400  #: bytes of a claim: written in place, so that a claim that is gone is not made again
#: Content of a claim that was given up.
_FREE = b"{}".ljust(_LENGTH)


class LostError(Exception):
    """Another process has taken over a claim."""


@dataclass
class Claim:
    """A claim that this process, or the one that hands it over, has made. ``path``: its file."""

    path: Path
    token: str  #: random
    _beats: int = field(default=0, init=False)

    def beat(self) -> None:
        """Write a heartbeat with the identity of this process. Raises LostError: see `check`."""
        self.check()
        self._beats += 1
        self._write(_content(self.token, self._beats))

    def check(self) -> None:
        """Raises LostError: another process has taken over, or the claim was given up."""
        if _newest(self.path.parent) != self.path:
            raise LostError(str(self.path))

    def release(self) -> None:
        """Give it up, if it is not lost."""
        with contextlib.suppress(LostError):
            self.check()
            self._write(_FREE)

    def _write(self, content: bytes) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY)
        except FileNotFoundError:
            raise LostError(str(self.path)) from None
        try:
            os.pwrite(descriptor, content, 0)
        finally:
            os.close(descriptor)

    @contextmanager
    def kept(self, lost: Callable[[], object]) -> Iterator["Claim"]:
        """Write heartbeats from a thread; ``lost`` is called there once another process takes over."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.is_set():
                try:
                    self.beat()
                except LostError:
                    lost()
                    return
                except OSError:  # a full disk, or a server that is away: the next heartbeat may succeed
                    pass
                ended.wait(BEAT_SECONDS)

        self.beat()
        thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()


class Claims:
    """Takes claims, and remembers since when it has seen those of others without a heartbeat."""

    def __init__(self, expiry: float = EXPIRY_SECONDS) -> None:
        self._expiry = expiry
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def take(self, folder: Path) -> Claim | None:
        """The claim on ``folder``; None while another process holds it. Raises UserError: the folder
        can't be written to."""
        token = secrets.token_hex(8)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            newest = _newest(folder)
            if newest is not None and not self._expired(newest):
                return None
            number = int(newest.name.removeprefix(_PREFIX)) + 1 if newest else 1
            path = folder / f"{_PREFIX}{number:06d}"
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:  # another process was faster
                return None
            try:
                os.write(descriptor, _content(token, 0))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(
                f"the results folder {folder} can't be written ({error.strerror}); give another one "
                "with --results, or fix its permissions"
            ) from error
        claim = Claim(path, token)
        if _newest(folder) != path:  # this process slept while others took it and gave it up
            return None
        for older in folder.glob(f"{_PREFIX}*"):
            if older.name < path.name:
                older.unlink(missing_ok=True)
        return claim

    def held(self, folder: Path) -> bool:
        """Return True if another process holds the claim on ``folder``, as far as is known: it expires
        for one that asks repeatedly."""
        try:
            newest = _newest(folder)
        except FileNotFoundError:
            return False
        return newest is not None and not self._expired(newest)

    def _expired(self, path: Path) -> bool:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # taken over in this moment
            return False
        if content == _FREE:
            return True
        if (ended := _process_ended(content)) is not None:
            return ended
        before, since = self._seen.get(path, (None, 0.0))
        if content != before:
            self._seen[path] = content, time.monotonic()
            return False
        return time.monotonic() - since > self._expiry


@contextmanager
def claimed(folder: Path, waiting: Callable[[], object]) -> Iterator[Claim]:
    """Hold the claim on ``folder``; ``waiting`` is called repeatedly while another process holds it, and
    may raise."""
    claims = Claims()
    while (claim := claims.take(folder)) is None:
        waiting()
        time.sleep(_POLL_SECONDS)
    try:
        with claim.kept(lambda: None):
            yield claim
    finally:
        claim.release()


def _newest(folder: Path) -> Path | None:
    names = [name for name in os.listdir(folder) if name.removeprefix(_PREFIX).isdecimal()]
    return folder / max(names) if names else None


def _content(token: str, beats: int) -> bytes:
    identity = {**_world(), "pid": os.getpid(), "born": _born(os.getpid())}
    text = json.dumps({"token": token, "beats": beats, **identity})
    return text.encode().ljust(_LENGTH)


def _world() -> dict[str, Any]:
    """The machine, its boot and the container of this process, which tell its processes from others."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname()[:60], "boot": boot, "namespace": namespace}


def _born(pid: int) -> float | None:
    """Start of the process ``pid``, which tells it from a later one of the same number; None: it has
    ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else born(process)
    except psutil.Error:
        return None


def born(process: psutil.Process) -> float:
    """The start of ``process`` on a clock that cannot be set: Linux's ticks since the boot."""
    with contextlib.suppress(OSError):
        # The name, in brackets, may hold spaces.
        return float(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return process.create_time()


def _process_ended(content: bytes) -> bool | None:
    """True if the process that wrote ``content`` runs no longer; None if this machine can't tell."""
    try:
        claim = json.loads(content)
        world, pid, born = {name: claim[name] for name in _world()}, claim["pid"], claim["born"]
    except (ValueError, KeyError, TypeError):  # cut off: its writer was killed, or writes now
        return None
    return _born(pid) != born if world == _world() else None


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
