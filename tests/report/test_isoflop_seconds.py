"""Speed-up in seconds of an isoFLOP suite, from made-up step times of some of its shapes."""

import csv
import io
from collections.abc import Sequence
from math import exp, log

import pytest
from isoflop_made_up import BUDGETS, WIDTHS, Make, records, table_under
from timings_made_up import make_case, make_timing

from modbench.records.record import CellRecord, TimingRecord
from modbench.report.isoflop.csv import optima_csv
from modbench.report.isoflop.page import isoflop_page
from modbench.report.isoflop.sweep import Sweep, sweep_of
from modbench.report.leaderboard.board import Leaderboard

#: Made-up seconds per FLOP by scheme: routing costs time that FLOPs don't show.
SLOWNESS = {"vanilla": 1e-9, "mod": 1.6e-9}


def seconds_per_flop(scheme: str, width: int) -> float:
    """A larger model uses the machine better."""
    return SLOWNESS[scheme] * (1 + 10 / width)


def steps_of(found: Sequence[CellRecord], scheme: str, widths: Sequence[int]) -> list[TimingRecord]:
    """One timing of the training step of each of ``widths``."""
    timings = []
    for width in widths:
        cell = next(one.cell for one in found if one.cell["router"]["label"] == f"{scheme}/w{width}")
        train = {name: cell["train"][name] for name in ("sequence", "batch", "precision")}
        timed = {"router": cell["router"], "model": cell["model"], "train": train, "time": {}}
        seconds = seconds_per_flop(scheme, width) * 10**9
        case = make_case("train", seconds=(seconds,) * 4, flops=10**9)
        measured = {"cases": [case], "balance": "forced", "compiled": False}
        timings.append(
            make_timing("time", timed, {**measured, "machine": {"overloaded": False, "others": 0.0}})
        )
    return timings


@pytest.fixture
def found(make: Make) -> list[CellRecord]:
    return records(make)


def swept(found: Sequence[CellRecord], timings: Sequence[TimingRecord]) -> Sweep:
    sweep = sweep_of(found, Leaderboard.of(found), timings)
    assert sweep is not None
    return sweep


def interpolated(scheme: str, size: float) -> float:
    """Linear in log size between the timed widths."""
    low = max(width for width in WIDTHS if 12 * width**2 <= size)
    high = min(width for width in WIDTHS if 12 * width**2 > size)
    share = log(size / (12 * low**2)) / log((high / low) ** 2)
    return (1 - share) * seconds_per_flop(scheme, low) + share * seconds_per_flop(scheme, high)


def test_speed_up_in_seconds_is_that_in_flops_times_the_ratio_of_seconds_per_flop(
    found: list[CellRecord],
) -> None:
    timings = [*steps_of(found, "vanilla", WIDTHS), *steps_of(found, "mod", WIDTHS)]
    sweep = swept(found, timings)
    text = optima_csv(sweep)
    rows = {
        (int(row["budget"]), row["scheme"]): row
        for row in csv.DictReader(io.StringIO(text))
        if row["fit"] == "parabola"
    }
    row = rows[BUDGETS[1], "mod"]
    own = interpolated("mod", float(row["active_parameters"]))
    # Dense reaches the loss of mod at 2.7 times the budget: at the size that is its optimum there.
    between = [float(rows[budget, "vanilla"]["active_parameters"]) for budget in BUDGETS[1:]]
    share = log(float(row["speed_up"])) / log(BUDGETS[2] / BUDGETS[1])
    dense = interpolated("vanilla", exp((1 - share) * log(between[0]) + share * log(between[1])))
    assert float(row["seconds_per_flop"]) == pytest.approx(own)
    assert float(row["dense_seconds_per_flop"]) == pytest.approx(dense)
    for end in ("", "_low", "_high"):
        flops, seconds = row[f"speed_up{end}"], row[f"speed_up_seconds{end}"]
        assert bool(flops) == bool(seconds)
        if flops:
            assert float(seconds) == pytest.approx(float(flops) * dense / own)
    assert rows[BUDGETS[1], "vanilla"]["speed_up_seconds"] == ""
    page = isoflop_page(sweep)
    shown = table_under(page, "## 3e+12 training FLOPs")[0][5]
    assert shown.startswith(f"{float(row['speed_up_seconds']):.2f}")
    assert "Speed-up in seconds: the one in FLOPs times" in page


@pytest.mark.parametrize(
    ("timed", "sentence"),
    [
        ({}, "no shape of this suite is timed (run: modbench time fake)"),
        ({"vanilla": WIDTHS}, "the shapes of mod aren't timed (run: modbench time fake)"),
        ({"vanilla": WIDTHS, "mod": (96, 128)}, "an optimum of mod has"),
    ],
    ids=["nothing", "one scheme", "other sizes"],
)
def test_missing_times_are_named_and_never_extrapolated(
    found: list[CellRecord], timed: dict[str, tuple[int, ...]], sentence: str
) -> None:
    timings = [one for scheme, widths in timed.items() for one in steps_of(found, scheme, widths)]
    page = isoflop_page(swept(found, timings))
    row = table_under(page, "## 3e+12 training FLOPs")[0]
    assert row[1] == "mod"
    assert row[5] == "-"
    assert f"No speed-up in seconds: {sentence}" in page


def test_times_of_a_scheme_with_other_options_do_not_count(
    found: list[CellRecord],
) -> None:
    timings = [*steps_of(found, "vanilla", WIDTHS), *steps_of(found, "mod", WIDTHS)]
    others = []
    for one in timings:
        router = {**one.cell["router"], "options": {"every": 7}}
        others.append(make_timing("time", {**one.cell, "router": router}, one.measured))
    assert swept(found, others).times.measured == {}
    assert set(swept(found, timings).times.measured) == {"vanilla", "mod"}


def test_doubtful_times_are_marked(found: list[CellRecord]) -> None:
    timings = steps_of(found, "vanilla", WIDTHS)
    for one in steps_of(found, "mod", WIDTHS):
        measured = {**one.measured, "machine": {"overloaded": True, "others": 3.0}}
        timings.append(make_timing("time", one.cell, measured))
    row = table_under(isoflop_page(swept(found, timings)), "## 3e+12 training FLOPs")[0]
    assert row[5].endswith("(loaded)")
