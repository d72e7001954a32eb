"""The figures of routing, on plainly made-up counts."""

import pytest

from modbench.report.leaderboard.board import Leaderboard
from modbench.report.plot_style import look
from modbench.report.routing.figure import MOST_ROWS, depth_figure, expert_figure, routing_figures


def _drawn(draw, records):
    with look():
        return draw(Leaderboard.of(records))


def _heights(axes) -> list[list[float]]:
    return [list(patch.get_data().values) for patch in axes.patches]


def test_figures_without_routing_are_not_drawn(six):
    assert _drawn(depth_figure, six) is None
    assert _drawn(expert_figure, six) is None
    assert routing_figures(Leaderboard.of(six)) == {}


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


def test_many_bins_of_positions_are_drawn_as_few(fakes):
    routing = fakes.make_routing((1,))
    routing |= {"sequence": 130, "edges": [*range(0, 130, 3), 130]}
    rule = routing["causal"]
    rule["depth"] = [{"layer": 1, "routed": [*([15] * 43), 5], "gates": None}]
    routing |= {"causal": rule, "topk": rule}
    figure = _drawn(depth_figure, [fakes.make_record("mod", routing=routing)])
    heights = _heights(figure.axes[0])[0]
    assert len(heights) == 15
    assert heights == pytest.approx([0.5] * 15)


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


def _legend(figure) -> list[str]:
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    return [text for text in texts if text.startswith("layer")]


def test_each_line_that_a_legend_names_is_called_a_layer(fakes):
    for layers, named in (
        ((1, 3), ["layer 1", "layer 3"]),
        ((0, 1, 2), ["layer 0", "layer 1", "layer 2"]),
        (tuple(range(9)), ["layer 0", "layer 8"]),
    ):
        record = fakes.make_record("mod", routing=fakes.make_routing(layers, layers))
        assert _legend(_drawn(depth_figure, [record])) == named
        assert _legend(_drawn(expert_figure, [record])) == named


def test_layers_of_panels_that_differ_are_named_in_each_panel(fakes):
    records = [
        fakes.make_record("mod", routing=fakes.make_routing((1, 3))),
        fakes.make_record("skip", routing=fakes.make_routing((2,))),
    ]
    figure = _drawn(depth_figure, records)
    inside = [axes.get_legend() for axes in figure.axes]
    assert _legend(figure) == ["layer 1", "layer 3"]
    assert [text.get_text() for text in inside[1].get_texts()] == ["layer 2"]
    assert inside[0] is None


@pytest.mark.parametrize(
    ("rows", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))]
)
def test_panels_leave_as_few_places_empty_as_can_be(fakes, rows, shape):
    records = [
        fakes.make_record(f"row {number}", routing=fakes.make_routing((), (0,)))
        for number in range(rows)
    ]
    figure = _drawn(expert_figure, records)
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape


@pytest.mark.parametrize("more", [0, 2])
def test_a_figure_of_many_rows_is_bounded_and_says_so(fakes, more):
    routing = fakes.make_routing((1,), (0,))
    count = MOST_ROWS + more
    board = Leaderboard.of([fakes.make_record(f"row {n}", routing=routing) for n in range(count)])
    for figure in (depth_figure(board), expert_figure(board)):
        assert len(_titles(figure)) == MOST_ROWS
        assert figure.get_suptitle() == (f"the first 12 of {count} rows" if more else "")
