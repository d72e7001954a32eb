from io import StringIO

import pytest
from rich.console import Console

from modbench.report.markdown import Page
from modbench.report.table import Table
from modbench.sweep import progress
from modbench.sweep.progress import Progress, show_page, show_progress

PAGE = Page(
    [
        "# Suite s, version 1",
        Table(("scheme", "loss"), [("mod [red]", "1.2500")]),
        "One seed.\n\n## Figures\n\n![speed up](speed_up.svg)",
    ]
)


class Clock:
    """Time as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


TFLOP = 10**12


def train(step: int, loss: float = 2.0) -> dict:
    """A step of 100, each of 0.02 TFLOP and 512 tokens, that spend all of 2 TFLOP."""
    event = {"event": "step", "phase": "train", "step": step, "steps": 100, "loss": loss}
    return event | {"flops": step * TFLOP // 50, "budget": 2 * TFLOP, "tokens": 512 * step}


def lines_of(said: StringIO) -> list[str]:
    return said.getvalue().splitlines()


def drawn(live: Progress, width: int = 100) -> list[str]:
    """The lines of the display, but for the first, of the suite; they end with spaces."""
    console = Console(file=StringIO(), width=width)
    console.print(live.bars.get_renderable())
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore


def test_lines_are_throttled_and_phases_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said, time = StringIO(), Clock(monkeypatch)
    lines = Progress(Console(file=said, width=200))
    lines.begin("s", total=2, done=0)
    lines.started("k", "mod")
    for step in range(1, 26):
        time.now += 1.0
        lines.event("k", train(step))
    lines.event("k", {"event": "phase", "phase": "audit"})
    told = [line.split(",")[0] for line in lines_of(said) if "loss" in line]
    assert told == [f"mod: train {step}/100" for step in (1, 11, 21)] + ["mod: audit"]
    assert lines_of(said)[-2] == (
        "mod: train 21/100, loss 2.000, 0.42/2 TFLOP (21 %), 512 tokens/s, left 0:01:19"
    )
    assert lines_of(said)[-1] == "mod: audit, loss 2.000, 0.5/2 TFLOP (25 %)"


def test_rates_are_those_of_the_last_events_and_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, time = StringIO(), Clock(monkeypatch)
    live = Progress(Console(file=said))
    live.begin("s", total=1, done=0)
    live.started("k", "mod")
    live.event("k", {"event": "machine", "flops_per_second": 10**11})
    live.event("k", {"event": "resumed", "step": 39, "seconds": 1.0})
    assert lines_of(said)[-1] == "mod: resumed from step 39"
    for step in range(40, 60):
        live.event("k", train(step))
        time.now += 10.0
    assert drawn(live)[1] == "mod train 59/100 2.000 1.18/2 TFLOP (59 %) 51.2 tokens/s 2 % 0:06:50"
    time.now += 100.0
    for step in range(60, 100):
        live.event("k", train(step))
        time.now += 0.1
    assert drawn(live)[1] == "mod train 99/100 2.000 1.98/2 TFLOP (99 %) 5.12k tokens/s 200 % 0:00:01"


def test_the_time_left_follows_the_rate_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    said, time = StringIO(), Clock(monkeypatch)
    lines = Progress(Console(file=said, width=200))
    lines.begin("s", total=5, done=2)
    lines.started("k", "mod")
    time.now += 60.0
    lines.ended("k", "ok", 60.0, "")
    assert lines_of(said)[-1] == "mod: ok after 0:01:00; 3 of 5 runs done, about 0:02:00 left"


def test_on_a_terminal_each_running_job_has_a_row() -> None:
    said = StringIO()
    console = Console(file=said, width=80, force_terminal=True, force_interactive=True)
    with show_progress(console) as live:
        live.begin("s", total=3, done=1)
        live.started("a", "mode_integrated, 1.5e+12 FLOPs, seed [0]")
        live.started("b", "mod")
        live.event("a", train(40, loss=3.25))
        live.event("b", {"event": "phase", "phase": "audit"})
        live.bars.refresh()
        suite, first, second = drawn(live, width=80)
        live.ended("b", "failed", 75.0, "ValueError: [bold] no")
    assert suite == "s: 1 of 3 runs done"
    assert first.endswith("train 40/100 3.250 0.8/2 TFLOP (40 %)")
    assert second == "mod audit"
    assert "train 40/100" in said.getvalue()
    assert "mod: failed after 0:01:15 (ValueError: [bold] no)" in said.getvalue()


def test_a_pipe_gets_the_page_up_to_its_figures_in_markdown() -> None:
    out = StringIO()
    show_page(PAGE, Console(file=out, width=46))
    assert out.getvalue() == Page([*PAGE.parts[:2], "One seed."]).to_markdown()
