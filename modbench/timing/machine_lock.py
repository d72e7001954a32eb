"""One measurement at a time on a machine, while training pauses.

A process that measures holds a file lock and says so in a file next to it. Processes that train look
at that file between two steps and pause while it names a living process; they hold no lock, so that
one that hangs blocks no measurement. All modbench processes of a user share the two files.
"""

import contextlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from modbench.data.cache_folder import cache_folder, put
from modbench.errors import UserError
from modbench.timing.system_load import LoadMonitor

#: Longest wait for other processes to pause; then the measurement is taken, and marked as loaded. On a
#: machine that is never quiet, MODBENCH_QUIET_SECONDS=0 saves the wait.
QUIET_SECONDS = float(os.environ.get("MODBENCH_QUIET_SECONDS", "10"))
#: Cores that other processes may keep busy on a quiet machine: a process that computes keeps a whole
#: one busy, and services of the system keep a little of one.
_QUIET_CORES = 0.15
#: Also the span over which load is measured: Linux counts it in ticks of 10 ms, and `_QUIET_CORES` are
#: nearly four of them.
_POLL_SECONDS = 0.25


@contextmanager
def measuring(
    title: str,
    *,
    wait: Callable[[str], None] = lambda reason: None,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Measure alone on this machine. ``title`` names the measurement for waiting processes; ``wait`` is
    called with the reason of each wait, ``poll`` repeatedly while it lasts, and may raise."""
    folder = _folder()
    lock, marker = FileLock(folder / "measuring.lock"), folder / "measuring.json"
    while not lock.is_locked:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            break
        wait(f"waiting for {measured_elsewhere() or 'another measurement'} to end")
        poll()
        time.sleep(_POLL_SECONDS)
    try:
        put(
            marker, json.dumps({"title": title, "begun": time.time(), **_identity(os.getpid())}).encode()
        )
        _wait_until_quiet(wait, poll)
        yield
    finally:
        marker.unlink(missing_ok=True)
        lock.release()


def measured_elsewhere() -> str | None:
    """Title, process id and duration so far of another process's measurement; None if there is none,
    which takes microseconds."""
    marker = _folder() / "measuring.json"
    try:
        stated = json.loads(marker.read_bytes())
        alive = stated["pid"] != os.getpid() and _identity(stated["pid"])["since"] == stated["since"]
        minutes = int((time.time() - stated["begun"]) / 60)
        since = f", for {minutes} min" if minutes else ""
        named = f"the measurement of {stated['title']} (process {stated['pid']}{since})"
        return named if alive else None
    # No measurement; the process was killed; or the file is not ours.
    except (OSError, psutil.Error, ValueError, KeyError, TypeError):
        return None


def _identity(pid: int) -> dict[str, Any]:
    """A process id may be used again: with its start, it names one process."""
    return {"pid": pid, "since": psutil.Process(pid).create_time()}


def _wait_until_quiet(wait: Callable[[str], None], poll: Callable[[], None]) -> None:
    end = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < end:
        load = LoadMonitor()
        before = _processor_seconds()
        time.sleep(_POLL_SECONDS)
        if load.state(1)["others"] <= _QUIET_CORES:
            return
        poll()
        after = _processor_seconds()
        spent = {pid: after[pid] - before[pid] for pid in after.keys() & before}
        busiest = max(spent, key=spent.__getitem__, default=os.getpid())
        with contextlib.suppress(psutil.Error):
            wait(f"waiting for a quiet machine: process {busiest} ({psutil.Process(busiest).name()})")


def _processor_seconds() -> dict[int, float]:
    """Processor time of other processes, by process id."""
    pids = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    return {
        process.pid: sum(process.info["cpu_times"][:2])
        for process in psutil.process_iter(["cpu_times"])
        if process.pid not in pids and process.info["cpu_times"]
    }


def _folder() -> Path:
    folder = cache_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        return folder
    # A cache folder that is read-only, shared by several users.
    folder = Path(tempfile.gettempdir()) / f"modbench-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise UserError(
            f"{folder} is a link, or others may write to it; remove it, or set MODBENCH_CACHE to a "
            "folder of your own"
        )
    return folder
