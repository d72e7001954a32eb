"""Output of a run: a live table on a terminal and plain lines elsewhere; at its end the summary line and
the table of results."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from modbench.errors import printable, several
from modbench.report.table import Table

if TYPE_CHECKING:
    from modbench.report.markdown import Page

#: Seconds between two lines of a job, since a log keeps all of them.
_LINE_SECONDS = 10.0
#: Rates are means over this many events, which come at most twice a second.
_WINDOW = 40
_COLUMNS = ("step", "loss", "FLOPs", "tokens/s", "util.", "left")


@dataclass
class _Job:
    title: str
    phase: str = "starting"
    figures: dict[str, str] = field(default_factory=lambda: {"step": "starting"})  #: by column
    peak: float | None = None  #: FLOP/s of a matmul on its machine
    window: deque[tuple[float, int, int, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    told: float | None = None  #: time of its last line

    def update(self, event: Mapping[str, Any], now: float) -> None:
        figures = dict(self.figures)  # replaced at the end: another thread draws the table
        if event.get("phase", self.phase) != self.phase:
            self.phase = figures["step"] = event["phase"]
            self.window.clear()
            figures |= dict.fromkeys(("tokens/s", "util.", "left"), "")
        if event.get("event") == "machine":
            self.peak = event["flops_per_second"]
        elif event.get("event") == "step":
            step, steps = event["step"], event["steps"]
            figures["step"] = f"{self.phase} {step}/{steps}"
            if "loss" in event:
                figures["loss"] = f"{event['loss']:.3f}"
            if "budget" in event:
                budget, unit = _scaled(event["budget"])
                spent = event["flops"] / event["budget"]
                figures["FLOPs"] = f"{spent * budget:.3g}/{budget:.3g} {unit}FLOP ({_percent(spent)})"
            self.window.append((now, step, event.get("flops", 0), event.get("tokens", 0)))
            figures |= self._rates(steps)
        self.figures = figures

    def _rates(self, total_steps: int) -> dict[str, str]:
        (since, *before), (now, *after) = self.window[0], self.window[-1]
        if now <= since:  # one step, or several at once
            return {}
        steps, flops, tokens = ((b - a) / (now - since) for a, b in zip(before, after, strict=True))
        return {
            "tokens/s": "{:.3g}{}".format(*_scaled(tokens)) if tokens else "",
            "util.": _percent(flops / self.peak) if flops and self.peak else "",
            "left": clock((total_steps - after[0]) / steps) if steps else "",
        }


class Progress:
    """Shows what the engine reports. On a terminal: a table with a row per running job, and a line for
    the suite. Elsewhere: a line per phase, and one in ten seconds of training. Jobs are named by their
    keys."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._running: dict[str, _Job] = {}
        self._waited: set[str] = set()
        self._suite = ""
        self._total = 0
        self._done = 0
        self.unit = "run"
        self._done_before, self._since = 0, time.monotonic()
        self.live = Live(get_renderable=self._table, console=console, transient=True)

    def begin(self, suite: str, *, total: int, done: int, unit: str = "run") -> None:
        """Begin with ``done`` of ``total`` jobs done before."""
        self._suite = suite
        self._total = total
        self._done = done
        self.unit = unit
        self._done_before, self._since = done, time.monotonic()
        self._line(f"{suite}: {self._state()}")

    def started(self, key: str, title: str) -> None:
        self._running[key] = _Job(title)
        self._line(f"{title}: started")

    def event(self, key: str, event: Mapping[str, Any]) -> None:
        """Show an event of the job's worker: a phase, a step or the machine's matmul rate. Others are
        ignored."""
        job = self._running.get(key)
        if job is None:  # it arrived after the job's end
            return
        phase = job.phase
        now = time.monotonic()
        job.update(event, now)
        if job.phase != phase or job.told is None or now - job.told >= _LINE_SECONDS:
            job.told = now
            known = [f"{name} {job.figures[name]}" for name in _COLUMNS if job.figures.get(name)]
            self._line(f"{job.title}: {', '.join(known).removeprefix('step ')}")

    def ended(self, key: str, status: str, seconds: float, error: str) -> None:
        job = self._running.pop(key)
        self._done += 1
        why = f" ({error})" if error else ""
        self.note(f"{job.title}: {status} after {clock(seconds)}{why}; {self._state()}")

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
        if not self._console.is_interactive:
            self.note(text)

    def _state(self) -> str:
        """Jobs done, and the time left, estimated from those that this run has finished."""
        new = self._done - self._done_before
        about = ""
        if new and self._done < self._total:
            left = (self._total - self._done) * (time.monotonic() - self._since) / new
            about = f", about {clock(left)} left"
        return f"{self._done} of {several(self._total, self.unit)} done{about}"

    def _table(self) -> Group:
        """The table, without columns that are empty, and the suite's line."""
        rows = [(job.title, job.figures) for job in list(self._running.values())]
        shown = [name for name in _COLUMNS if any(figures.get(name) for _, figures in rows)]
        table = RichTable(self.unit, box=None, pad_edge=False, collapse_padding=True)
        for name in shown:
            table.add_column(name, justify="left" if name == "step" else "right", no_wrap=name != "step")
        for title, figures in rows:
            texts = [title, *(figures.get(name) or "-" for name in shown)]
            table.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in texts))
        return Group(table, Text(f"{self._suite}: {self._state()}"))


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Show progress on ``console``."""
    progress = Progress(console)
    with progress.live if console.is_interactive else nullcontext():
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
