import io
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest
from matplotlib.image import imread

from modbench.report import figures as figures_module
from modbench.report.figures import figures
from modbench.report.leaderboard import Leaderboard
from modbench.report.plot_style import (
    look,
    marks,
)

_CURVES = "loss_vs_training_flops"


def _axes(board: Leaderboard, name: str):
    with look():
        figure = figures_module.drawn(board, name)
    return figure, figure.axes[0]


def _legend(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_each_figure_is_a_png_and_an_svg_that_can_be_read(six):
    contents = figures(Leaderboard.of(six))
    assert sorted(contents) == [
        f"{name}.{ending}"
        for name in (*("expert_load", "loss_vs_forward_flops", "loss_vs_training_flops", "routing"),)
        for ending in ("png", "svg")
    ]
    for name, content in contents.items():
        if name.endswith(".png"):
            assert imread(io.BytesIO(content)).shape[1] == 1080
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
    assert "FLOP" in axes.get_xlabel()
    assert "nats/token" in axes.get_ylabel()
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*sorted(record.cell["router"]["label"] for record in six), "unigram 6.25"]
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
    assert figure.legends[0].get_texts()[0].get_text() == "vanilla (not ranked)"
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
        _, axes = _axes(Leaderboard.of(seeds), name)
        assert axes.get_ylabel().endswith(f"(nats/token){words if told else ''}")


def test_the_legend_names_each_point_and_says_when_it_is_unranked(fakes, six):
    board = Leaderboard.of([*six, fakes.make_record("leaky", failed_probes=(1,), cost=1.3)])
    names = [record.cell["router"]["label"] for record in six]
    figure, axes = _axes(board, "loss_vs_forward_flops")
    assert {*names, "leaky (not ranked)"} <= {*_legend(figure)}
    assert len([line for line in axes.lines if line.get_marker() in tuple("osD^vPX")]) == 7


def test_runs_that_all_failed_still_make_figures_that_say_so(fakes):
    board = Leaderboard.of([fakes.make_record(status="oom")])
    assert len(figures(board)) == 8
    assert _texts(_axes(board, "loss_vs_forward_flops")[1]) == ["no run was finished"]


def test_a_single_row_makes_figures(fakes):
    assert len(figures(Leaderboard.of([fakes.make_record("mod")]))) == 8


def test_figures_have_the_same_bytes_each_time(six):
    board = Leaderboard.of(six)
    assert figures(board) == figures(board)


def test_each_label_keeps_its_mark_whatever_the_order_and_differs_from_all_others():
    labels = [f"scheme {number}" for number in range(40)]
    assert marks(labels) == marks(labels[::-1])
    looks = {(mark.color, mark.marker, str(mark.dashes)) for mark in marks(labels).values()}
    assert len(looks) == 40
    first = list(marks(labels[:7]).values())
    assert len({mark.marker for mark in first}) == len({mark.color for mark in first}) == 7


def test_labels_of_one_scheme_share_its_colour_and_nothing_else():
    labels = [f"{name}{end}" for name in ("mod", "mine", "vanilla") for end in (" [1]", " [2]", "/a")]
    found = marks(labels)
    assert len({(mark.color, mark.marker, str(mark.dashes)) for mark in found.values()}) == len(labels)
    for name in ("mod", "mine", "vanilla"):
        own = [found[label] for label in labels if label.startswith(name)]
        assert len({mark.marker for mark in own}) == len({str(mark.dashes) for mark in own}) == 3
        assert len({mark.color for mark in own}) == 1


@pytest.mark.parametrize("label", ["_hidden", "x" * 60])
def test_any_label_can_be_drawn(fakes, label):
    board = Leaderboard.of([fakes.make_record(label, router="mod"), fakes.make_record("vanilla")])
    figure, _ = _axes(board, "loss_vs_training_flops")
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 3
    assert label in [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert max(len(line) for text in legend.get_texts() for line in text.get_text().split("\n")) <= 30
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("length", "columns"), [(4, 3), (16, 2), (26, 1)], ids=["short", "of 16 signs", "long"]
)
def test_a_legend_is_as_wide_as_the_figure_at_most(fakes, length, columns):
    labels = [f"{n:x<{length}}" for n in range(9)]
    figure, _ = _axes(Leaderboard.of([fakes.make_record(label) for label in labels]), _CURVES)
    (legend,) = figure.legends
    figure.canvas.draw()
    assert legend._ncols == columns
    assert 0 <= legend.get_window_extent().x0 < legend.get_window_extent().x1 <= figure.bbox.x1
