from io import StringIO

import pytest
from rich.console import Console

from modbench.sweep import progress
from modbench.sweep.progress import Progress, clock, show_progress
from modbench.sweep.terminal import show_leaderboard

TABLE = """# Suite s, version 1

| rank | scheme | loss (nats/token) | a long word for steps |
| ---: | --- | ---: | ---: |
| 1 | mod | 1.2500 | 82 |
| 2 | vanilla [red] | 1.5000 | 66 |

One seed.

## Notes

- not for a terminal
"""


class Clock:
    """Time as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def step(number: int, loss: float = 2.0) -> dict:
    return {"event": "step", "step": number, "steps": 100, "loss": loss}


def test_lines_are_throttled_and_phases_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said, time = StringIO(), Clock(monkeypatch)
    lines = Progress(Console(file=said, width=200))
    lines.begin("s", total=2, done=0)
    lines.started("k", "mod")
    for number in range(1, 26):
        time.now += 1.0
        lines.event("k", step(number))
    lines.event("k", {"event": "phase", "phase": "audit"})
    told = [line for line in said.getvalue().splitlines() if "step" in line]
    assert told == [f"mod: starting, step {number} of 100, loss 2.000" for number in (1, 11, 21)]
    assert said.getvalue().splitlines()[-1] == "mod: audit, loss 2.000"


def test_the_time_left_follows_the_rate_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    said, time = StringIO(), Clock(monkeypatch)
    lines = Progress(Console(file=said, width=200))
    lines.begin("s", total=5, done=2)
    lines.started("k", "mod")
    time.now += 60.0
    lines.ended("k", "ok", 60.0, "")
    assert said.getvalue().splitlines()[-1] == ("mod: ok after 1:00; 3 of 5 cells done, about 2:00 left")


def test_on_a_terminal_each_running_cell_has_its_step_and_loss() -> None:
    said = StringIO()
    console = Console(file=said, width=100, force_terminal=True)
    with show_progress(console) as live:
        live.begin("s", total=2, done=1)
        live.started("k", "mod")
        live.event("k", {"event": "phase", "phase": "train"})
        live.event("k", step(40, loss=3.25))
        live.bars.refresh()
        live.ended("k", "failed", 75.0, "ValueError: [bold] no")
    assert "train, step 40 of 100, loss 3.250" in said.getvalue()
    assert "1 of 2 cells done" in said.getvalue()
    assert "mod: failed after 1:15 (ValueError: [bold] no)" in said.getvalue()


def test_a_clock_reads_minutes_and_hours() -> None:
    assert [clock(seconds) for seconds in (0.4, 75, 3675)] == ["0:00", "1:15", "1:01:15"]


def test_a_terminal_shows_the_columns_it_has_room_for_and_names_the_rest() -> None:
    said = StringIO()
    show_leaderboard(TABLE, Console(file=said, width=46, force_terminal=True, no_color=True))
    text = said.getvalue()
    assert "1.2500" in text
    assert "vanilla [red]" in text
    assert "Not shown: a long word for steps." in text
    assert "not for a terminal" not in text
    assert max(len(line) for line in text.splitlines() if line.startswith("│")) <= 46


def test_a_pipe_gets_the_table_as_it_stands() -> None:
    said = StringIO()
    show_leaderboard(TABLE, Console(file=said, width=20))
    assert said.getvalue().rstrip() == TABLE.partition("\n## Notes")[0].rstrip()
