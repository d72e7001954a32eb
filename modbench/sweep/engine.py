"""Runs cells, one process each, on this machine. It keeps no state: what is left to do is the cells
minus the records."""

import os
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modbench.report.record import CellRecord, cell_key
from modbench.report.store import ShardWriter, read_records, read_suite
from modbench.sweep.cell_record import cell_record
from modbench.sweep.cells import Cell, plugins_of, title
from modbench.sweep.lock import wait_for_orphans
from modbench.sweep.process import CellProcess, Events
from modbench.sweep.progress import Progress
from modbench.sweep.stop_signals import stop_signals

#: Statuses of a cell that is done; a failed cell is run again.
DONE = frozenset({"ok", "diverged", "oom"})
_POLL_SECONDS = 0.2


class InterruptedRunError(Exception):
    """The user stopped the run. Finished cells are recorded, the others stored a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that ended with status ``failed`` or ``oom``. ``refused``: for a user's mistake."""

    title: str
    status: str
    error: str
    log: Path
    refused: bool


def cell_command(spec: Path) -> list[str]:
    """The command that runs one cell."""
    return [sys.executable, "-m", "modbench", "cell", str(spec)]


def cells_left(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """The cells without a record in ``folder`` (results/<suite>) whose status is done and whose audit is
    stored.

    Raises:
        UserError: a record line is corrupt.
    """
    found = read_suite(folder)
    stored = (None, *found.audits)
    done = {one.key for one in found.cells if one.status in DONE and one.audit_key in stored}
    return [cell for cell in cells if cell_key(cell) not in done]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One subprocess per cell, ``workers`` at a time, each with ``threads`` threads."""

    folder: Path  #: results/<suite>
    suite: dict[str, Any]  #: for records: name, version
    data: dict[str, Any]  #: for records: sha256, train_tokens, heldout_tokens
    workers: int = 1
    threads: int = 1
    command: Callable[[Path], list[str]] = cell_command
    stop_seconds: float = 20.0  #: time for a cell to store its checkpoint when asked to stop

    def run(self, cells: Sequence[Cell], progress: Progress) -> list[Failure]:
        """Run the cells that are left; the caller holds the suite's lock. Returns the failures.

        Raises:
            InterruptedRunError: SIGINT, SIGTERM or SIGHUP arrived.
            UserError: the folder can't be written, or a record line is corrupt.
        """
        wait_for_orphans([self._cell_folder(cell_key(cell)) for cell in cells], progress.note)
        todo = deque(cells_left(cells, self.folder))
        progress.begin(str(self.suite["name"]), total=len(cells), done=len(cells) - len(todo))
        failures: list[Failure] = []
        running: dict[str, CellProcess] = {}
        events: Events = queue.SimpleQueue()
        alive, parent_end = os.pipe()
        stop: list[int] = []
        with stop_signals(stop.append):
            try:
                while (todo or running) and not stop:
                    while todo and len(running) < self.workers:
                        cell = todo.popleft()
                        key = cell_key(cell)
                        running[key] = self._start(key, cell, title(cell, cells), events, alive)
                        progress.started(key, running[key].title)
                    _pass_on(events, progress)
                    for key in [key for key, process in running.items() if process.ended()]:
                        failure = self._settle(key, running.pop(key), progress)
                        failures += [failure] if failure else []
            finally:
                self._stop(running, events, progress, stop)
                os.close(alive)
                os.close(parent_end)
        if stop and (todo or running):
            raise InterruptedRunError
        return failures

    def _cell_folder(self, key: str) -> Path:
        return self.folder / "cells" / key

    def _start(self, key: str, cell: Cell, name: str, events: Events, alive: int) -> CellProcess:
        spec = {
            "suite": self.suite,
            "cell": cell,
            "plugins": plugins_of(cell),
            "results": str(self.folder.resolve()),
            "folder": str(self._cell_folder(key).resolve()),
            "threads": self.threads,
        }
        return CellProcess(
            key,
            name,
            spec,
            command=self.command,
            events=events,
            alive=alive,
            before=self._records(key),
        )

    def _records(self, key: str) -> list[CellRecord]:
        return [record for record in read_records(self.folder) if record.key == key]

    def _settle(self, key: str, process: CellProcess, progress: Progress) -> Failure | None:
        """Make sure that a cell whose process has ended has a record, and report its status."""
        process.close()
        finished = datetime.now(UTC)
        fresh = [record for record in self._records(key) if record not in process.before]
        if fresh:
            record = max(fresh, key=lambda record: record.finished_at)
        else:
            record = self._record_crash(process)
        error = record.error or ""
        progress.ended(key, record.status, (finished - process.started).total_seconds(), error)
        if record.status not in ("failed", "oom"):
            return None
        return Failure(
            title=process.title,
            status=record.status,
            error=error,
            log=process.log,
            refused=process.refused(),
        )

    def _record_crash(self, process: CellProcess) -> CellRecord:
        """Append the record of a cell whose process wrote none."""
        import torch

        from modbench.measure.environment import environment

        machine = environment(torch.float32)
        record = cell_record(
            process.cell,
            suite=self.suite,
            data=self.data,
            # The other entries describe this process, not the one that crashed.
            environment={name: machine[name] for name in ("cpu", "gpu", "torch")}
            | {"threads": self.threads},
            status="oom" if process.out_of_memory() else "failed",
            error=process.error(),
            started=process.started,
        )
        with ShardWriter(self.folder) as writer:
            writer.append(record)
        return record

    def _stop(
        self,
        running: Mapping[str, CellProcess],
        events: Events,
        progress: Progress,
        stop: Sequence[int],
    ) -> None:
        """Ask the running cells to store their checkpoints and end; kill those that don't in time, or
        all of them at a second signal."""
        if not running:
            return
        progress.note(f"stopping: waiting up to {self.stop_seconds:.0f} s for checkpoints")
        for process in running.values():
            process.ask_to_stop()
        deadline = time.monotonic() + self.stop_seconds
        while not all(process.ended() for process in running.values()):
            if time.monotonic() > deadline or len(stop) > 1:
                break
            _pass_on(events, progress)
        for process in running.values():
            process.close()


def _pass_on(events: Events, progress: Progress) -> None:
    """Show the events that have arrived; wait a moment if there are none."""
    try:
        key, event = events.get(timeout=_POLL_SECONDS)
        while True:
            progress.event(key, event)
            key, event = events.get_nowait()
    except queue.Empty:
        return
