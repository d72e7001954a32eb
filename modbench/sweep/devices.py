"""GPUs of this machine, held by the jobs that run."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from modbench.errors import UserError


class Devices:
    """The devices ``names``, as `CUDA_VISIBLE_DEVICES` has them. A device is held by one job at a time,
    of any command on this machine: by a lock in the machine's folder for temporary files."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        folder = Path(tempfile.gettempdir())
        self._locks = {
            name: FileLock(folder / f"modbench-device-{name}.lock", mode=0o666) for name in names
        }

    def __len__(self) -> int:
        return len(self._locks)

    def take(self, count: int = 1) -> tuple[str, ...] | None:
        """``count`` free devices, or none of a machine that has none; None if too few are free."""
        if not self._locks:
            return ()
        taken: list[str] = []
        for name, lock in self._locks.items():
            if len(taken) == count:
                break
            if not lock.is_locked:
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                except OSError as error:
                    raise UserError(
                        f"{lock.lock_file} can't be opened ({error.strerror}); remove it"
                    ) from error
                taken.append(name)
        if len(taken) == count:
            return tuple(taken)
        self.give(taken)
        return None

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


def refuse_missing_devices(ranks: int) -> None:
    """Raise a `UserError` if this machine has GPUs, but fewer than ``ranks``."""
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < ranks:
        raise UserError(
            f"[train] parallel has {ranks} processes, one per GPU, and a run sees {devices} here; lower "
            "it, or give the run more GPUs"
        )
