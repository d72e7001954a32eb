"""Load of the machine while something is timed."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import psutil

#: Limit on this container's processor time (control groups, version 2).
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
#: A machine is overloaded if its cores are oversubscribed by more than this share, which leaves room for
#: services of the system.
SLACK = 0.1


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return list(process.cpu_affinity())
    return list(range(os.cpu_count() or 1))


def core_count() -> int:
    return len(usable_cores())


def thread_count() -> int:
    """Default number of threads: one per usable core, at most the container's quota."""
    return max(1, int(min(core_count(), quota() or core_count())))


def parallel() -> tuple[int, int]:
    """Default number of concurrent runs, and the threads of each. On CPUs every run has one thread, so
    that its bits do not depend on the number of runs; each GPU trains one run at a time."""
    import torch

    cores = thread_count()
    gpus = torch.cuda.device_count()
    return (gpus, max(1, cores // gpus)) if gpus else (cores, 1)


def quota() -> float | None:
    """Cores' worth of processor time that the container may use; None without a limit."""
    try:
        limit, period = _QUOTA.read_text().split()
    except OSError:  # no control groups, or no limit
        return None
    return None if limit == "max" else int(limit) / int(period)


class LoadMonitor:
    """Measures the load of other processes from its construction on."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._since = time.monotonic()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def state(self, threads: int, *, all_at_work: bool = True) -> dict[str, Any]:
        """``others``: mean number of cores that other processes kept busy. ``overloaded``: these plus
        our ``threads`` (or the cores they kept busy, unless ``all_at_work``) exceeded the cores, or the
        load average did at the start, or the threads exceed the quota."""
        span = time.monotonic() - self._since
        used_seconds = _own_seconds() - self._own
        others = round(max(0.0, _busy_seconds() - self._busy - used_seconds) / span, 2)
        used = threads if all_at_work else min(threads, used_seconds / span)
        cores = core_count()
        allowed = quota() or threads
        busiest = max(self._load, others + used) / cores
        return {
            "cores": cores,
            "threads": threads,
            "load_before": round(self._load, 2),
            "others": others,
            "overloaded": max(busiest, threads / allowed) > 1 + SLACK,
        }


def _busy_seconds() -> float:
    """Seconds that the usable cores were busy since the machine started."""
    times = psutil.cpu_times(percpu=True)
    return sum(
        sum(times[core]) - times[core].idle - getattr(times[core], "iowait", 0.0)
        for core in usable_cores()
    )


def _own_seconds() -> float:
    """Processor time of this process and its descendants, such as compilers."""
    process = psutil.Process()
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            total += sum(each.cpu_times()[:4])  # user and system, and those of awaited children
    return total
