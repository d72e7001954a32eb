"""A running cell as the engine sees it: one process in a session of its own."""

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
from modbench.errors import UserError
from modbench.report.record import Record
from modbench.sweep.cells import Cell
from modbench.sweep.child import PARENT_PIPE
from modbench.sweep.crash import error_of
from modbench.sweep.lock import try_lock
from modbench.train.out_of_memory import out_of_memory_kills

#: glibc hands large buffers back to the kernel at once, and a training step then spends up to a fifth of
#: its time on getting them again, page by page. What it has is kept, and asked for in huge pages.
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

    Raises:
        UserError: the folder can't be written, or another process works on the cell.
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
        before: Sequence[Record],
    ) -> None:
        self.title = title
        self.cell: Cell = spec["cell"]
        self.before = list(before)
        self.started = datetime.now(UTC)
        folder = Path(spec["folder"])
        self.log = folder / "log.txt"
        self._output = folder / "output.txt"
        self._kills_before = out_of_memory_kills()
        lock = try_lock(folder)
        if lock is None:
            raise UserError(f"another process works in {folder}; end it and run again")
        try:
            file = folder / "spec.json"
            file.write_text(json.dumps(spec, indent=1), encoding="utf-8")
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    command(file),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=_environment(spec["threads"], alive),
                    start_new_session=True,  # a Ctrl-C on the terminal is the engine's to handle
                    pass_fds=(lock, alive),  # the lock lasts as long as the cell, whatever happens here
                )
        finally:
            os.close(lock)
        self._reader = threading.Thread(target=self._read, args=(key, events), daemon=True)
        self._reader.start()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        """The cell stores its checkpoint and ends."""
        if not self.ended():
            self._process.terminate()

    def close(self) -> None:
        """Kill what is left of the session, and take in the last events."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nothing is left
        except PermissionError:
            pass  # macOS says so of a group in which only a zombie is left
        self._process.wait()
        self._reader.join(timeout=5)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed it for want of memory. A kill by hand is none of that: the kernel
        must have counted one."""
        killed = self._process.returncode == -signal.SIGKILL
        return killed and out_of_memory_kills() > self._kills_before

    def error(self) -> str:
        """How it ended, in one line."""
        return error_of(self.log, self._log_start, self._process.returncode)

    def _read(self, key: str, events: Events) -> None:
        """Standard output, line by line: events to the queue, anything else to a file of its own. In the
        log it would fall into the middle of a line that the process writes there."""
        assert self._process.stdout is not None
        with self._process.stdout, self._output.open("ab", buffering=0) as rest:
            for line in self._process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if isinstance(event, dict) and "event" in event:
                    events.put((key, event))
                else:
                    rest.write(line)


def _environment(threads: int, alive: int) -> dict[str, str]:
    return child_environment(threads) | {PARENT_PIPE: str(alive)}


def child_environment(threads: int) -> dict[str, str]:
    """Of a process with ``threads`` threads and this very modbench, whatever lies in the working
    directory."""
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
