"""Step ``memory``: peak memory of a training step, measured in a process of its own."""

import signal
from typing import Any

from modbench.errors import UserError
from modbench.routing.build import RoutedDecoder
from modbench.sweep.cell import CellRun
from modbench.sweep.crash import KILLED
from modbench.sweep.worker import DiedError, run_worker
from modbench.timing.memory_meter import release_memory


def memory(model: RoutedDecoder, cell: CellRun) -> dict[str, Any]:
    """Peak bytes, as `modbench time` measures them. One process has no spread.

    Raises:
        StoppedError: a stop was requested.
        MemoryError: the process ran out of memory, or was killed.
        UserError: the router's code raised.
        RuntimeError: the process failed otherwise.
    """
    release_memory(cell.device)  # on a GPU, the measured process shares the memory with this one
    spec = {
        "job": "peak",
        "measurement": "training_memory",
        "cell": {**cell.cell, "time": {"deterministic": True}},
        "plugins": cell.spec["plugins"],
        "threads": cell.spec["threads"],
    }
    try:
        found = run_worker(spec, log=cell.folder / "memory.txt", poll=cell.stage.check)
    except DiedError as death:
        if death.code == -signal.SIGKILL:
            raise MemoryError(f"measuring memory: {KILLED}") from None
        if death.code == 2:
            raise UserError(f"{death} (while memory was measured)") from None
        raise RuntimeError(f"measuring memory failed: {death}") from None
    if found["error"]:
        raise MemoryError(f"measuring memory: {found['error']}")
    return {"peak_memory_bytes": {"median": found["peak"], "iqr": None, "n": 1, "stable": None}}
