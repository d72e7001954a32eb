"""Progress of a run: live bars on a terminal, lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    phase: str = "starting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    stepping: bool = False  #: the current phase has steps

    def update(self, event: dict[str, Any]) -> None:
        self.phase = str(event.get("phase", self.phase))
        self.stepping = "step" in event
        self.step = int(event.get("step", self.step))
        self.steps = int(event.get("steps", self.steps))
        loss = event.get("loss")
        self.loss = float(loss) if loss is not None else self.loss

    def fraction(self) -> float:
        """Estimated fraction done, from 0 to 1."""
        return _TRAINING_FRACTION * self.step / self.steps if self.steps else 0.0

    def state(self) -> str:
        words = [self.phase]
        if self.stepping:
            words.append(f"step {self.step} of {self.steps}")
        if self.loss is not None:
            words.append(f"loss {self.loss:.3f}")
        return ", ".join(words)


@dataclass
class _Tally:
    """Cells done and running, and the estimated time left."""

    suite: str = ""
    unit: str = "cells"
    total: int = 0
    done: int = 0
    done_before: int = 0
    running: dict[str, _Cell] = field(default_factory=dict)
    since: float = 0.0

    @classmethod
    def of(cls, suite: str, *, total: int, done: int, unit: str) -> "_Tally":
        """Start now, with ``done`` cells done before."""
        since = time.monotonic()
        return cls(suite=suite, unit=unit, total=total, done=done, done_before=done, since=since)

    def seconds_left(self) -> float | None:
        """Estimate from the rate so far; None until there is one, and at the end."""
        through = self.done - self.done_before + sum(cell.fraction() for cell in self.running.values())
        if through < 0.02 or self.done == self.total:
            return None
        return (self.total - self.done_before - through) * (time.monotonic() - self.since) / through

    def state(self) -> str:
        left = self.seconds_left()
        about = "" if left is None else f", about {clock(left)} left"
        return f"{self.done} of {self.total} {self.unit} done{about}"


def clock(seconds: float) -> str:
    """``75`` as ``1:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Receives what the engine reports, and keeps the tally. Cells are named by their keys."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = _Tally()

    def begin(self, suite: str, *, total: int, done: int, unit: str = "cells") -> None:
        self._tally = _Tally.of(suite, total=total, done=done, unit=unit)

    def started(self, key: str, title: str) -> None:
        self._tally.running[key] = _Cell(title)

    def event(self, key: str, event: dict[str, Any]) -> None:
        """An event of the cell: ``{"event": "phase", "phase"}`` or ``{"event": "step", "step", "steps",
        "loss"}``."""
        if key in self._tally.running:  # not one that arrived after the cell's end
            cell = self._tally.running[key]
            new_phase = event.get("phase", cell.phase) != cell.phase
            cell.update(event)
            self._show(key, cell, new_phase)

    def ended(self, key: str, status: str, seconds: float, error: str) -> None:
        title = self._tally.running.pop(key).title
        self._tally.done += 1
        why = f" ({error})" if error else ""
        self._show_end(key, f"{title}: {status} after {clock(seconds)}{why}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, key: str, cell: _Cell, new_phase: bool) -> None:
        raise NotImplementedError

    def _show_end(self, key: str, text: str) -> None:
        raise NotImplementedError


class LineProgress(Progress):
    """Lines for logs and pipes: one per event, and one in ten seconds of a cell's training."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._told: dict[str, float] = {}

    def begin(self, suite: str, *, total: int, done: int, unit: str = "cells") -> None:
        super().begin(suite, total=total, done=done, unit=unit)
        self.note(f"{suite}: {self._tally.state()}")

    def started(self, key: str, title: str) -> None:
        super().started(key, title)
        self.note(f"{title}: started")

    def _show(self, key: str, cell: _Cell, new_phase: bool) -> None:
        now = time.monotonic()
        if new_phase or now - self._told.get(key, now - _LINE_SECONDS) >= _LINE_SECONDS:
            self._told[key] = now
            self.note(f"{cell.title}: {cell.state()}")

    def _show_end(self, key: str, text: str) -> None:
        self.note(f"{text}; {self._tally.state()}")


class LiveProgress(Progress):
    """A bar for the suite and one per running cell, redrawn in place."""

    def __init__(self, bars: Bars) -> None:
        super().__init__(bars.console)
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def begin(self, suite: str, *, total: int, done: int, unit: str = "cells") -> None:
        super().begin(suite, total=total, done=done, unit=unit)
        self._suite = self._bars.add_task(suite, total=total, completed=done, said="")
        self._redraw()

    def started(self, key: str, title: str) -> None:
        super().started(key, title)
        self._tasks[key] = self._bars.add_task(title, total=1.0, said="starting")

    def _show(self, key: str, cell: _Cell, new_phase: bool) -> None:
        self._bars.update(self._tasks[key], completed=cell.fraction(), said=cell.state())
        self._redraw()

    def _show_end(self, key: str, text: str) -> None:
        self._bars.remove_task(self._tasks.pop(key))
        self.note(text)
        self._redraw()

    def _redraw(self) -> None:
        completed = self._tally.done + sum(cell.fraction() for cell in self._tally.running.values())
        self._bars.update(self._suite, completed=completed, said=self._tally.state())


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Bars if ``console`` is a terminal, else lines."""
    if not console.is_terminal:
        yield LineProgress(console)
        return
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[said]}", markup=False),
        console=console,
        transient=True,
    )
    with bars:
        yield LiveProgress(bars)
