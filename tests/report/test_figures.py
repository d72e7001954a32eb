import io
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.image import imread

from modbench.report.leaderboard import figures as figures_module
from modbench.report.leaderboard.board import Board, board_of
from modbench.report.leaderboard.figures import figures
from modbench.report.plot_style import look, marks
from modbench.routing.registry import installed_modules

pytestmark = pytest.mark.figures


def _axes(board: Board, name: str):
    with look():
        figure = figures_module.drawn(board, name)
    return figure, figure.axes[0]


def _legend(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_each_figure_is_a_png_and_an_svg_that_can_be_read(six):
    contents = figures(board_of(six))
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


def test_learning_curves_have_a_line_each_a_log_axis_and_the_unigram_loss(six):
    figure, axes = _axes(board_of(six), "loss_vs_training_flops")
    assert axes.get_xscale() == "log"
    assert "FLOP" in figure.legends[0].get_title().get_text()
    assert "nats/token" in figure.get_supylabel()
    assert sorted(_legend(figure)) == sorted([*(record.label for record in six), "unigram 6.25"])
    assert len(axes.lines) == 7
    assert min(axes.lines[0].get_xdata()) > 0
    assert list(axes.lines[-1].get_ydata()) == [6.25, 6.25]


def test_curves_over_seeds_are_one_line_with_a_band(fakes):
    board = board_of([fakes.make_record(seed=seed, loss=5 + seed / 10) for seed in range(3)])
    _, axes = _axes(board, "loss_vs_training_flops")
    assert len(axes.lines) == 2
    assert len(axes.collections) == 1


def test_a_seed_that_diverged_early_does_not_take_the_curve_of_the_others(fakes):
    finished = [fakes.make_record(seed=seed, loss=5 + seed / 10) for seed in range(2)]
    _, axes = _axes(board_of(finished), "loss_vs_training_flops")
    losses = list(axes.lines[0].get_ydata())
    lost = fakes.make_record(seed=2, status="diverged", curve=finished[0].curve[:1])
    figure, axes = _axes(board_of([*finished, lost]), "loss_vs_training_flops")
    assert list(axes.lines[0].get_ydata()) == losses
    assert _legend(figure)[0] == "vanilla (not ranked)"
    begun = fakes.make_record(status="diverged", curve=finished[0].curve[:3])
    assert len(_axes(board_of([begun]), "loss_vs_training_flops")[1].lines[0].get_ydata()) == 2


def test_each_point_is_named_and_says_when_it_is_unranked(fakes, six):
    board = board_of([*six, fakes.make_record("leaky", failed_probes=(1,), cost=1.3)])
    names = [record.label for record in six]
    figure, axes = _axes(board, "loss_vs_forward_flops")
    assert {*names, "leaky (not ranked)"} == {*_legend(figure)}
    assert len([line for line in axes.lines if line.get_linestyle() == "None"]) == 7


def test_points_lie_at_the_realised_flops_of_the_table(six):
    figure, axes = _axes(board_of(six), "loss_vs_forward_flops")
    drawn = {float(line.get_xdata()[0]) for line in axes.lines}
    assert drawn == {record.metrics["forward_flops_per_token_realised"] for record in six}
    assert "(realised" in figure.legends[0].get_title().get_text()


def test_runs_that_all_failed_make_no_figures(fakes):
    assert figures(board_of([fakes.make_record(status="oom")])) == {}


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
    (row,) = board_of([first, second]).rows
    points = figures_module.curve_points(row)
    assert [spent for spent, *_ in points] == flops
    assert [mean for _, mean, *_ in points] == pytest.approx([6.5 - spent / 10**12 for spent in flops])
    assert [high - low for *_, low, high in points] == pytest.approx([1] * 8)
    second.curve[3] = second.curve[3].model_copy(update={"flops": second.curve[3].flops * 1.1})
    points = figures_module.curve_points(row)
    assert points[3][0] == pytest.approx(4.2e11)
    assert points[3][2] == pytest.approx(6 - 0.42, abs=0.005)  # the first seed, between its points
