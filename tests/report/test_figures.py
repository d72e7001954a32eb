import io
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest
from matplotlib.image import imread

from modbench.report.leaderboard import figures as figures_module
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.figures import figures
from modbench.report.plot_style import HEIGHT, folded, look, marks
from modbench.routing.registry import installed_modules


def _axes(board: Leaderboard, name: str):
    with look():
        figure = figures_module.drawn(board, name)
    return figure, figure.axes[0]


def _legend(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.axison]


def test_each_figure_is_a_png_and_an_svg_that_can_be_read(six):
    contents = figures(Leaderboard.of(six))
    assert sorted(contents) == [
        f"{name}.{ending}"
        for name in ("loss_vs_forward_flops", "loss_vs_training_flops")
        for ending in ("png", "svg")
    ]
    for name, content in contents.items():
        if name.endswith(".png"):
            assert imread(io.BytesIO(content)).shape[1] == 1360
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")
            assert b"dc:date" not in content


def test_drawing_leaves_matplotlib_as_it_was(six):
    before = dict(mpl.rcParams)
    figures(Leaderboard.of(six))
    assert dict(mpl.rcParams) == before


def test_learning_curves_have_a_line_each_a_log_axis_and_the_unigram_loss(six):
    figure, axes = _axes(Leaderboard.of(six), "loss_vs_training_flops")
    assert axes.get_xscale() == "log"
    assert "FLOP" in figure.legends[0].get_title().get_text()
    assert "nats/token" in figure.get_supylabel()
    assert sorted(_legend(figure)) == sorted([*(record.label for record in six), "unigram 6.25"])
    assert len(axes.lines) == 7
    assert min(axes.lines[0].get_xdata()) > 0
    assert list(axes.lines[-1].get_ydata()) == [6.25, 6.25]


def test_curves_over_seeds_are_one_line_with_a_band(fakes):
    board = Leaderboard.of([fakes.make_record(seed=seed, loss=5 + seed / 10) for seed in range(3)])
    _, axes = _axes(board, "loss_vs_training_flops")
    assert len(axes.lines) == 2
    assert len(axes.collections) == 1


def test_a_seed_that_diverged_early_does_not_take_the_curve_of_the_others(fakes):
    finished = [fakes.make_record(seed=seed, loss=5 + seed / 10) for seed in range(2)]
    _, axes = _axes(Leaderboard.of(finished), "loss_vs_training_flops")
    losses = list(axes.lines[0].get_ydata())
    lost = fakes.make_record(seed=2, status="diverged", curve=finished[0].curve[:1])
    figure, axes = _axes(Leaderboard.of([*finished, lost]), "loss_vs_training_flops")
    assert list(axes.lines[0].get_ydata()) == losses
    assert _legend(figure)[0] == "vanilla (not ranked)"
    begun = fakes.make_record(status="diverged", curve=finished[0].curve[:3])
    assert len(_axes(Leaderboard.of([begun]), "loss_vs_training_flops")[1].lines[0].get_ydata()) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loss_vs_training_flops", "\nmean of seeds, band from least to greatest"),
        ("loss_vs_forward_flops", "\nmean of seeds and its 95 % t-interval"),
    ],
)
def test_a_figure_says_what_its_bars_are_where_it_has_any(fakes, name, words):
    records = [fakes.make_record(seed=seed, loss=5 + seed / 10) for seed in range(3)]
    for seeds, told in ((records, True), (records[:1], False)):
        figure, _ = _axes(Leaderboard.of(seeds), name)
        title = figure.legends[0].get_title().get_text()
        assert title.endswith(f"convention model){words if told else ''}")


def test_each_point_is_named_and_says_when_it_is_unranked(fakes, six):
    board = Leaderboard.of([*six, fakes.make_record("leaky", failed_probes=(1,), cost=1.3)])
    names = [record.label for record in six]
    figure, axes = _axes(board, "loss_vs_forward_flops")
    assert {*names, "leaky (not ranked)"} == {*_legend(figure)}
    assert len([line for line in axes.lines if line.get_linestyle() == "None"]) == 7


