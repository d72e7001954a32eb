"""Speed-up in seconds of an isoFLOP suite, from made-up step times of some of its shapes."""

from collections.abc import Sequence
from math import exp, log

import pytest
from isoflop_made_up import BUDGETS, WIDTHS, Make, analysed, records, table_under
from made_up_records import replace, suite_record
from timings_made_up import make_case, make_timing

from modbench.analysis.comparison import SpeedUp, Times, in_seconds
from modbench.analysis.isoflop import Optimum
from modbench.records.record import TimingRecord
from modbench.records.result import Result
from modbench.records.run import Timed
from modbench.report.isoflop.page import isoflop_page
from modbench.report.isoflop.source import IsoFlopSuite, step_times
from modbench.report.timing.table import TimingTable
from modbench.report.timing.values import labels_of

#: Made-up seconds per FLOP by scheme: routing costs time that FLOPs don't show.
SLOWNESS = {"vanilla": 1e-9, "mod": 1.6e-9}


def seconds_per_flop(scheme: str, width: int) -> float:
    """A larger model uses the machine better."""
    return SLOWNESS[scheme] * (1 + 10 / width)


def steps_of(found: Sequence[Result], scheme: str, widths: Sequence[int]) -> list[TimingRecord]:
    """One timing of the training step of each of ``widths``."""
    timings = []
    for width in widths:
        timed = next(one.run.timed for one in found if one.label == f"{scheme}/w{width}")
        seconds = seconds_per_flop(scheme, width) * 10**9
        case = make_case("train", seconds=(seconds,) * 4, flops=10**9)
        measured = {"cases": [case], "balance": "forced", "compiled": False}
        timings.append(
            make_timing("training", timed, {**measured, "machine": {"overloaded": False, "others": 0.0}})
        )
    return timings


@pytest.fixture
def found(make: Make) -> list[Result]:
    return records(make)


def table_of(found: Sequence[Result], timings: Sequence[TimingRecord]) -> TimingTable:
    return TimingTable(timings, labels_of([suite_record(found)]), "fake")


def swept(found: Sequence[Result], timings: Sequence[TimingRecord]) -> IsoFlopSuite:
    return analysed(found, table_of(found, timings))


def interpolated(scheme: str, size: float) -> float:
    """Linear in log size between the timed widths."""
    low = max(width for width in WIDTHS if 12 * width**2 <= size)
    high = min(width for width in WIDTHS if 12 * width**2 > size)
    share = log(size / (12 * low**2)) / log((high / low) ** 2)
    return (1 - share) * seconds_per_flop(scheme, low) + share * seconds_per_flop(scheme, high)


def test_speed_up_in_seconds_is_that_in_flops_times_the_ratio_of_seconds_per_flop(
    found: list[Result],
) -> None:
    timings = [*steps_of(found, "vanilla", WIDTHS), *steps_of(found, "mod", WIDTHS)]
    sweep = swept(found, timings)
    rows = {(row.budget, row.scheme): row for row in sweep.rows.optima if row.fit == "parabola"}
    row = rows[BUDGETS[1], "mod"]
    own = interpolated("mod", row.active_parameters)
    # Dense reaches the loss of mod at 2.7 times the budget: at the size that is its optimum there.
    between = [rows[budget, "vanilla"].active_parameters for budget in BUDGETS[1:]]
    share = log(row.speed_up) / log(BUDGETS[2] / BUDGETS[1])
    dense = interpolated("vanilla", exp((1 - share) * log(between[0]) + share * log(between[1])))
    assert row.seconds_per_flop == pytest.approx(own)
    assert row.dense_seconds_per_flop == pytest.approx(dense)
    for end in ("", "_low", "_high"):
        seconds = getattr(row, f"speed_up_seconds{end}")
        assert seconds == pytest.approx(getattr(row, f"speed_up{end}") * dense / own)
    assert rows[BUDGETS[1], "vanilla"].speed_up_seconds is None
    page = isoflop_page(sweep)
    shown = table_under(page, "3e+12 training FLOPs")[0][5]
    assert shown.startswith(f"{row.speed_up_seconds:.2f}")
    assert "Speed-up in seconds: the one in FLOPs times" in page.to_markdown()


