"""Figures of isoFLOP curves: loss against size, with the optima."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.analysis.isoflop import HEADLINE
from modbench.analysis.noise import Array
from modbench.errors import several
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.isoflop.tables import loss_ends
from modbench.report.plot_style import (
    GREY,
    HEIGHT,
    REFERENCE,
    WIDTH,
    Mark,
    draw_point,
    handle,
    legend_below,
    sheet,
    written_out,
)

Handles = dict[str, Any]
Marks = Mapping[str, Mark]
Point = tuple[Axes, float, float, Mark]  #: panel, place on its x axis, loss
#: An optimum: hollow and behind the points, so that it hides none.
STAR: dict[str, Any] = {"marker": "*", "markersize": 13, "markerfacecolor": "none", "zorder": 1.8}
LOSS = "held-out loss, causal rule (nats/token)"


def panels_of(number: int, height: float = HEIGHT, **shared: Any) -> tuple[Figure, list[Axes]]:
    """``number`` panels side by side; ``shared``: sharex or sharey."""
    figure = sheet(WIDTH * (0.35 + 0.65 * number), height)
    return figure, list(figure.subplots(1, number, squeeze=False, **shared).flat)


def curves(suite: IsoFlopSuite, look_of: Marks) -> Figure:
    """Loss against active parameters, a panel per budget: means of seeds, the parabola of each curve
    with an interior optimum, and the optimum with its intervals. Other curves have hollow markers. In a
    suite of several depths, a row per budget, a panel per depth, and a last panel with the envelope, the
    lowest parabola over the depths of each scheme."""
    optima = {
        (row.scheme, row.budget, row.depth): row
        for row in suite.rows.optima
        if row.fit == HEADLINE and row.verdict
    }
    points: dict[Any, list[Any]] = defaultdict(list)
    measured = (point for point in suite.rows.points if point.seeds)
    for point in sorted(measured, key=lambda point: point.active_parameters):
        points[point.scheme, point.budget, point.depth].append(point)
    depths: list[int | None] = sorted({depth for *_, depth in points if depth}) or [None]
    if suite.depths:
        columns = len(depths) + 1
        figure = sheet(WIDTH * (0.35 + 0.5 * columns), HEIGHT * len(suite.budgets))
        grid = figure.subplots(len(suite.budgets), columns, squeeze=False, sharex=True, sharey="row")
    else:
        figure, panels = panels_of(len(suite.budgets))
        grid = np.array(panels)[:, None]
    cut = False  # a point above the panel
    for row, budget in zip(grid, suite.budgets, strict=True):
        good, every = list[float](), list[Point]()
        for axes, depth in zip(row, depths, strict=False):
            drawn = {scheme: points.get((scheme, budget, depth)) for scheme in suite.schemes}
            for scheme, curve in drawn.items():
                if not curve:
                    continue
                optimum, mark = optima[scheme, budget, depth], look_of[scheme]
                draw_curve(axes, curve, optimum, mark.color, marker=mark.marker, markersize=5.5)
                if optimum.loss is not None:
                    ends = (optimum.loss_low, optimum.loss_high)
                    draw_optimum(axes, optimum, ends, color=mark.color, capsize=3, **STAR)
                    good += [point.loss for point in curve]
                every += [(axes, point.active_parameters, point.loss, mark) for point in curve]
            if not any(drawn.values()):
                axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center")
            named = f"{several(depth, 'layer')}, {budget:.3g}" if depth else f"{budget:.3g} training"
            axes.set_title(f"{named} FLOPs")
        if suite.depths:
            _draw_envelopes(row[-1], suite, budget, (points, optima), look_of)
        cut = cut_above(good, every) or cut
    inside = any(optimum.loss is not None for optimum in optima.values())
    for axes in grid[:, 0] if suite.depths else grid[0]:
        axes.set_ylabel(f"{LOSS}\nmean and range of seeds" + "; lines: parabolas" * inside)
    for axes in grid.flat:
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel("active parameters")
    handles: Handles = {scheme: handle(look_of[scheme]) for scheme in sorted({of for of, *_ in points})}
    if inside:
        handles["optimum, 95 %"] = Line2D([], [], color="0.2", linestyle="none", **STAR)
    outside = any(optimum.loss is None for optimum in optima.values())
    add_legend(figure, handles, outside, cut)
    return figure


def _draw_envelopes(
    axes: Axes,
    suite: IsoFlopSuite,
    budget: int,
    curves: tuple[Mapping[Any, Sequence[Any]], Mapping[Any, Any]],
    look_of: Marks,
) -> None:
    """Draw the least of each scheme's parabolas at the depths with an interior optimum, and the best
    optimum. ``curves``: points and optima."""
    points, optima = curves
    for number, scheme in enumerate(suite.schemes):
        keys = [(scheme, budget, depth) for depth in suite.depths]
        known = [key for key in keys if key in optima and optima[key].loss is not None]
        if not known:
            continue
        sizes = [np.log([point.active_parameters for point in points[key]]) for key in known]
        fine = np.linspace(min(map(np.min, sizes)), max(map(np.max, sizes)), 401)
        losses = np.array(
            [
                np.where((of.min() <= fine) & (fine <= of.max()), parabola(optima[key])(fine), np.inf)
                for key, of in zip(known, sizes, strict=True)
            ]
        )
        color = look_of[scheme].color
        for line, row in enumerate(losses):  # a line for each depth, so that none joins two of them
            lowest = np.isfinite(row) & (losses.argmin(axis=0) == line)
            axes.plot(np.exp(fine), np.where(lowest, row, np.nan), color=color, linewidth=1.3)
        best = next(optima[key] for key in known if optima[key].best)
        draw_optimum(axes, best, loss_ends(best), color=color, capsize=3, **STAR)
        style: dict[str, Any] = {"fontsize": 9, "color": color, "ha": "center", "va": "bottom"}
        text = f"{scheme}: {several(best.depth, 'layer')}"
        axes.text(0.5, 1.02 + 0.06 * number, text, transform=axes.transAxes, **style)
    above = 6 + 13 * len(suite.schemes)  # points: room for the best depths, which stand above the panel
    axes.set_title(f"lowest of all depths, {budget:.3g} FLOPs", pad=above)


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
    axes.errorbar(
        sizes,
        means,
        yerr=np.clip(np.array(ranges).T, 0, None),
        color=color,
        markerfacecolor=color if inside else "white",
        linestyle="none" if has_line else "-" if inside else (0, (2, 2)),
        linewidth=0.8,
        elinewidth=1,
        **style,
    )
    if has_line:
        fine = np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 101)
        axes.plot(np.exp(fine), parabola(optimum)(fine), color=color, linewidth=1.3)


def draw_optimum(
    axes: Axes,
    optimum: Any,
    ends: tuple[float | None, float | None],
    x: float | None = None,
    **style: Any,
) -> None:
    """Draw an optimum with the interval ``ends`` of its loss; at ``x``, or at its size with that
    interval."""
    errors: dict[str, Any] = {}
    loss, size = optimum.loss, optimum.active_parameters
    low, high = optimum.active_parameters_low, optimum.active_parameters_high
    # The interval of an interpolation may lie on one side of the optimum.
    if ends[0] is not None and ends[1] is not None:
        errors["yerr"] = [[max(0, loss - ends[0])], [max(0, ends[1] - loss)]]
    if low is not None and x is None:
        errors["xerr"] = [[max(0, size - low)], [max(0, high - size)]]
    axes.errorbar([x or size], [loss], **errors, linestyle="none", **style)


def add_legend(figure: Figure, handles: Handles, outside: bool, cut: bool) -> None:
    """Add a legend of ``handles``, of curves ``outside`` their grids, and of points ``cut`` off."""
    if outside:
        handles["no interior optimum"] = handle(GREY, filled=False)
    if cut:
        handles["above the axis"] = handle(Mark(REFERENCE, "^", "-"))
    legend_below(figure, handles)


def cut_above(good: list[float], points: list[Point]) -> bool:
    """Limit the loss axis of ``points`` to the ``good`` losses and half their range above, so that one
    bad scheme doesn't flatten the others. An arrow at the top marks each point above."""
    if not good or max(loss for _, _, loss, *_ in points) <= (top := 1.5 * max(good) - 0.5 * min(good)):
        return False
    for axes, x, loss, mark in points:
        if loss > top:
            draw_point(axes, x, top, Mark(mark.color, "^", "-"), filled=True, clip_on=False)
    for axes in dict.fromkeys(axes for axes, *_ in points):
        axes.set_ylim(top=top)
    return True