def test_points_lie_at_the_realised_flops_of_the_table(six):
    figure, axes = _axes(Leaderboard.of(six), "loss_vs_forward_flops")
    drawn = {float(line.get_xdata()[0]) for line in axes.lines}
    assert drawn == {record.metrics["forward_flops_per_token_realised"] for record in six}
    assert "(realised" in figure.legends[0].get_title().get_text()


def test_runs_that_all_failed_make_no_figures(fakes):
    assert figures(Leaderboard.of([fakes.make_record(status="oom")])) == {}


def test_a_single_row_makes_figures(fakes):
    assert len(figures(Leaderboard.of([fakes.make_record("mod")]))) == 4


def _grid(fakes, schemes=("vanilla", "mod", "token_choice"), sizes=("S", "L"), budgets=(1, 4)):
    widths = {"S": 64, "M": 96, "L": 128}
    return [
        fakes.make_record(
            f"{scheme}/{size}",
            loss=5 + number / 10,
            cost=widths[size] / 64,
            model={"width": widths[size]},
            train={"budget": budget * 10**12},
            metrics={"active_parameters": widths[size]},
        )
        for number, scheme in enumerate(schemes)
        for size in sizes
        for budget in budgets
    ]


def test_learning_curves_of_sizes_and_budgets_are_small_multiples(fakes):
    figure, _ = _axes(Leaderboard.of(_grid(fakes)), "loss_vs_training_flops")
    assert _titles(figure) == [
        f"{size}, {budget} training FLOPs" for size in ("S", "L") for budget in ("1e+12", "4e+12")
    ]
    assert sorted(_legend(figure)) == ["mod", "token_choice", "unigram 6.25", "vanilla"]


@pytest.mark.parametrize(
    ("sizes", "budgets", "titles"),
    [
        (("S", "M", "L"), (1,), ["S", "M", "L"]),
        (("S",), (1, 2, 3, 4), [f"{n}e+12 training FLOPs" for n in (1, 2, 3, 4)]),
        (("S",), (1,), [""]),
    ],
)
def test_panels_are_by_what_differs(fakes, sizes, budgets, titles):
    board = Leaderboard.of(_grid(fakes, sizes=sizes, budgets=budgets))
    figure, _ = _axes(board, "loss_vs_training_flops")
    assert _titles(figure) == titles


def test_sizes_of_a_scheme_are_one_line_and_the_best_is_filled(fakes):
    figure, axes = _axes(Leaderboard.of(_grid(fakes)), "loss_vs_forward_flops")
    assert len(_titles(figure)) == 2
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in lines] == [2, 2, 2]
    faces = [line.get_markerfacecolor() for line in axes.lines if line.get_linestyle() == "None"]
    assert faces.count("white") == 3
    assert sorted(_legend(figure)) == ["mod", "token_choice", "vanilla"]


def test_schemes_with_a_shape_of_their_own_stay_in_one_panel(fakes):
    records = [*_grid(fakes, ("vanilla", "mod"), ("L",), (1,)), *_grid(fakes, ("half",), ("S",), (1,))]
    figure, _ = _axes(Leaderboard.of(records), "loss_vs_training_flops")
    assert _titles(figure) == [""]
    assert sorted(_legend(figure))[:2] == ["half", "mod"]


def test_a_scheme_looks_the_same_in_all_panels_and_figures(fakes):
    board = Leaderboard.of(_grid(fakes))
    mark = marks({"mod": "mod"})["mod"]
    for name in figures_module.FIGURES:
        figure, _ = _axes(board, name)
        named = dict(zip(_legend(figure), figure.legends[0].legend_handles, strict=True))
        assert named["mod"].get_color() == mark.color
        assert named["mod"].get_marker() == mark.marker


def test_each_scheme_keeps_its_mark_whatever_the_order_and_differs_from_all_others():
    plugins = {f"scheme {number}": f"scheme {number}" for number in range(20)}
    assert marks(plugins) == marks(dict(reversed(plugins.items())))
    built_in = dict.fromkeys(("vanilla", "mod", "expert_choice", "token_choice", "mode_staged"), "")
    looks = marks({scheme: scheme for scheme in built_in} | plugins)
    assert len({(mark.color, mark.marker) for mark in looks.values()}) == 25


