"""Load of the machine while something is timed, and the lock of the process that times."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from modbench.errors import UserError

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
        self._gpu_processes: dict[str, None] = {}
        self._since = time.monotonic()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def look_at_gpu(self) -> list[str]:
        """Note the other processes on the GPU; return all that were seen so far."""
        self._gpu_processes |= dict.fromkeys(gpu_processes())
        return list(self._gpu_processes)

    def state(self, threads: int, *, all_at_work: bool = True) -> dict[str, Any]:
        """``others``: mean number of usable cores that other processes kept busy. ``overloaded``: these
        plus our ``threads`` (or the cores they kept busy, unless ``all_at_work``) exceeded the cores, or
        the threads exceed the quota, or there were ``gpu_processes``, others on the GPU."""
        span = time.monotonic() - self._since
        used_seconds = _own_seconds() - self._own
        others = round(max(0.0, _busy_seconds() - self._busy - used_seconds) / span, 2)
        used = threads if all_at_work else min(threads, used_seconds / span)
        cores = core_count()
        allowed = quota() or threads
        busiest = max((others + used) / cores, threads / allowed)
        return {
            "cores": cores,
            "threads": threads,
            "others": others,
            "gpu_processes": list(self._gpu_processes),
            "overloaded": busiest > 1 + SLACK or bool(self._gpu_processes),
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


def gpu_processes() -> list[str]:
    """Other processes on this process's GPU, with their memory, but for those that started this one; []
    without a GPU, or if nvidia-smi does not tell."""
    import torch

    if not torch.cuda.is_available():
        return []
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"
    asked = ("nvidia-smi", gpu, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    listed = [line.split(", ") for line in answer.splitlines() if line.count(", ") == 1]
    here = psutil.Process()
    family = {str(p.pid) for p in (here, *here.parents(), *here.children(recursive=True))}
    others = [(pid, mebibytes) for pid, mebibytes in listed if pid not in family]
    # A process that has allocated has a context; PyTorch is initialised by asking for the uuid alone.
    if others and torch.cuda.memory_reserved() and str(here.pid) not in dict(listed):
        others.pop()  # in a container, where this process has another number: one of them is it
    return [f"process {pid} ({mebibytes} MiB)" for pid, mebibytes in others]


def gpu_users(names: Sequence[str]) -> dict[str, str]:
    """A process, by its number, on each GPU of ``names`` that one uses, by the GPU's UUID; {} if
    nvidia-smi does not tell. Needs no PyTorch, which would use the GPU."""
    asked = ("nvidia-smi", f"--id={','.join(names)}", "--query-compute-apps=gpu_uuid,pid")
    try:
        answer = subprocess.run(
            [*asked, "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split(", ") for line in answer.splitlines() if line.count(", ") == 1)


#: Longest wait for a quiet machine; then the measurement is taken, and marked as loaded. On a machine
#: that is never quiet, MODBENCH_QUIET_SECONDS=0 saves the wait, and `refuse_running` refuses nothing.
QUIET_SECONDS = float(os.environ.get("MODBENCH_QUIET_SECONDS", "10"))
#: Cores that other processes may keep busy on a quiet machine: a process that computes keeps a whole
#: one busy, and services of the system keep a little of one.
_QUIET_CORES = 0.15
#: Also the span over which load is measured: Linux counts it in ticks of 10 ms, and `_QUIET_CORES` are
#: nearly four of them.
_POLL_SECONDS = 0.25


@contextmanager
def measuring(
    *,
    wait: Callable[[str], None] = lambda reason: None,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Measure alone on this machine. ``wait`` is called with the reason of each wait, ``poll``
    repeatedly while it lasts, and may raise."""
    lock = FileLock(Path(tempfile.gettempdir(), "modbench-measuring.lock"), mode=0o666)
    while not lock.is_locked:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            break
        wait("waiting for another measurement to end")
        poll()
        time.sleep(_POLL_SECONDS)
    try:
        _wait_until_quiet(wait, poll)
        yield
    finally:
        lock.release()


def refuse_running() -> None:
    """Raise a `UserError` if a `modbench run` works on this machine, whose load times would include."""
    here = psutil.Process()
    family = {process.pid for process in (here, *here.parents(), *here.children(recursive=True))}
    for process in psutil.process_iter(["cmdline"]):
        words = [Path(word).name for word in process.info["cmdline"] or ()]
        command = words[words.index("modbench") :] if "modbench" in words[:4] else []
        runs = command[1:2] == ["run"] or "modbench.sweep.slurm" in words[:5]
        if runs and process.pid not in family and QUIET_SECONDS:
            raise UserError(
                f"process {process.pid} ({' '.join(command or words)}) works on this machine, and times "
                "would include its load; wait for its end, or stop it: it resumes"
            )


def _wait_until_quiet(wait: Callable[[str], None], poll: Callable[[], None]) -> None:
    end = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < end:
        load = LoadMonitor()
        before = _processor_seconds()
        time.sleep(_POLL_SECONDS)
        is_quiet = load.state(1)["others"] <= _QUIET_CORES
        on_gpu = gpu_processes()
        if is_quiet and not on_gpu:
            return
        poll()
        if is_quiet:
            wait(f"waiting for {on_gpu[0]} to leave the GPU")
            continue
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
