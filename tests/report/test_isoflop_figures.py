"""Figures of an isoFLOP sweep, from made-up records of known curves."""

from functools import partial
from math import inf, log

import pytest
from isoflop_made_up import BUDGETS, Make, analysed, curve_loss, records, run, sweep_records
from matplotlib.path import Path

from modbench.analysis.comparison import SpeedUp
from modbench.report.isoflop.figures import (
    curves,
    losses_at_optimum,
    normalised,
    speed_ups,
    suite_marks,
)
from modbench.report.isoflop.page import isoflop_page

pytestmark = pytest.mark.figures


def test_unknown_ends_of_a_speed_up_are_shown_as_unknown(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ended = SpeedUp(factor=1.05, bound="", interval=(0.0, inf))
    monkeypatch.setattr(
        "modbench.analysis.curves.speed_up",
        lambda *pair: open_ended if pair[-1] == "parabola" else None,
    )
    sweep = analysed(records(make))
    assert "| 1.05 (? to ?) |" in isoflop_page(sweep).to_markdown()
    assert {*sweep.curves.optima["speed_up_low"].dropna()} == {0.0}
    figure = speed_ups(sweep, suite_marks(sweep))
    assert figure is not None
    arrows = [line for line in figure.axes[0].lines if isinstance(line.get_marker(), Path)]
    assert [list(line.get_xdata()) for line in arrows] == [[1.05], [1.05]]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["in FLOPs", "interval open on this side"]


def test_one_bad_scheme_leaves_room_for_the_others_and_has_hollow_markers(make: Make) -> None:
    bad = sweep_records(make, "bad", lambda width, _: 4 + 5 * log(width / 16))
    lost = run(make, "lost", 64, BUDGETS[1], status="diverged")
    sweep = analysed([*records(make), *bad, lost])
    for figure in (
        curves(sweep, suite_marks(sweep)),
        normalised(sweep, suite_marks(sweep)),
    ):
        assert figure is not None
        for axes in figure.axes:
            assert axes.get_ylim()[1] < 7
            assert any(line.get_marker() == "^" for line in axes.lines)
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert {"bad", "mod", "vanilla", "no interior optimum", "above the axis"} <= set(names)
        assert "lost" not in names
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1


def test_optima_of_schemes_with_equal_losses_are_apart(make: Make) -> None:
    names = ("vanilla", "one", "two")
    found = [one for name in names for one in sweep_records(make, name, partial(curve_loss, "vanilla"))]
    sweep = analysed(found)
    figure = losses_at_optimum(sweep, suite_marks(sweep))
    assert figure is not None
    markers = {mark.marker for mark in suite_marks(sweep).values()}
    lines = [line for line in figure.axes[0].lines if line.get_marker() in markers]
    places = [float(x) for line in lines for x in line.get_xdata()]
    assert len(set(places)) == len(names) * len(sweep.budgets)
