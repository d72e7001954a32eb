"""What runs, what is left, and the loss so far: live on a terminal, lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

#: A cell's share of its time that training takes, for estimating what is left.
_TRAINING_SHARE = 0.9
_LINE_SECONDS = 10.0


class Progress(Protocol):
    """What the engine tells while it runs cells. Cells go by their keys."""

    def begin(self, suite: str, *, total: int, done: int, unit: str = "cells") -> None: ...

    def started(self, key: str, title: str) -> None: ...

    def event(self, key: str, event: dict[str, Any]) -> None:
        """A line of the cell: ``{"event": "phase", "phase"}`` or ``{"event": "step", "step", "steps",
        "loss"}``."""

    def ended(self, key: str, status: str, seconds: float, error: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class _Cell:
    title: str
    phase: str = "starting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    stepping: bool = False  #: steps belong to the phase that runs

    def update(self, event: dict[str, Any]) -> None:
        self.phase = str(event.get("phase", self.phase))
        self.stepping = "step" in event
        self.step = int(event.get("step", self.step))
        self.steps = int(event.get("steps", self.steps))
        loss = event.get("loss")
        self.loss = float(loss) if loss is not None else self.loss

    def share(self) -> float:
        """How much of it is done, from 0 to 1, roughly."""
        return _TRAINING_SHARE * self.step / self.steps if self.steps else 0.0

    def state(self) -> str:
        words = [self.phase]
        if self.stepping:
            words.append(f"step {self.step} of {self.steps}")
        if self.loss is not None:
            words.append(f"loss {self.loss:.3f}")
        return ", ".join(words)


@dataclass
class _Tally:
    """The suite's state, and when it will be through."""

    suite: str = ""
    unit: str = "cells"
    total: int = 0
    done: int = 0
    done_before: int = 0
    running: dict[str, _Cell] = field(default_factory=dict)
    since: float = 0.0

    @classmethod
    def of(cls, suite: str, *, total: int, done: int, unit: str) -> "_Tally":
        """What begins now, with ``done`` of it done before."""
        since = time.monotonic()
        return cls(suite=suite, unit=unit, total=total, done=done, done_before=done, since=since)

    def seconds_left(self) -> float | None:
        """An estimate from the rate so far; None until there is one, and at the end."""
        through = self.done - self.done_before + sum(cell.share() for cell in self.running.values())
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


def _ending(title: str, status: str, seconds: float, error: str) -> str:
    return f"{title}: {status} after {clock(seconds)}" + (f" ({error})" if error else "")


class LineProgress:
    """One line per event, and per cell one in ten seconds of training: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = _Tally()
        self._told: dict[str, float] = {}

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, suite: str, *, total: int, done: int, unit: str = "cells") -> None:
        self._tally = _Tally.of(suite, total=total, done=done, unit=unit)
        self.note(f"{suite}: {self._tally.state()}")

    def started(self, key: str, title: str) -> None:
        self._tally.running[key] = _Cell(title)
        self.note(f"{title}: started")

    def event(self, key: str, event: dict[str, Any]) -> None:
        cell = self._tally.running.get(key)
        if cell is None:
            return  # its last lines came after its end was told
        phase = cell.phase
        cell.update(event)
        now = time.monotonic()
        if cell.phase == phase and now - self._told.get(key, now - _LINE_SECONDS) < _LINE_SECONDS:
            return
        self._told[key] = now
        self.note(f"{cell.title}: {cell.state()}")

    def ended(self, key: str, status: str, seconds: float, error: str) -> None:
        cell = self._tally.running.pop(key)
        self._tally.done += 1
        self.note(f"{_ending(cell.title, status, seconds, error)}; {self._tally.state()}")


class LiveProgress:
    """A bar for the suite and one per running cell, redrawn in place."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tally = _Tally()
        self._tasks: dict[str, TaskID] = {}
        self._suite: TaskID | None = None

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def begin(self, suite: str, *, total: int, done: int, unit: str = "cells") -> None:
        self._tally = _Tally.of(suite, total=total, done=done, unit=unit)
        self._suite = self._bars.add_task(suite, total=total, completed=done, said="")
        self._redraw()

    def started(self, key: str, title: str) -> None:
        self._tally.running[key] = _Cell(title)
        self._tasks[key] = self._bars.add_task(title, total=1.0, said="starting")

    def event(self, key: str, event: dict[str, Any]) -> None:
        cell = self._tally.running.get(key)
        if cell is None:
            return  # its last lines came after its end was told
        cell.update(event)
        self._bars.update(self._tasks[key], completed=cell.share(), said=cell.state())
        self._redraw()

    def ended(self, key: str, status: str, seconds: float, error: str) -> None:
        cell = self._tally.running.pop(key)
        self._tally.done += 1
        self._bars.remove_task(self._tasks.pop(key))
        self.note(_ending(cell.title, status, seconds, error))
        self._redraw()

    def _redraw(self) -> None:
        if self._suite is None:
            return
        through = self._tally.done + sum(cell.share() for cell in self._tally.running.values())
        self._bars.update(self._suite, completed=through, said=self._tally.state())


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """The display that suits ``console``."""
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
