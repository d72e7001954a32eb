"""GPUs of this machine, one for each job that runs."""

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout


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

    def take(self) -> str | None:
        """A free device; None if there is none."""
        for name, lock in self._locks.items():
            if not lock.is_locked:
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                return name
        return None

    def give(self, name: str | None) -> None:
        """Give back a device that was taken."""
        if name is not None:
            self._locks[name].release()

    @classmethod
    def here(cls) -> "Devices":
        """The GPUs that this process may use; none on a machine without."""
        import torch

        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(count)]
        return cls(tuple(names[:count]))
