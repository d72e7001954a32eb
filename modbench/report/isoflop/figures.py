"""Figures of an isoFLOP suite: loss against size with the optima, and the learning rates tried."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from modbench.analysis.isoflop import HEADLINE
from modbench.analysis.noise import Array
from modbench.errors import several
from modbench.records.names import at_depth
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.plot_style import (
    GREY,
    Draws,
    Mark,
    draw_point,
    handle,
    legend_below,
    panels,
    paper,
    written_out,
)

Marks = Mapping[str, Mark]
Point = tuple[Axes, float, float, Mark]  #: panel, place on its x axis, loss
#: An optimum: hollow and behind the points, so that it hides none.
STAR: dict[str, Any] = {"marker": "*", "markersize": 13, "markerfacecolor": "none", "zorder": 1.8}
LOSS = "validation loss (nats/token)"


def isoflop_figures(suite: IsoFlopSuite, look_of: Marks) -> Draws:
    """The figures of ``suite``. ``look_of``: the marks of all schemes."""
    return {
        "isoflop_curves": partial(curves, suite, look_of),
        "learning_rates": partial(learning_rates, suite, look_of),
    }


def curves(suite: IsoFlopSuite, look_of: Marks) -> Figure:
    """Loss against active parameters, a panel per budget, and per depth in a suite of several: means of
    seeds, the parabola of each curve with an interior optimum, and the optimum with its intervals. Other
    curves have hollow markers."""
    optima = {
        (row.scheme, row.budget, row.depth): row
        for row in suite.rows.optima
        if row.fit == HEADLINE and row.minimum
    }
    points: dict[tuple[int, int | None], dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for point in sorted(suite.rows.points, key=lambda point: point.active_parameters or 0):
        if point.seeds:
            points[point.budget, point.depth][point.scheme].append(point)
    places = sorted(points, key=lambda place: (place[0], place[1] or 0))
    figure, every = panels(len(places), sharex=True)
    points_of: dict[int, list[Point]] = defaultdict(list)
    good: dict[int, list[float]] = defaultdict(list)
    for axes, (budget, depth) in zip(every, places, strict=True):
        for scheme, curve in sorted(points[budget, depth].items()):
            optimum, mark = optima[scheme, budget, depth], look_of[scheme]
            draw_curve(axes, curve, optimum, mark.color, marker=mark.marker, markersize=5.5)
            if optimum.loss is not None:
                ends = (optimum.loss_low, optimum.loss_high)
                draw_optimum(axes, optimum, ends, color=mark.color, **STAR)
                good[budget] += [point.loss for point in curve]
            points_of[budget] += [(axes, of.active_parameters, of.loss, mark) for of in curve]
        of_depth = f"{several(depth, 'layer')}, " if depth else ""
        axes.set_title(f"{of_depth}{budget:.3g} training FLOPs")
        axes.set_xscale("log")
    cut = [_cut_above(good[budget], points_of[budget]) for budget in points_of]
    for axes in every:
        written_out(axes.xaxis, *axes.get_xlim())
    figure.supxlabel("active parameters", fontsize="medium")
    figure.supylabel(LOSS, fontsize="medium")
    schemes = sorted({scheme for of in points.values() for scheme in of})
    handles = {scheme: handle(look_of[scheme]) for scheme in schemes}
    if any(optimum.loss is not None for optimum in optima.values()):
        handles["optimum, 95 % interval"] = Line2D([], [], color=GREY.color, linestyle="none", **STAR)
    if any(optimum.loss is None for optimum in optima.values()):
        handles["no interior optimum"] = handle(GREY, filled=False)
    if any(cut):
        handles["above the axis"] = handle(Mark(GREY.color, "^"))
    legend_below(figure, handles)
    return figure


def parabola(optimum: Any) -> Callable[[Array], Array]:
    """The parabola of an optimum as a function of the logarithms of sizes."""
    return lambda log_sizes: np.asarray(
        optimum.loss + optimum.curvature * (log_sizes - np.log(optimum.active_parameters)) ** 2
    )


def draw_curve(axes: Axes, curve: Sequence[Any], optimum: Any, color: Any, **style: Any) -> None:
    """Draw the points ``curve`` with the range of their seeds and, by the fit of ``optimum``, the
    parabola. Points without an interior optimum are hollow, and joined by dashes."""
    sizes = np.array([point.active_parameters for point in curve])
    means = np.array([point.loss for point in curve])
    ranges = [[point.loss - point.loss_min, point.loss_max - point.loss] for point in curve]
    inside, has_line = optimum.loss is not None, optimum.curvature is not None
    style |= {"markerfacecolor": color if inside else paper(), "linewidth": 0.8, "elinewidth": 1}
    style["linestyle"] = "none" if has_line else "-" if inside else (0, (2, 2))
    errors = np.clip(np.array(ranges).T, 0, None)
    axes.errorbar(sizes, means, yerr=errors, color=color, capsize=0, **style)
    if has_line:
        fine = np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 101)
        axes.plot(np.exp(fine), parabola(optimum)(fine), color=color, linewidth=1.3)


def draw_optimum(axes: Axes, optimum: Any, ends: tuple[Any, Any], **style: Any) -> None:
    """Draw an optimum with the intervals of its size and, ``ends``, its loss."""
    loss, size = optimum.loss, optimum.active_parameters
    low, high = optimum.active_parameters_low, optimum.active_parameters_high
    # The interval of an interpolation may lie on one side of the optimum.
    errors: dict[str, Any] = {}
    if ends[0] is not None and ends[1] is not None:
        errors["yerr"] = [[max(0, loss - ends[0])], [max(0, ends[1] - loss)]]
    if low is not None:
        errors["xerr"] = [[max(0, size - low)], [max(0, high - size)]]
    axes.errorbar([size], [loss], **errors, linestyle="none", **style)


def _cut_above(good: list[float], points: list[Point]) -> bool:
    """Limit the loss axis of ``points`` to the ``good`` losses and half their range above, so that one
    bad scheme doesn't flatten the others. An arrow at the top marks each point above."""
    if not good or max(loss for _, _, loss, _ in points) <= (top := 1.5 * max(good) - 0.5 * min(good)):
        return False
    for axes, x, loss, mark in points:
        if loss > top:
            draw_point(axes, x, top, Mark(mark.color, "^"), filled=True, clip_on=False)
    for axes in dict.fromkeys(axes for axes, *_ in points):
        axes.set_ylim(top=top)
    return True