def test_routers_of_modbench_look_the_same_in_all_suites_and_dense_is_grey():
    names = [name for name, module in installed_modules().items() if module.startswith("modbench.")]
    together = marks({name: name for name in names} | {"a plugin": "a plugin"})
    assert {name: marks({name: name})[name] for name in names} == {
        name: together[name] for name in names
    }
    assert len({mark.color for mark in together.values()}) == len(names) + 1
    for scheme in ("vanilla", "vanilla, 2 layers"):
        red, green, blue = marks({scheme: "vanilla"})[scheme].color
        assert red == green == blue


def test_schemes_of_a_router_are_shades_that_differ_and_stay_when_others_come():
    labels = ("mod:stride", "mod:gaussian", "mod:half")
    found = marks(dict.fromkeys(("mod", *labels), "mod"))
    assert len({(mark.marker, str(mark.dashes)) for mark in found.values()}) == 4
    assert marks({"mod:stride": "mod"})["mod:stride"] == found["mod:stride"]
    for label in labels:
        red, green, blue = found[label].color
        assert red < green < blue  # as mod's colour, blue


def test_seeds_are_joined_by_flops_and_their_curve_has_all_points(fakes):
    """A scheme with a varying number of routed tokens reaches equal FLOPs at other steps."""
    first, second = (fakes.make_record(seed=seed) for seed in range(2))
    flops = [10**11 * number for number in range(1, 9)]
    for record, shift in ((first, 0), (second, 1)):
        record.curve[:] = [
            {"step": spent // 10**9 - shift, "flops": spent, "heldout_loss": 6 - spent / 10**12 + shift}
            for spent in flops
        ]
    (entry,) = Leaderboard.of([first, second]).entries
    points = figures_module.curve_points(entry.row)
    assert [spent for spent, *_ in points] == flops
    assert [mean for _, mean, *_ in points] == pytest.approx([6.5 - spent / 10**12 for spent in flops])
    assert [high - low for *_, low, high in points] == pytest.approx([1] * 8)
    second.curve[3]["flops"] *= 1.1
    points = figures_module.curve_points(entry.row)
    assert points[3][0] == pytest.approx(4.2e11)
    assert points[3][2] == pytest.approx(6 - 0.42, abs=0.005)  # the first seed, between its points


def test_only_panels_of_one_budget_share_the_loss_axis(fakes):
    figure, _ = _axes(Leaderboard.of(_grid(fakes)), "loss_vs_training_flops")
    small, large, small_below, large_below = figure.axes
    shared = small.get_shared_y_axes()
    assert shared.joined(small, small_below)
    assert shared.joined(large, large_below)
    assert not shared.joined(small, large)


@pytest.mark.parametrize("label", ["_hidden", "x" * 60])
@pytest.mark.parametrize("name", figures_module.FIGURES)
def test_any_label_can_be_drawn_and_makes_its_own_room(fakes, label, name):
    board = Leaderboard.of([fakes.make_record(label, router="mod"), fakes.make_record("vanilla")])
    figure, axes = _axes(board, name)
    assert label in _legend(figure)
    figure.canvas.draw()
    box, panel = figure.legends[0].get_window_extent(), axes.get_tightbbox()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= panel.y0
    assert axes.get_window_extent().height > 0.8 * HEIGHT * figure.dpi


def test_budget_in_a_title_is_not_split():
    title = folded("surprise_mod/small, of many words [3e+10 FLOP]")
    assert title.endswith("\n[3e+10 FLOP]")


def test_rows_beyond_the_first_are_grey_and_have_no_name(fakes):
    most = figures_module.MOST_NAMED
    records = [
        fakes.make_record(f"token_choice:{n}", router="token_choice", loss=4.5 + n / 90, cost=1 + n / 9)
        for n in range(most + 5)
    ]
    board = Leaderboard.of(records)
    named = [entry.row.label for entry in board.entries[:most]]
    figure, axes = _axes(board, "loss_vs_training_flops")
    assert _legend(figure) == [*named, "unigram 6.25"]
    (others,) = [held for held in axes.collections if len(held.get_paths()) == 5]
    assert len({tuple(color) for color in others.get_colors()}) == 1
    assert "after its first 20" in figure.legends[0].get_title().get_text()
    figure, axes = _axes(board, "loss_vs_forward_flops")
    assert _legend(figure) == named
    assert [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "."] == [5]
