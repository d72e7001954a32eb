"""Figures of an isoFLOP sweep, from made-up records of known curves."""

from math import log

import pytest
from isoflop_made_up import BUDGETS, Make, analysed, records, run, sweep_records

from modbench.report.isoflop.figures import curves
from modbench.report.plot_style import marks

pytestmark = pytest.mark.figures


def test_one_bad_scheme_leaves_room_for_the_others_and_has_hollow_markers(make: Make) -> None:
    bad = sweep_records(make, "bad", lambda width, _: 4 + 5 * log(width / 16))
    lost = run(make, "lost", 64, BUDGETS[1], status="diverged")
    sweep = analysed([*records(make), *bad, lost])
    figure = curves(sweep, marks({scheme: scheme for scheme in sweep.schemes}))
    for axes in figure.axes:
        assert axes.get_ylim()[1] < 7
        assert any(line.get_marker() == "^" for line in axes.lines)
        hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        assert len(hollow) == 1
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"bad", "mod", "vanilla", "no interior optimum", "above the axis"} <= set(names)
    assert "lost" not in names