def learning_rates(suite: IsoFlopSuite, look_of: Marks) -> Figure:
    """Loss against learning rate at the middle size and budget of each scheme, a panel per depth; the
    chosen rate is filled, as soon as it is chosen."""
    depths: list[int | None] = [*suite.depths] or [None]
    figure, every = panels(len(depths), sharey=True)
    handles: dict[str, Line2D] = {}
    rates: dict[Any, list[Any]] = defaultdict(list)
    for row in suite.rows.rates:
        rates[row.depth, row.scheme].append(row)
    for axes, depth in zip(every, depths, strict=True):
        for scheme in suite.schemes:
            tried = [row for row in rates[depth, scheme] if row.loss is not None]
            if not tried:
                continue
            line, mark = [(row.learning_rate, row.loss) for row in tried], look_of[scheme]
            axes.plot(*zip(*line, strict=True), color=mark.color, linewidth=1.3)
            word = "" if tried[0].minimum == "interior" else f" ({tried[0].minimum})"
            for row in tried:
                is_chosen = row.chosen and row.minimum != "open"
                draw_point(axes, row.learning_rate, row.loss, mark, filled=is_chosen)
            handles[f"{at_depth(scheme, depth if word else None)}{word}"] = handle(mark)
        axes.set_xscale("log")
        of_depth = (row.learning_rate for (of, _), rows in rates.items() if of == depth for row in rows)
        ticks = sorted({rate for rate in of_depth if rate is not None})
        axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        if depth is not None:
            axes.set_title(several(depth, "layer"))
    figure.supxlabel("peak learning rate", fontsize="medium")
    figure.supylabel(LOSS, fontsize="medium")
    legend_below(figure, handles)
    return figure
