"""A running cell from the engine's side: one process in its own session."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import modbench
from modbench.report.record import CellRecord
from modbench.sweep.cells import Cell
from modbench.sweep.child import PARENT_PIPE
from modbench.sweep.crash import error_of
from modbench.train.out_of_memory import out_of_memory_kills

#: By default glibc returns large buffers to the kernel at once; a training step then spends up to a
#: fifth of its time on page faults. These settings keep the memory, and ask for it in huge pages.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}

Events = queue.SimpleQueue[tuple[str, dict[str, Any]]]


class CellProcess:
    """Starts the cell of ``spec``; its events go to ``events`` under ``key``.

    ``alive`` is the reading end of a pipe that this process holds open: the cell ends when it closes.
    ``before`` are the records that the cell had so far.
    """

    def __init__(
        self,
        key: str,
        title: str,
        spec: dict[str, Any],
        *,
        command: Callable[[Path], list[str]],
        events: Events,
        alive: int,
        before: Sequence[CellRecord],
    ) -> None:
        self.title = title
        self.cell: Cell = spec["cell"]
        self.before = list(before)
        self.started = datetime.now(UTC)
        folder = Path(spec["folder"])
        self.log = folder / "log.txt"
        self._output = folder / "output.txt"
        self._kills_before = out_of_memory_kills()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "spec.json"
        file.write_text(json.dumps(spec, indent=1), encoding="utf-8")
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command(file),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(spec["threads"]) | {PARENT_PIPE: str(alive)},
                start_new_session=True,  # Ctrl-C on the terminal is for the engine to handle
                pass_fds=(alive,),
            )
        self._reader = threading.Thread(target=self._read, args=(key, events), daemon=True)
        self._reader.start()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        """Ask the cell to store its checkpoint and end."""
        if not self.ended():
            self._process.terminate()

    def close(self) -> None:
        """Kill what is left of the session, and read the last events."""
        kill_session(self._process)
        self._process.wait()
        self._reader.join(timeout=5)

    def refused(self) -> bool:
        """Return True if the process has ended for a user's mistake."""
        return self._process.returncode == 2

    def out_of_memory(self) -> bool:
        """Return True if the process was killed and the kernel has counted an out-of-memory kill since
        it started; a kill by hand alone is not one."""
        killed = self._process.returncode == -signal.SIGKILL
        return killed and out_of_memory_kills() > self._kills_before

    def error(self) -> str:
        """One line on how it ended."""
        return error_of(self.log, self._log_start, self._process.returncode)

    def _read(self, key: str, events: Events) -> None:
        """Read standard output: events go to the queue, other lines to a file apart from the log, where
        they could split a line of standard error."""
        assert self._process.stdout is not None
        with self._process.stdout, self._output.open("ab", buffering=0) as rest:
            for line in self._process.stdout:
                event = parsed_line(line)
                if "event" in event:
                    events.put((key, event))
                else:
                    rest.write(line)


def parsed_line(line: bytes) -> dict[str, Any]:
    """Return the JSON document of a line that a process printed; empty for other output."""
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def kill_session(process: "subprocess.Popen[bytes]") -> None:
    """Kill ``process`` and all processes in its session."""
    # Nothing may be left; macOS raises PermissionError for a group with only a zombie.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def child_environment(threads: int) -> dict[str, str]:
    """Environment variables of a process with ``threads`` threads that imports this modbench, whatever
    the working directory holds."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    path = [str(Path(modbench.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **ALLOCATOR,
        **os.environ,
        **{f"{name}_NUM_THREADS": str(threads) for name in names},
        "VECLIB_MAXIMUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONSAFEPATH": "1",
    }