@pytest.mark.parametrize(
    ("timed", "sentence"),
    [
        ({"vanilla": WIDTHS}, "the shapes of mod aren't timed"),
        ({"vanilla": WIDTHS, "mod": (96, 128)}, "an optimum of mod has"),
    ],
    ids=["one scheme", "other sizes"],
)
def test_missing_times_are_named_and_never_extrapolated(
    found: list[Result], timed: dict[str, tuple[int, ...]], sentence: str
) -> None:
    timings = [one for scheme, widths in timed.items() for one in steps_of(found, scheme, widths)]
    page = isoflop_page(swept(found, timings))
    row = table_under(page, "3e+12 training FLOPs")[0]
    assert row[1] == "mod"
    assert row[5] == "-"
    assert f": {sentence}" in page.to_markdown()


def test_times_of_a_scheme_with_other_options_do_not_count(
    found: list[Result],
) -> None:
    timings = [*steps_of(found, "vanilla", WIDTHS), *steps_of(found, "mod", WIDTHS)]
    others = []
    for one in timings:
        what = Timed.of(one.timed)
        assert what.router is not None
        router = replace(what.router, options={"every": 7})
        others.append(make_timing("training", replace(what, router=router), one.measured))
    assert step_times(table_of(found, others), found).steps == {}
    both = {("vanilla", None), ("mod", None)}
    assert set(step_times(table_of(found, timings), found).steps) == both


def test_doubtful_times_do_not_count(found: list[Result]) -> None:
    timings = steps_of(found, "vanilla", WIDTHS)
    for one in steps_of(found, "mod", WIDTHS):
        measured = {**one.measured, "machine": {"overloaded": True, "others": 3.0}}
        timings.append(make_timing("training", Timed.of(one.timed), measured))
    assert set(step_times(table_of(found, timings), found).steps) == {("vanilla", None)}


def test_times_with_other_threads_than_the_runs_do_not_count(found: list[Result]) -> None:
    timings = [*steps_of(found, "vanilla", WIDTHS), *steps_of(found, "mod", WIDTHS)]
    others = [replace(one, environment=one.environment | {"threads": 7}) for one in timings]
    sweep = swept(found, others)
    assert not sweep.is_timed
    assert "seconds" not in isoflop_page(sweep).to_markdown().partition("## Details")[0]


def test_seconds_of_dense_optima_at_several_depths_are_interpolated_between_them() -> None:
    def optimum(scheme: str, budget: float, depth: int) -> Optimum:
        return Optimum(
            scheme=scheme,
            budget=budget,
            fit="parabola",
            minimum="interior",
            active_parameters=100.0,
            loss=3.0,
            depth=depth,
        )

    seconds = {("vanilla", 2): 1e-9, ("vanilla", 4): 3e-9, ("mod", 4): 4e-9}
    times = Times({place: [(50.0, s), (200.0, s)] for place, s in seconds.items()})
    dense = [optimum("vanilla", 1e12, 2), optimum("vanilla", 4e12, 4)]
    faster = SpeedUp(factor=2.0, bound="", interval=None)  # at 2e12 FLOPs, half of the way in logarithms
    told = in_seconds(times, faster, optimum("mod", 1e12, 4), dense)
    assert told["dense_seconds_per_flop"] == pytest.approx(2e-9)
    assert told["speed_up_seconds"] == pytest.approx(2 * 2 / 4)
    without = Times({place: steps for place, steps in times.steps.items() if place[1] == 4})
    told = in_seconds(without, faster, optimum("mod", 1e12, 4), dense)
    reason = "the shapes of vanilla at 2 layers aren't timed"
    assert told == {"speed_up_seconds_missing_because": reason}
