"""Progress of a run: live bars on a terminal, lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

#: Fraction of a cell's time that training takes, for the estimate of the time left.
_TRAINING_FRACTION = 0.9
_LINE_SECONDS = 10.0


@dataclass
class _Cell:
    title: str
    task: TaskID
    phase: str = "starting"
    loss: str = ""
    fraction: float = 0.0  #: estimated fraction done
    told: float | None = None  #: time of its last line

    def update(self, event: dict[str, Any]) -> str:
        """Return the state after ``event``."""
        self.phase = event.get("phase", self.phase)
        words = [self.phase]
        if "steps" in event:
            self.fraction = _TRAINING_FRACTION * event["step"] / event["steps"]
            words.append(f"step {event['step']} of {event['steps']}")
        if "loss" in event:
            self.loss = f"loss {event['loss']:.3f}"
        return ", ".join([*words, self.loss] if self.loss else words)


def clock(seconds: float) -> str:
    """``75`` as ``1:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows what the engine reports. On a terminal: a bar for the suite and one per running cell.
    Elsewhere: a line per phase, and one in ten seconds of training. Cells are named by their keys."""

    def __init__(self, console: Console) -> None:
        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._running: dict[str, _Cell] = {}

    def begin(self, suite: str, *, total: int, done: int, unit: str = "cells") -> None:
        """Begin with ``done`` of ``total`` cells done before."""
        self._total, self._done, self._done_before, self._unit = total, done, done, unit
        self._since = time.monotonic()
        self._suite = self.bars.add_task(suite, total=total, completed=done, said=self._state())
        self._line(f"{suite}: {self._state()}")

    def started(self, key: str, title: str) -> None:
        self._running[key] = _Cell(title, self.bars.add_task(title, total=1.0, said="starting"))
        self._line(f"{title}: started")

    def event(self, key: str, event: dict[str, Any]) -> None:
        """Show an event of the cell: ``{"event": "phase", "phase"}`` or ``{"event": "step", "step",
        "steps"}``, in training with ``"loss"``."""
        cell = self._running.get(key)
        if cell is None:  # it arrived after the cell's end
            return
        phase, now = cell.phase, time.monotonic()
        said = cell.update(event)
        self.bars.update(cell.task, completed=cell.fraction, said=said)
        self._redraw()
        if cell.phase != phase or cell.told is None or now - cell.told >= _LINE_SECONDS:
            cell.told = now
            self._line(f"{cell.title}: {said}")

    def ended(self, key: str, status: str, seconds: float, error: str) -> None:
        cell = self._running.pop(key)
        self._done += 1
        self.bars.remove_task(cell.task)
        self._redraw()
        why = f" ({error})" if error else ""
        self.note(f"{cell.title}: {status} after {clock(seconds)}{why}; {self._state()}")

    def note(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        if self.bars.disable:
            self.note(text)

    def _completed(self) -> float:
        return self._done + sum(cell.fraction for cell in self._running.values())

    def _state(self) -> str:
        """Cells done, and the time left, estimated from the rate of this run once there is one."""
        new, about = self._completed() - self._done_before, ""
        if new >= 0.02 and self._done < self._total:
            left = (self._total - self._done_before - new) * (time.monotonic() - self._since) / new
            about = f", about {clock(left)} left"
        return f"{self._done} of {self._total} {self._unit} done{about}"

    def _redraw(self) -> None:
        self.bars.update(self._suite, completed=self._completed(), said=self._state())


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Show progress on ``console``."""
    progress = Progress(console)
    if progress.bars.disable:
        yield progress
        return
    with progress.bars:
        yield progress
