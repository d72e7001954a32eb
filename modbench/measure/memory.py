"""Peak memory of training steps, measured in a process of its own.

The peak is taken above the memory that the process held after the same steps had run once and been
freed: code that a first run loads does not count.
"""

import json
import os
import signal
import subprocess
import sys
from typing import Any

from modbench.errors import UserError

#: Environment in which the C library returns freed buffers to the kernel at once and uses small pages,
#: so that the resident set is the memory in use.
MEMORY_ENV = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}


class KilledError(MemoryError):
    """The measured process was killed, most likely for lack of memory."""


def peak_memory(spec: dict[str, Any], threads: int) -> dict[str, Any]:
    """Peak bytes, ``{"median", "iqr", "n", "stable"}``, of a fresh process that builds the cell's model
    and optimizer and takes training steps on random tokens. One process has no spread: ``iqr`` and
    ``stable`` are None.

    ``spec``: ``cell`` and ``plugins``, as in a cell's specification.

    Raises:
        KilledError: the process was killed by SIGKILL.
        MemoryError: the process ran out of memory.
        UserError: the router's code raised.
        RuntimeError: the process failed otherwise; its last line says why.
    """
    threaded = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL")}
    cell = {**spec["cell"], "time": {"forced_balance": False, "deterministic": True}}
    given = {"kind": "peak", "cell": cell, "plugins": spec["plugins"], "threads": threads}
    child = subprocess.run(
        [sys.executable, "-m", "modbench.measure.worker"],
        input=f"{json.dumps(given)}\n",
        capture_output=True,
        text=True,
        env={**os.environ, **threaded, **MEMORY_ENV},
        check=False,
    )
    if child.returncode == -signal.SIGKILL:
        raise KilledError("measuring memory")
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no output"])[-1]
        if last.startswith("modbench: "):
            raise UserError(f"{last.removeprefix('modbench: ')} (while memory was measured)")
        raise RuntimeError(f"measuring memory failed with exit code {child.returncode}: {last}")
    found = json.loads(child.stdout.splitlines()[-1])
    if found["status"] == "oom":
        asked = found["asked_bytes"]
        raise MemoryError("measuring memory" + (f": tried to allocate {asked} bytes" if asked else ""))
    return {"median": found["measured"]["peak"], "iqr": None, "n": 1, "stable": None}
