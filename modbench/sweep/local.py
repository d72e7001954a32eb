"""Runs jobs on this machine: a worker's process each, on a device of its own, or in the command's own
process."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from modbench.errors import UserError
from modbench.sweep import process
from modbench.sweep.executor import Executor, Tell
from modbench.sweep.job import Job, TimeJob
from modbench.sweep.worker import HELD, STOPPED, serve
from modbench.timing.system_load import gpu_users, parallel

_STOP_SECONDS = 20.0  #: time for a worker to store a small checkpoint when asked to stop
_STORED_BYTES = 1e8  #: bytes of a large one stored in a second, with its copy from a GPU and its hash
_POLL_SECONDS = 0.2  #: too short a delay to notice


class Devices:
    """The devices ``names``, as `CUDA_VISIBLE_DEVICES` has them. A device is held by one job at a time,
    of any command on this machine: by a lock in the machine's folder for temporary files, where a lease
    of another user's killed process could not be removed."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        folder = Path(tempfile.gettempdir())
        self.names = names
        self._locks = {
            name: FileLock(folder / f"modbench-device-{name}.lock", mode=0o666) for name in names
        }

    def take(self, count: int = 1) -> tuple[str, ...] | None:
        """``count`` free devices, or none of a machine that has none; None if too few are free."""
        if not self._locks:
            return ()
        taken = [*islice(filter(self._takes, self._locks), count)]
        if len(taken) == count:
            return tuple(taken)
        self.give(taken)
        return None

    def free(self) -> int:
        """Number of jobs that find a device now."""
        if not self._locks:
            return sys.maxsize
        free = [*filter(self._takes, self._locks)]
        self.give(free)
        return len(free)

    def _takes(self, name: str) -> bool:
        """Take the device ``name``; return False if a job holds it."""
        lock = self._locks[name]
        try:
            if not lock.is_locked:
                lock.acquire(timeout=0)
                return True
        except Timeout:
            pass
        except OSError as error:
            raise UserError(f"{lock.lock_file} can't be opened ({error.strerror}); remove it") from error
        return False

    def give(self, names: Iterable[str]) -> None:
        """Give back devices that were taken."""
        for name in names:
            self._locks[name].release()

    @classmethod
    def here(cls) -> "Devices":
        """The GPUs that this process may use; none on a machine without."""
        import torch

        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(count)]
        return cls(tuple(names[:count]))


def refuse_machine(wanted: str, precision: str) -> None:
    """Raise a `UserError` for this machine: see `modbench.train.numerics.check_device`. The command does
    not use its GPU."""
    import torch

    from modbench.measure.environment import gpu_has_bfloat16
    from modbench.train.numerics import check_device

    check_device(wanted, precision, bfloat16=not torch.cuda.is_available() or gpu_has_bfloat16())


def refuse_missing_devices(ranks: int) -> None:
    """Raise a `UserError` if this machine has GPUs, but fewer than ``ranks``."""
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < ranks:
        raise UserError(
            f"[train] parallel has {ranks} processes, one per GPU, and a run sees {devices} here; lower "
            "it, or give the run more GPUs"
        )


def refuse_used_devices(ranks: int) -> None:
    """Raise a `UserError` if a run needs ``ranks`` of this machine's GPUs, more than one, and other
    processes use too many of them. This one does not use them."""
    names = Devices.here().names
    users = gpu_users(names) if names and ranks > 1 else {}
    if users and len(names) - len(users) < ranks:
        pids = ", ".join(users.values())
        raise UserError(
            f"[train] parallel has {ranks} processes, one per GPU, and {len(users)} of {len(names)} "
            f"GPUs here are in use (process {pids}); wait for their end, or lower it"
        )


class InProcess:
    """A worker in this process, whose job is done when it has been made: code of routers has the
    terminal, for `breakpoint()`, and what ends it ends the command. Raises KeyboardInterrupt: a signal
    stopped the job."""

    def __init__(self, folder: Path, **_: Any) -> None:
        self.code, self._error = serve(folder, began=time.monotonic())
        if self.code == STOPPED:
            raise KeyboardInterrupt

    def ended(self) -> bool:
        return True

    def ask_to_stop(self) -> None:
        pass

    def close(self) -> None:
        pass

    def death(self) -> tuple[str, str]:
        return "failed", self._error


class Local(Executor):
    """Executor of this machine: ``workers`` jobs at a time, each on one of ``devices``, if there are
    any; ``inline``: in this process, one after the other."""

    here = True

    def __init__(self, workers: int = 1, devices: Devices | None = None, inline: bool = False) -> None:
        self.threads = parallel()[1]
        self.workers, self.inline = workers, inline
        self._devices = devices or Devices()
        self._start: Callable[..., Any] = InProcess if inline else process.Process
        self._running: dict[Path, Any] = {}
        self._taken: dict[Path, tuple[str, ...]] = {}
        self._ended: dict[Path, Any] = {}

    def room(self, alive: int) -> int:
        return min(self.workers - len(self._running), self._devices.free())

    def submit(self, jobs: Sequence[Job], tell: Tell) -> list[Job]:
        started = []
        for job in jobs:
            devices = self._devices.take(job.ranks)
            if devices is None:
                break
            self._taken[job.folder] = devices
            self._running[job.folder] = self._start(
                job.folder,
                log=job.log,
                threads=job.threads,
                measures=job.measures if isinstance(job, TimeJob) else "",
                device=",".join(devices),
            )
            started.append(job)
        return started

    def alive(self) -> set[Path]:
        for folder in [folder for folder, worker in self._running.items() if worker.ended()]:
            self.end(folder)
        return {*self._running}

    def end(self, folder: Path) -> None:
        worker = self._ended[folder] = self._running.pop(folder)
        worker.close()
        self._devices.give(self._taken.pop(folder))

    def held(self, folder: Path) -> bool:
        return bool(self._ended[folder].code == HELD)

    def death(self, job: Job) -> tuple[str, str]:
        died: tuple[str, str] = self._ended[job.folder].death()
        return died

    def stop(self, hurry: Callable[[], bool], tell: Tell) -> None:
        """Ask the workers to store their checkpoints and end; kill those that don't in time, or all of
        them once ``hurry`` returns True."""
        if not self.alive():
            return
        checkpoints = [folder / "checkpoint.pt" for folder in self._running]
        largest = max(path.stat().st_size if path.exists() else 0 for path in checkpoints)
        patience = _STOP_SECONDS + largest / _STORED_BYTES
        tell(f"stopping: waiting up to {patience:.0f} s for checkpoints")
        for worker in self._running.values():
            worker.ask_to_stop()
        deadline = time.monotonic() + patience
        while self.alive() and time.monotonic() < deadline and not hurry():
            time.sleep(_POLL_SECONDS)
        for folder in [*self._running]:
            self.end(folder)
