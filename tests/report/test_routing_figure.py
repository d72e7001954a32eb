"""The figures of routing, on plainly made-up counts."""

import pytest

from modbench.report.plot_style import look
from modbench.report.routing.figure import depth_figure, expert_figure
from modbench.report.suite import suite_of

pytestmark = pytest.mark.figures


def _drawn(draw, records):
    with look():
        return draw(suite_of(records))


def _heights(axes) -> list[list[float]]:
    return [list(patch.get_data().values) for patch in axes.patches]


def test_figures_without_routing_are_not_drawn(six):
    assert _drawn(depth_figure, six) is None
    assert _drawn(expert_figure, six) is None


def _titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.axison]


def test_each_row_that_routes_has_a_panel(fakes):
    records = [
        fakes.make_record("mod", routing=fakes.make_routing()),
        fakes.make_record("vanilla"),
        fakes.make_record("skip", routing=fakes.make_routing((2,)), failed_probes=(1,)),
        fakes.make_record("experts", routing=fakes.make_routing((), (0,))),
        fakes.make_record("staged", routing=fakes.make_routing((1,), (0, 2))),
    ]
    assert sorted(_titles(_drawn(depth_figure, records))) == ["mod", "skip (not ranked)", "staged"]
    assert sorted(_titles(_drawn(expert_figure, records))) == ["experts", "staged"]


def test_shares_by_position_are_of_the_tokens_that_stand_there(fakes):
    figure = _drawn(depth_figure, [fakes.make_record("mod", routing=fakes.make_routing((1,)))])
    # Ten windows of five positions to a bin; the training rule, then the causal one.
    assert _heights(figure.axes[0]) == [[4 / 50, 6 / 50]] * 2
    assert figure.axes[0].get_ylim()[0] == 0


def test_loads_are_held_against_an_even_one_and_no_ops_stand_apart(fakes):
    routing = fakes.make_routing((), (0, 1), load=(10, 40, 30, 20))
    options = {"no_op_experts": 2}
    plain, apart = (
        _drawn(expert_figure, [fakes.make_record("a", routing=routing, **more)]).axes[0]
        for more in ({}, {"options": options})
    )
    drawn = [list(line.get_ydata()) for line in plain.lines]
    assert drawn == [[1.6, 1.2, 0.8, 0.4], [1.6, 1.2, 0.8, 0.4], [1, 1]]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in apart.lines[:2]]
    assert drawn == [([1, 2], [1.6, 0.4]), ([1, 2], [1.2, 0.8])]


def test_experts_without_tokens_are_drawn_at_zero(fakes):
    routing = fakes.make_routing((), (0,), load=(0, 0))
    figure = _drawn(expert_figure, [fakes.make_record("a", routing=routing)])
    assert list(figure.axes[0].lines[0].get_ydata()) == [0, 0]
