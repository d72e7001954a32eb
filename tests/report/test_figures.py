import xml.etree.ElementTree as ElementTree
from functools import partial

import pytest
from matplotlib.image import imread

from modbench.analysis.frames import plain_records
from modbench.report.leaderboard import leaderboard_page
from modbench.report.losses import curve_points, loss_figures
from modbench.report.pair_figures import forest, to_dense
from modbench.report.plot_style import drawn_files, look, marks
from modbench.report.suite import Suite, suite_of
from modbench.routing.registry import installed_modules

pytestmark = pytest.mark.figures


def _draws(board: Suite):
    return loss_figures(board, marks({row["label"]: row["router"] for row in board.rows}))


def _axes(board: Suite, name: str):
    with look():
        figure = _draws(board)[name]()
    return figure, figure.axes[0]


def _legend(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_figures_are_svg_with_their_text_and_png_for_slides_where_asked(six, tmp_path):
    draws = _draws(suite_of(six))
    contents = drawn_files(draws, png=True)
    assert sorted(contents) == sorted(f"{name}.{end}" for name in draws for end in ("png", "svg"))
    for name, content in contents.items():
        if name.endswith(".png"):
            (tmp_path / name).write_bytes(content)
            assert imread(tmp_path / name).shape[1] > 1000
        else:
            texts = "".join(ElementTree.fromstring(content).itertext())
            assert {"vanilla", "mod"} <= {*texts.split()}
            assert b"dc:date" not in content
    assert drawn_files(draws) == {name: of for name, of in contents.items() if name.endswith("svg")}


def test_learning_curves_have_a_line_each_a_log_axis_and_the_unigram_loss(six):
    figure, axes = _axes(suite_of(six), "loss_vs_training_flops")
    assert axes.get_xscale() == "log"
    assert "FLOP" in figure.get_supxlabel()
    assert "nats/token" in figure.get_supylabel()
    assert sorted(_legend(figure)) == sorted([*(record.label for record in six), "unigram 6.25"])
    assert len(axes.lines) == 7
    assert min(axes.lines[0].get_xdata()) > 0
    assert list(axes.lines[-1].get_ydata()) == [6.25, 6.25]


def test_curves_over_seeds_are_one_line_with_a_band(fakes):
    board = suite_of([fakes.make_record(seed=seed, loss=5 + seed / 10) for seed in range(3)])
    _, axes = _axes(board, "loss_vs_training_flops")
    assert len(axes.lines) == 2
    assert len(axes.collections) == 1


def test_a_seed_that_diverged_early_does_not_take_the_curve_of_the_others(fakes):
    finished = [fakes.make_record(seed=seed, loss=5 + seed / 10) for seed in range(2)]
    _, axes = _axes(suite_of(finished), "loss_vs_training_flops")
    losses = list(axes.lines[0].get_ydata())
    lost = fakes.make_record(seed=2, status="diverged", curve=finished[0].curve[:1])
    figure, axes = _axes(suite_of([*finished, lost]), "loss_vs_training_flops")
    assert list(axes.lines[0].get_ydata()) == losses
    assert _legend(figure)[0] == "vanilla (not ranked)"
    begun = fakes.make_record(status="diverged", curve=finished[0].curve[:3])
    assert len(_axes(suite_of([begun]), "loss_vs_training_flops")[1].lines[0].get_ydata()) == 2


def test_each_point_is_named_and_says_when_it_is_unranked(fakes, six):
    board = suite_of([*six, fakes.make_record("leaky", failed_probes=(1,), cost=1.3)])
    names = [record.label for record in six]
    figure, axes = _axes(board, "loss_vs_forward_flops")
    assert {*names, "leaky (not ranked)"} == {*_legend(figure)}
    assert len([line for line in axes.lines if line.get_linestyle() == "None"]) == 7


def test_points_lie_at_the_realised_flops_of_the_table(six):
    figure, axes = _axes(suite_of(six), "loss_vs_forward_flops")
    drawn = {float(line.get_xdata()[0]) for line in axes.lines}
    assert drawn == {record.metrics["forward_flops_per_token_realised"] for record in six}
    assert "realised" in figure.get_supxlabel()


def test_runs_that_all_failed_make_no_figures(fakes):
    assert drawn_files(_draws(suite_of([fakes.make_record(status="oom")]))) == {}


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


def test_seeds_are_joined_by_flops_and_their_curve_has_all_points(fakes):
    """A scheme with a varying number of routed tokens reaches equal FLOPs at other steps."""
    first, second = (fakes.make_record(seed=seed) for seed in range(2))
    flops = [10**11 * number for number in range(1, 9)]
    for record, shift in ((first, 0), (second, 1)):
        record.curve[:] = [
            record.curve[0].model_copy(
                update={"flops": spent, "heldout_loss": 6 - spent / 10**12 + shift}
            )
            for spent in flops
        ]
    board = suite_of([first, second])
    points = curve_points(board, board.rows[0])
    assert [spent for spent, *_ in points] == flops
    assert [mean for _, mean, *_ in points] == pytest.approx([6.5 - spent / 10**12 for spent in flops])
    assert [high - low for *_, low, high in points] == pytest.approx([1] * 8)
    second.curve[3] = second.curve[3].model_copy(update={"flops": second.curve[3].flops * 1.1})
    points = curve_points(board, board.rows[0])
    assert points[3][0] == pytest.approx(4.2e11)
    assert points[3][2] == pytest.approx(6 - 0.42, abs=0.005)  # the first seed, between its points


def _pair(scheme: str, other: str, value: float, verdict: str | None, place: int | None = 1):
    pair = {"scheme": scheme, "other": other, "value": value, "verdict": verdict, "place": place}
    family = "dense" if other == "vanilla" else None
    return pair | {"low": value - 0.1, "high": value + 0.1, "depth": None, "family": family}


NAMES = {1: "small", 2: "large"}
PAIRS = [
    _pair("a", "vanilla", -0.3, "better"),
    _pair("b", "vanilla", 0.05, "undecided"),
    _pair("b", "vanilla", 0.2, "worse", 2),
    _pair("vanilla", "a", 0.3, "worse"),
    _pair("b", "a", 0.35, None),
    _pair("b", "a", 0.4, None, None),
]


def _points(axes, coordinate: int) -> list[tuple[float, str]]:
    """The value of each point with an interval, and how it is drawn."""
    kinds = []
    for point in (bars.lines[0] for bars in axes.containers):
        kind = "hollow" if point.get_markerfacecolor() == "white" else "filled"
        kind = "stroke" if point.get_marker() in ("|", "_") else kind
        kinds.append((round(float(point.get_xydata()[0][coordinate]), 2), kind))
    return kinds


def test_differences_to_dense_are_filled_where_significant_and_hollow_for_a_control():
    look_of = marks({"a": "mod", "b": "b"})
    with look():
        (axes,) = to_dense(PAIRS, NAMES, look_of).axes
        (other,) = to_dense(PAIRS, NAMES, look_of, {"b"}).axes
        assert to_dense(PAIRS[:2], NAMES, look_of) is None
    assert _points(axes, 1) == [(-0.3, "filled"), (0.05, "hollow"), (0.2, "filled")]
    assert _points(other, 1) == [(-0.3, "filled"), (0.05, "hollow"), (0.2, "hollow")]
    assert [text.get_text() for text in axes.texts] == ["a", "b"]  # lowest first
    untold = [pair | {"verdict": None} for pair in PAIRS]  # as in a suite that is not finished
    with look():
        figure = to_dense(untold, NAMES, look_of, {"b"})
    assert {kind for _, kind in _points(figure.axes[0], 1)} == {"stroke"}
    assert {*_legend(figure)} == {"dense", "no verdict", "control, always hollow"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["small", "large"]


def test_a_forest_has_each_pair_once_in_one_direction_and_shows_what_was_not_tested():
    with look():
        figure = forest(PAIRS, NAMES)
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.split()[::2] for label in labels] == [["a", "vanilla"], ["b", "vanilla"], ["a", "b"]]
    drawn = [(-0.3, "filled"), (0.05, "hollow"), (0.2, "filled"), (-0.35, "stroke"), (-0.4, "stroke")]
    assert _points(axes, 0) == drawn
    assert {"small", "large", "runs of equal shape", "no verdict"} <= {*_legend(figure)}


def test_a_forest_shows_the_pairs_of_a_suite_as_it_states_them_with_each_seed_and_margin():
    one = _pair("vanilla", "b", 0.1, "equivalent") | {"by_seed": {300: 0.4, 301: -0.2}, "margin": 0.25}
    two = _pair("a", "vanilla", -0.1, "better") | {"by_seed": {300: -0.3, 301: 0.1}, "margin": None}
    with look():
        figure = forest([one, two], NAMES)
    (axes,) = figure.axes
    drawn = [[*line.get_xdata()] for line in axes.lines if line.get_marker() == "."]
    assert drawn == [[0.4, -0.2], [-0.3, 0.1]]
    labels = [label.get_text().split()[::2] for label in axes.get_yticklabels()]
    assert labels == [["vanilla", "b"], ["a", "vanilla"]]
    (band,) = axes.containers[0] if len(axes.containers[0]) == 1 else axes.containers[1]
    assert (band.get_x(), band.get_width()) == (-0.25, 0.5)
    assert {"equivalent", "margin"} <= {*_legend(figure)}


def test_a_forest_of_several_depths_says_where_each_scheme_is_at_its_best():
    equal = _pair("a", "vanilla", -0.2, None) | {"depth": 4}
    with look():
        (axes,) = forest([*PAIRS, equal], NAMES).axes
    labels = [label.get_text().partition("vanilla")[2] for label in axes.get_yticklabels()]
    assert labels[:3] == [", best depth of each", ", 4 layers", ", best depth of each"]
    assert axes.get_yticklabels()[-1].get_text().split() == [
        "a",
        "\N{MINUS SIGN}",
        "b",
    ]  # of equal shape


def test_of_too_many_pairs_the_first_are_drawn_and_the_caption_tells_how_many(fakes):
    labels = ["vanilla", *"abcdefghij"]  # 55 pairs
    board = suite_of(
        fakes.make_record(name, seed=seed, loss=5 + seed * number / 100)
        for number, name in enumerate(labels)
        for seed in (0, 1)
    )
    for stated in ([], [{"i", "j"}]):
        pairs = [pair | {"place": 1} for pair in plain_records(board.pairs)]
        for pair in pairs:
            pair["family"] = "stated" if {pair["scheme"], pair["other"]} in stated else None
        with look():
            (axes,) = forest(pairs, NAMES).axes
        names = [{*label.get_text().split()[::2]} for label in axes.get_yticklabels()]
        assert names[: len(stated)] == stated
        drawn_next = ["vanilla" in name for name in names[len(stated) :]]
        assert drawn_next == [True] * 10 + [False] * (30 - len(stated))
    assert " Of 55 pairs, 40 are drawn" in leaderboard_page(board, ["differences.svg"]).to_markdown()


def test_the_figure_of_the_readme_is_drawn_for_a_dark_page_too():
    draw = partial(to_dense, PAIRS, NAMES, marks({"a": "mod", "b": "b"}))
    light, dark = drawn_files({"difference_to_dense": draw}).items()
    assert [light[0], dark[0]] == ["difference_to_dense.svg", "difference_to_dense_dark.svg"]
    assert (b"#0d1117" in light[1], b"#0d1117" in dark[1]) == (False, True)
