"""Output of a run: a live table on a terminal and plain lines elsewhere; at its end the summary line and
the table of results."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID, TextColumn
from rich.table import Column

from modbench.errors import printable, several
from modbench.report.table import Table

if TYPE_CHECKING:
    from modbench.report.markdown import Page

#: Seconds between two lines of a job, since a log keeps all of them.
_LINE_SECONDS = 10.0
#: Rates are means over the events of this time.
_WINDOW_SECONDS = 30.0
#: Fields shown of a job, with their labels.
_FIGURES = {"step": "", "loss": "loss ", "FLOPs": "", "rate": "", "use": "util. ", "left": "left "}


@dataclass
class _Job:
    title: str
    task: TaskID
    phase: str = "starting"
    peak: float | None = None  #: FLOP/s of a matmul on its machine
    begun: bool = False  #: its first step of this process was seen
    told: float | None = None  #: time of its last line


class Progress:
    """Shows what the loop reports. On a terminal: a line per running job, and one for the suite, by
    `rich.progress`. Elsewhere: a line per phase, and one in ten seconds of training. Jobs are named by
    their keys."""

    def __init__(self, console: Console, live: bool = True) -> None:
        self._console = console
        self._running: dict[str, _Job] = {}
        self._waited: set[str] = set()
        self._done = self._done_before = self._total = 0
        self._suite, self.unit, self._since = "", "run", time.monotonic()
        one_line = Column(no_wrap=True, overflow="ellipsis")
        columns = [
            TextColumn("{task.description}", markup=False, table_column=one_line),
            *(TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in _FIGURES),
        ]
        self.bars = Bars(
            *columns,
            console=console,
            transient=True,
            speed_estimate_period=_WINDOW_SECONDS,
            get_time=lambda: time.monotonic(),
            disable=not (live and console.is_interactive),
        )
        self._all = self._added("")

    def _added(self, title: str) -> TaskID:
        empty: dict[str, Any] = dict.fromkeys(_FIGURES, "")
        return self.bars.add_task(title, total=None, **empty)

    def begin(self, suite: str, *, total: int, done: int, unit: str = "run") -> None:
        """Begin with ``done`` of ``total`` jobs done before."""
        self._suite, self._total, self.unit = suite, total, unit
        self._done = self._done_before = done
        self._since = time.monotonic()
        self._line(f"{suite}: {self._state()}")

    def started(self, key: str, title: str) -> None:
        self._running[key] = _Job(title, self._added(title))
        self._line(f"{title}: started")

    def event(self, key: str, event: Mapping[str, Any]) -> None:
        """Show an event of the job's worker: a phase, a step, the step that it resumed from, or the
        machine's matmul rate. Others are ignored."""
        job = self._running.get(key)
        if job is None:  # it arrived after the job's end
            return
        before = job.phase
        if event["event"] == "machine":
            job.peak = event["flops_per_second"]
        elif event["event"] == "resumed" and event["step"]:
            self.note(f"{job.title}: resumed from step {event['step']}")
        elif event["event"] == "step":
            self._step(job, event)
        elif event.get("phase", before) != before:
            job.phase = event["phase"]
            self.bars.update(job.task, step=job.phase, rate="", use="", left="")
        now = time.monotonic()
        if job.phase != before or job.told is None or now - job.told >= _LINE_SECONDS:
            job.told = now
            fields = self.bars.tasks[self.bars.task_ids.index(job.task)].fields
            figures = [name + fields[key] for key, name in _FIGURES.items() if fields[key]]
            self._line(f"{job.title}: {', '.join(figures) or job.phase}")

    def _step(self, job: _Job, event: Mapping[str, Any]) -> None:
        step, spent = event["step"], event.get("flops", 0)
        if not job.begun:  # what earlier processes have done is no rate of this one
            job.begun = True
            self.bars.reset(job.task, total=event.get("budget"), completed=spent)
        job.phase = event["phase"]
        figures: dict[str, Any] = {"step": f"{job.phase} {step}/{event['steps']}"}
        if "loss" in event:
            figures["loss"] = f"{event['loss']:.3f}"
        if "budget" in event:
            budget, unit = _scaled(event["budget"])
            share = spent / event["budget"]
            figures["FLOPs"] = f"{share * budget:.3g}/{budget:.3g} {unit}FLOP ({_percent(share)})"
        self.bars.update(job.task, completed=spent, total=event.get("budget"), **figures)
        task = self.bars.tasks[self.bars.task_ids.index(job.task)]
        if task.speed:
            per_second = "{:.3g}{} tokens/s".format(*_scaled(task.speed * event["tokens"] / spent))
            use = _percent(task.speed / job.peak) if job.peak else ""
            left = clock(task.time_remaining or 0.0)
            self.bars.update(job.task, rate=per_second, use=use, left=left)

    def ended(self, key: str, status: str, seconds: float, error: str) -> None:
        self._done += 1
        title = self._running[key].title
        self.stopped(key)
        why = f" ({error})" if error else ""
        self.note(f"{title}: {status} after {clock(seconds)}{why}; {self._state()}")

    def stopped(self, key: str) -> None:
        """A job has stopped before its end; another process may go on with it."""
        if job := self._running.pop(key, None):
            self.bars.remove_task(job.task)

    def elsewhere(self, title: str) -> None:
        """Another process has recorded a job."""
        self._done += 1
        self._line(f"{title}: done by another process; {self._state()}")

    def waits(self, key: str, title: str) -> None:
        """Another process works on a job."""
        if key not in self._waited:
            self._waited.add(key)
            self._line(f"{title}: another process works on it")

    def note(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        if self.bars.disable:
            self.note(text)

    def _state(self) -> str:
        """Jobs done, and the time left, estimated from those that this run has finished."""
        new = self._done - self._done_before
        about = ""
        if new and self._done < self._total:
            left = (self._total - self._done) * (time.monotonic() - self._since) / new
            about = f", about {clock(left)} left"
        state = f"{self._done} of {several(self._total, self.unit)} done{about}"
        self.bars.update(self._all, description=f"{self._suite}: {state}")
        return state


@contextmanager
def show_progress(console: Console, live: bool = True) -> Iterator[Progress]:
    """Show progress on ``console``; unless ``live``, in lines on a terminal, too."""
    progress = Progress(console, live)
    with progress.bars:
        yield progress


def summary_line(what: str, seconds_by_step: Mapping[str, float], wall: float) -> str:
    """The last line of a run: ``what`` was run (6 runs), its wall time, and the percentage of the
    workers' summed time that each step took, largest first."""
    line = f"{what} in {clock(wall)}"
    total = sum(seconds_by_step.values())
    by_size = sorted(seconds_by_step.items(), key=lambda item: -item[1])
    steps = ", ".join(f"{step} {_percent(seconds / total)}" for step, seconds in by_size if seconds)
    return f"{line}; of the workers' time: {steps}" if steps else line


def clock(seconds: float) -> str:
    """``75`` as ``0:01:15``."""
    return str(timedelta(seconds=round(seconds)))


def _scaled(value: float) -> tuple[float, str]:
    """``12_345`` as ``12.345, "k"``."""
    power = max(0, int(math.log10(1.0005 * value)) // 3)  # 999.9 is printed as 1k
    return value / 1000**power, " kMGTPEZ"[power].strip()


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def say(console: Console, text: str) -> None:
    """Print a message of modbench."""
    console.print(f"modbench: {printable(text)}", markup=False, highlight=False, soft_wrap=True)


def show_page(page: "Page", console: Console | None = None) -> None:
    """Print the parts of ``page`` up to its figures. A terminal gets the columns of tables that fit."""
    console = console or Console()
    for number, part in enumerate(page.before_figures()):
        if number:
            console.print()
        if isinstance(part, Table) and console.is_terminal:
            console.print(part.to_rich(console.width))
        else:
            text = part.to_markdown() if isinstance(part, Table) else part
            console.print(text, markup=False, highlight=False, soft_wrap=True)
