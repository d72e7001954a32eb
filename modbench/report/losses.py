"""Figures of the leaderboard: loss against training FLOPs and against forward FLOPs per token, both in
convention ``model``, in panels by budget and size. Rows beyond the first
`MOST_NAMED` are drawn in grey, without a name."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modbench.report.cells import center
from modbench.report.plot_style import (
    DOTTED,
    WIDTH,
    Draws,
    Mark,
    draw_point,
    handle,
    legend_below,
    panels,
    written_out,
)
from modbench.report.suite import Row, Suite

#: Largest number of rows of a panel, or schemes of a legend, that are named, in the table's order.
MOST_NAMED = 20
_UNNAMED: dict[str, Any] = {"color": "0.7", "linewidth": 0.6, "zorder": 1.5}
_FLOPS = "forward_flops_per_token_realised"
_LOSS = "validation loss (nats/token)"
_Panels = list[tuple[Axes, Sequence[Row]]]


def loss_figures(suite: Suite, look_of: Mapping[str, Mark]) -> Draws:
    """The figures of ``suite``. ``look_of``: the marks of all schemes."""
    draws = {"loss_vs_training_flops": learning_curves, "loss_vs_forward_flops": final_losses}
    return {name: partial(draw, suite, look_of) for name, draw in draws.items()}


def curve_points(suite: Suite, row: Row) -> list[tuple[float, float, float, float]]:
    """(training FLOPs, mean, smallest and largest held-out loss) of the curve of ``row``, up to the
    FLOPs that all its seeds spent: those that finished, or all if none did.

    Seeds are joined by FLOPs, not by step: a scheme whose number of routed tokens varies spends the same
    FLOPs in another number of steps. A point lies at the mean FLOPs of the seeds; the loss of each is
    interpolated there, in the logarithm of FLOPs.
    """
    curves = [
        [(point.flops, point.heldout_loss) for point in record.curve if point.flops > 0]
        for record in suite.finished(row) or suite.of_row[row["row"]]
        if record.curve
    ]
    points = []
    for at_point in zip(*curves, strict=False):
        flops = statistics.fmean(spent for spent, _ in at_point)
        losses = [_interpolated(curve, flops) for curve in curves]
        points.append((flops, statistics.fmean(losses), min(losses), max(losses)))
    return points


def _interpolated(curve: Sequence[tuple[float, float]], flops: float) -> float:
    spent, losses = zip(*curve, strict=True)
    return float(np.interp(math.log(flops), np.log(spent), losses))


def _panels(suite: Suite, of: Callable[[Row], object]) -> tuple[Figure | None, _Panels]:
    """Panels with the rows that ``of`` finds data for, one per comparison."""
    shown = zip(suite.titles, suite.comparisons, strict=True)
    found = [(title, some) for title, rows in shown if (some := [row for row in rows if of(row)])]
    if not found:
        return None, []
    titles, comparisons = zip(*found, strict=True)
    figure, every = panels(len(comparisons), *([0.6 * WIDTH] if len(comparisons) == 1 else []))
    if len(comparisons) > 1:
        for axes, title in zip(every, titles, strict=True):
            axes.set_title(title)
    return figure, [*zip(every, comparisons, strict=True)]


def _finished(figure: Figure, every: Iterable[Axes], x: str, y: str, handles: dict[str, Any]) -> Figure:
    for axes in every:
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    legend_below(figure, handles)
    return figure


def _not_ranked(row: Row) -> str:
    return " (not ranked)" * bool(row["unranked"])


def learning_curves(suite: Suite, look_of: Mapping[str, Mark]) -> Figure | None:
    """Loss during training by FLOPs spent: mean of the seeds, with a band from least to greatest."""
    figure, shown = _panels(suite, partial(curve_points, suite))
    if figure is None:
        return None
    handles: dict[str, Any] = {}
    unigram: dict[str, Any] = {}
    for axes, rows in shown:
        for row in rows[MOST_NAMED:]:
            axes.plot(*[*zip(*curve_points(suite, row), strict=True)][:2], **_UNNAMED)
        for row in rows[:MOST_NAMED]:
            flops, mean, least, greatest = zip(*curve_points(suite, row), strict=True)
            mark = look_of[row["label"]]
            style: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "markersize": 4.5}
            (line,) = axes.plot(flops, mean, linewidth=1.6, linestyle=mark.dashes, **style)
            handles.setdefault(row["label"] + _not_ranked(row), line)
            if least != greatest:
                axes.fill_between(flops, least, greatest, color=mark.color, alpha=0.18, linewidth=0)
        for loss in sorted({loss for row in rows if (loss := center(row, "unigram_loss")) is not None}):
            unigram[f"unigram {loss:.2f}"] = axes.axhline(loss, **DOTTED)
    every = [axes for axes, _ in shown]
    return _finished(figure, every, "training FLOPs spent", _LOSS, handles | unigram)


def final_losses(suite: Suite, look_of: Mapping[str, Mark]) -> Figure | None:
    """Final loss by realised forward FLOPs per token, with the 95 % t-interval over seeds."""
    figure, shown = _panels(suite, lambda row: row["heldout_loss"] is not None and row[_FLOPS])
    if figure is None:
        return None
    handles: dict[str, Any] = {}
    every = dict.fromkeys(row["label"] for _, rows in shown for row in rows)
    named = {*[*every][:MOST_NAMED]}
    for axes, rows in shown:
        for row in rows:
            x, y = row[_FLOPS], row["heldout_loss"]
            if row["label"] not in named:
                axes.plot(x, y, ".", **_UNNAMED)
                continue
            mark, high = look_of[row["label"]], row["heldout_loss_high"]
            if high is not None and (half := high - y):
                axes.errorbar(x, y, yerr=half, fmt="none", ecolor=mark.color, zorder=2.5)
            draw_point(axes, x, y, mark, filled=True, markersize=8, zorder=3)
            handles.setdefault(row["label"] + _not_ranked(row), handle(mark, markersize=8))
        axes.margins(0.1)
    flops = "realised forward FLOPs per token"
    return _finished(figure, [axes for axes, _ in shown], flops, f"final {_LOSS}", handles)
