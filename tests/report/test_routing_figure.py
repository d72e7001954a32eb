"""The figures of routing, on plainly made-up counts."""

import pytest

from modbench.report.leaderboard import Leaderboard
from modbench.report.plot_style import look
from modbench.report.record import CellRecord, cell_key
from modbench.report.routing_figure import MOST_ROWS, depth_figure, expert_figure, routing_figures


def _drawn(draw, records):
    with look():
        return draw(Leaderboard.of(records))


def _heights(axes) -> list[list[float]]:
    return [list(patch.get_data().values) for patch in axes.patches]


def test_figures_without_routing_say_so(six):
    for draw, why in ((depth_figure, "no run has depth-routed layers"), (expert_figure, "experts")):
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
    assert [len(part.axes) for part in figure.subfigs] == [3, 2]  # two layers' weights, then one's
    assert all(axes.axison for axes in figure.axes)


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


def _choosing(fakes) -> dict:
    """Experts of four layers that choose, differently under either rule."""
    routing = fakes.make_routing((), (0, 1, 2, 3))
    for rule, taken, by_taken in (("causal", [30, 45], [25, 50, 25]), ("topk", [40, 50], [10, 80, 10])):
        for layer in routing[rule]["experts"]:
            layer |= {"taken": taken, "by_taken": by_taken}
    return routing


def _recursions(fakes, *, layers: int, recursions: int) -> CellRecord:
    """Mixture-of-recursions, all of whose blocks but the first recursion's tokens skip."""
    each = (layers - 2) // recursions
    record = fakes.make_record(
        "mixture_of_recursions",
        options={"recursions": recursions},
        routing=fakes.make_routing(tuple(range(1 + each, layers - 1))),
    )
    for layer in record.routing["causal"]["depth"]:
        if (layer["layer"] - 1) % each:
            layer["gates"] = None  # a recursion has one router, before its first block
    record.cell["model"]["layers"] = layers
    fields = {**vars(record), "key": cell_key(record.cell)}
    return CellRecord(**fields)


def _of_all_schemes(fakes) -> list[CellRecord]:
    experts = fakes.make_routing((), (0, 1, 2, 3))
    idle = fakes.make_routing((), (0, 1, 2, 3), load=tuple(range(32, 0, -2)))
    for layer in idle["causal"]["experts"]:
        layer["by_no_op"] = [30, 40, 30]
    return [
        fakes.make_record("vanilla"),
        fakes.make_record("mod", routing=fakes.make_routing()),
        fakes.make_record("threshold_skip", routing=fakes.make_routing(tuple(range(9)))),
        fakes.make_record("mode_staged", routing=fakes.make_routing((1, 3), (0, 1, 2, 3))),
        fakes.make_record("mode_integrated", options={"no_op_experts": 8}, routing=idle),
        fakes.make_record("token_choice", routing=experts),
        *(
            fakes.make_record(name, routing=_choosing(fakes))
            for name in ("expert_choice", "expert_threshold", "relu_routing")
        ),
        _recursions(fakes, layers=8, recursions=3),
    ]


def _legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_scheme_that_routes_is_drawn_once_or_as_often_as_it_routes(fakes):
    records = _of_all_schemes(fakes)
    strips = [part.get_suptitle().split(":")[0] for part in _drawn(depth_figure, records).subfigs]
    by_experts = "{}, by its experts' choice"
    assert sorted(strips) == [
        *(by_experts.format(name) for name in ("expert_choice", "expert_threshold")),
        *("mixture_of_recursions", "mod", "mode_staged"),
        *(by_experts.format("relu_routing"), "threshold_skip"),
    ]
    panels = {axes.get_title() for axes in _drawn(expert_figure, records).axes if axes.axison}
    assert panels == {
        *("mode_staged", "mode_integrated", "token_choice"),
        *("expert_choice", "expert_threshold", "relu_routing"),
    }


def test_what_experts_choose_is_drawn_by_position_and_by_number(fakes):
    two = [fakes.make_record("expert_choice", seed=seed, routing=_choosing(fakes)) for seed in range(2)]
    (part,) = _drawn(depth_figure, two).subfigs
    assert part.get_suptitle() == "expert_choice, by its experts' choice: 2 seeds, 200 held-out tokens"
    by_position, by_number = part.axes
    assert _heights(by_position)[:2] == [[0.8, 1.0], [0.6, 0.9]]
    assert [list(line.get_ydata()) for line in by_number.lines[:2]] == [
        [0.1, 0.8, 0.1],
        [0.25, 0.5, 0.25],
    ]


def test_each_line_that_a_legend_names_is_called_a_layer(fakes):
    for layers, named in (
        ((1, 3), ["layer 1", "layer 3"]),
        (tuple(range(9)), ["layer 0", "layer 8"]),
    ):
        record = fakes.make_record("mod", routing=fakes.make_routing(layers, layers))
        assert _legend(_drawn(depth_figure, [record]).axes[0]) == named
        assert _legend(_drawn(expert_figure, [record]).axes[0]) == named


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


@pytest.mark.parametrize(("rows", "words"), [(12, None), (14, "the first 12 of 14")])
def test_a_figure_says_that_it_draws_a_part_of_the_rows(fakes, rows, words):
    routing = fakes.make_routing((1,), (0,))
    board = Leaderboard.of([fakes.make_record(f"row {n}", routing=routing) for n in range(rows)])
    for figure in (depth_figure(board), expert_figure(board)):
        (legend,) = figure.legends
        told = [text.get_text() for text in legend.get_texts() if "first" in text.get_text()]
        assert told == ([words] if words else [])
