"""The figures of routing, on plainly made-up counts."""

import pytest

from modbench.report.canvas import look
from modbench.report.leaderboard import Leaderboard
from modbench.report.routing_figure import MOST_ROWS, depth_figure, expert_figure, routing_figures


def _drawn(draw, records):
    with look():
        return draw(Leaderboard.of(records))


def _heights(axes) -> list[list[float]]:
    return [list(patch.get_data().values) for patch in axes.patches]


def test_figures_without_routing_say_so(six):
    for draw, why in ((depth_figure, "no run has a layer that tokens skip"), (expert_figure, "experts")):
        (axes,) = _drawn(draw, six).axes
        (text,) = axes.texts
        assert why in text.get_text()


def test_each_row_that_routes_by_depth_has_a_strip(fakes):
    records = [
        fakes.make_record("mod", routing=fakes.make_routing()),
        fakes.make_record("vanilla"),
        fakes.make_record("skip", routing=fakes.make_routing((2,)), failed_probes=(1,)),
        fakes.make_record("experts", routing=fakes.make_routing((), (0,))),
    ]
    figure = _drawn(depth_figure, records)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == ["mod: 100 held-out tokens", "skip (not ranked): 100 held-out tokens"]
    assert [axes.axison for axes in figure.axes] == [True, True, True, True, True, False]


def test_shares_by_position_are_of_the_tokens_that_stand_there(fakes):
    figure = _drawn(depth_figure, [fakes.make_record("mod", routing=fakes.make_routing((1,)))])
    # Ten windows of five positions to a bin; the training rule, then the causal one.
    assert _heights(figure.axes[0]) == [[4 / 50, 6 / 50]] * 2
    assert figure.axes[0].get_ylim()[0] == 0


def test_many_bins_of_positions_are_drawn_as_few(fakes):
    routing = fakes.make_routing((1,))
    routing |= {"sequence": 130, "edges": [*range(0, 130, 3), 130], "ids": [], "texts": [], "seen": []}
    rule = routing["causal"] | {"entered": [1300, 0], "routed": []}
    rule["depth"] = [{"layer": 1, "routed": [*([15] * 43), 5], "gates": None}]
    routing |= {"causal": rule, "topk": rule}
    figure = _drawn(depth_figure, [fakes.make_record("mod", routing=routing)])
    heights = _heights(figure.axes[0])[0]
    assert len(heights) == 15
    assert heights == pytest.approx([0.5] * 15)


def test_weights_stand_at_their_place_and_sum_to_one(fakes):
    routing = fakes.make_routing(first=-3, exponent=-1)
    figure = _drawn(depth_figure, [fakes.make_record("mod", routing=routing)])
    for axes, layer in zip(figure.axes[1:], (1, 3), strict=True):
        everyone, selected = (patch.get_data() for patch in axes.patches)
        assert list(everyone.edges) == [-1.5, -1.0, -0.5, 0.0]
        assert list(everyone.values) == [0.3, 0.5, 0.2]
        assert list(selected.values) == [0, 0.02, 0.08]
        assert f"layer {layer}" in axes.get_xlabel()


def test_seeds_are_one_strip(fakes):
    records = [fakes.make_record("mod", seed=seed, routing=fakes.make_routing()) for seed in range(3)]
    (part,) = _drawn(depth_figure, records).subfigs
    assert part.get_suptitle() == "mod: 3 seeds, 300 held-out tokens"


def test_loads_are_held_against_an_even_one_and_no_ops_stand_apart(fakes):
    routing = fakes.make_routing((), (0, 1), load=(10, 40, 30, 20))
    options = {"no_op_experts": 2}
    plain, apart = (
        _drawn(expert_figure, [fakes.make_record("a", routing=routing, **more)]).axes[0]
        for more in ({}, {"options": options})
    )
    drawn = [list(line.get_ydata()) for line in plain.lines]
    assert drawn == [[1.6, 1.2, 0.8, 0.4], [], [1.6, 1.2, 0.8, 0.4], [], [1, 1]]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in apart.lines[:2]]
    assert drawn == [([1, 2], [1.6, 0.4]), ([3, 4], [1.2, 0.8])]


def test_experts_that_nobody_goes_to_are_drawn_at_zero(fakes):
    routing = fakes.make_routing((), (0,), load=(0, 0))
    figure = _drawn(expert_figure, [fakes.make_record("a", routing=routing)])
    assert list(figure.axes[0].lines[0].get_ydata()) == [0, 0]


def test_a_page_of_many_rows_is_bounded(fakes):
    records = [
        fakes.make_record(f"row {number}", routing=fakes.make_routing(experts=(0,)))
        for number in range(MOST_ROWS + 2)
    ]
    assert len(_drawn(depth_figure, records).subfigs) == MOST_ROWS
    assert sum(axes.axison for axes in _drawn(expert_figure, records).axes) == MOST_ROWS


def test_the_same_rows_give_the_same_bytes(fakes):
    records = [fakes.make_record("mod", routing=fakes.make_routing(experts=(0, 1, 2, 3, 4)))]
    first = routing_figures(Leaderboard.of(records))
    assert sorted(first) == ["expert_load.png", "expert_load.svg", "routing.png", "routing.svg"]
    assert routing_figures(Leaderboard.of(records)) == first
