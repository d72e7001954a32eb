"""Figures of the curves of an isoFLOP sweep: loss against size, with the optima."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.analysis.curve import parabola_through
from modbench.analysis.isoflop import IsoFlop, Optimum
from modbench.analysis.noise import Array
from modbench.errors import several
from modbench.report.isoflop.sweep import HEADLINE, Sweep
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
_STAR: dict[str, Any] = {"marker": "*", "markersize": 13, "markerfacecolor": "none"}
LOSS = "held-out loss, causal rule (nats/token)"
_SIZE = "active parameters"


@dataclass
class _Drawn:
    """Kinds of curves in a figure: with an optimum inside of their grid, and without."""

    inside: bool = False
    outside: bool = False


_Points = dict[tuple[str, int, int | None], dict[float, list[float]]]


def of_sweep(sweep: Sweep, look_of: Marks) -> dict[str, Mark]:
    return {scheme: look_of[scheme] for scheme in sweep.schemes}


def panels_of(number: int, height: float = HEIGHT, **shared: Any) -> tuple[Figure, list[Axes]]:
    """``number`` panels side by side; ``shared``: sharex or sharey."""
    figure = sheet(WIDTH * (0.35 + 0.65 * number), height)
    return figure, list(figure.subplots(1, number, squeeze=False, **shared).flat)


def curves(sweep: Sweep, look_of: Marks) -> Figure:
    """Loss against active parameters, a panel per budget: means of seeds, the parabola of each curve
    with an interior optimum, and the optimum with its intervals. Other curves have hollow markers."""
    look_of = of_sweep(sweep, look_of)
    points = _points(sweep)
    figure, panels = panels_of(len(sweep.budgets))
    drawn = _Drawn()
    handles: Handles = {scheme: handle(look_of[scheme]) for scheme in sorted({s for s, *_ in points})}
    cut = False  # a point above the panel
    for axes, budget in zip(panels, sweep.budgets, strict=True):
        good, every = _draw_panel(axes, points, sweep.analysis, look_of, (budget, None), drawn)
        cut = cut_above(good, every) or cut
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel(_SIZE)
        axes.set_title(f"{budget:.3g} training FLOPs")
    panels[0].set_ylabel(f"{LOSS}\nmean and range of seeds" + "; lines: parabolas" * drawn.inside)
    _add_optimum(handles, drawn)
    add_legend(figure, handles, drawn.outside, cut)
    return figure


def depth_curves(sweep: Sweep, look_of: Marks) -> Figure:
    """Loss against active parameters: a row per budget, a panel per depth as `curves` has it, and a last
    panel with the envelope, the lowest parabola over the depths of each scheme."""
    look_of = of_sweep(sweep, look_of)
    points = _points(sweep)
    depths = [depth for depth in sweep.depths if any(at == depth for *_, at in points)]
    rows, columns = len(sweep.budgets), len(depths) + 1
    figure = sheet(WIDTH * (0.35 + 0.5 * columns), HEIGHT * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")
    drawn = _Drawn()
    handles: Handles = {scheme: handle(look_of[scheme]) for scheme in sorted({s for s, *_ in points})}
    cut = False
    for row, budget in enumerate(sweep.budgets):
        good, every = list[float](), list[Point]()
        for column, depth in enumerate(depths):
            axes, number = panels[row, column], row * columns + column
            at = budget, depth
            of_depth = _draw_panel(axes, points, sweep.analysis, look_of, at, drawn)
            good += of_depth[0]
            every += of_depth[1]
            if not of_depth[1]:
                axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center")
            axes.set_title(f"{several(depth, 'layer')}, {budget:.3g} FLOPs")
        axes = panels[row, -1]
        for number, (scheme, mark) in enumerate(look_of.items()):
            _draw_envelope(axes, sweep, points, (scheme, budget), mark)
            best = sweep.optimum(scheme, budget, HEADLINE)
            if best and best.loss is not None:
                text = f"{scheme}: {several(best.depth or 0, 'layer')}"
                style: dict[str, Any] = {
                    "fontsize": 9,
                    "color": mark.color,
                    "ha": "center",
                    "va": "bottom",
                }
                axes.text(0.5, 1.02 + 0.06 * number, text, transform=axes.transAxes, **style)
        above = 6 + 13 * len(look_of)  # points: room for the best depths, which stand above the panel
        axes.set_title(f"lowest of all depths, {budget:.3g} FLOPs", pad=above)
        cut = cut_above(good, every) or cut
        panels[row, 0].set_ylabel(f"{LOSS}\nmean and range of seeds; lines: parabolas")
    panels[0, 0].set_xscale("log")
    for axes in panels.flat:
        written_out(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel(_SIZE)
    _add_optimum(handles, drawn)
    add_legend(figure, handles, drawn.outside, cut)
    return figure


def _draw_envelope(
    axes: Axes, sweep: Sweep, points: _Points, curve: tuple[str, int], mark: Mark
) -> None:
    """The least of the parabolas of ``curve``, a scheme and a budget, at the depths with an interior
    optimum; and the best optimum."""
    scheme, budget = curve
    fits = []
    for depth in sweep.depths:
        optimum = sweep.optimum(scheme, budget, HEADLINE, depth)
        if optimum and optimum.loss is not None:
            of_depth = points[scheme, budget, depth]
            fits.append((np.log([min(of_depth), max(of_depth)]), _parabola(of_depth)))
    if not fits:
        return
    ends = np.array([of_fit for of_fit, _ in fits])
    fine = np.linspace(ends.min(), ends.max(), 401)
    losses = np.array(
        [np.where((low <= fine) & (fine <= high), fit(fine), np.inf) for (low, high), fit in fits]
    )
    for number, row in enumerate(losses):  # a line for each depth, so that none joins two of them
        lowest = np.isfinite(row) & (losses.argmin(axis=0) == number)
        axes.plot(np.exp(fine), np.where(lowest, row, np.nan), color=mark.color, linewidth=1.3)
    best = sweep.analysis.optimum(scheme, budget, HEADLINE)
    draw_optimum(axes, best.size or 1.0, best, mark)


def _points(sweep: Sweep) -> _Points:
    """The losses of each curve (scheme, budget, depth) by size."""
    points: _Points = defaultdict(lambda: defaultdict(list))
    for run in sweep.runs:
        points[run.scheme, int(run.budget), run.depth][run.size].append(run.loss)
    return points


def _draw_panel(
    axes: Axes,
    points: _Points,
    analysis: IsoFlop,
    look_of: Marks,
    at: tuple[int, int | None],
    drawn: _Drawn,
) -> tuple[list[float], list[Point]]:
    """Draw the curves of all schemes ``at`` a budget and a depth. Return the
    losses of curves with an optimum, and the points of all; ``drawn`` is updated."""
    good, every = list[float](), list[Point]()
    budget, depth = at
    for scheme, mark in look_of.items():
        curve = points.get((scheme, budget, depth))
        if not curve:
            continue
        optimum = analysis.optimum(scheme, budget, HEADLINE, depth)
        drawn.inside = drawn.inside or optimum.loss is not None
        drawn.outside = drawn.outside or optimum.loss is None
        _draw_curve(axes, curve, optimum, mark)
        means = {x: float(np.mean(losses)) for x, losses in curve.items()}
        every += [(axes, x, mean, mark) for x, mean in means.items()]
        good += means.values() if optimum.loss is not None else ()
    return good, every


def _add_optimum(handles: Handles, drawn: _Drawn) -> None:
    if drawn.inside:
        handles["optimum, 95 %"] = Line2D([], [], color="0.2", linestyle="none", **_STAR)


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


def _draw_curve(axes: Axes, curve: dict[float, list[float]], optimum: Optimum, mark: Mark) -> None:
    sizes = np.array(sorted(curve))
    means = np.array([np.mean(curve[size]) for size in sizes])
    low = np.array([min(curve[size]) for size in sizes])
    high = np.array([max(curve[size]) for size in sizes])
    inside = optimum.size is not None
    axes.errorbar(
        sizes,
        means,
        yerr=[means - low, high - means],
        color=mark.color,
        marker=mark.marker,
        markerfacecolor=mark.color if inside else "white",
        linestyle="none",
        markersize=5.5,
        elinewidth=1,
    )
    if optimum.size is None:
        axes.plot(sizes, means, color=mark.color, linewidth=0.8, linestyle=(0, (2, 2)))
        return
    fine = np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 101)
    axes.plot(np.exp(fine), _parabola(curve)(fine), color=mark.color, linewidth=1.3)
    draw_optimum(axes, optimum.size, optimum, mark)


def _parabola(curve: Mapping[float, Sequence[float]]) -> Callable[[Array], Array]:
    """The parabola of ``curve``, losses by size, as a function of the logarithms of sizes."""
    sizes = np.array(sorted(curve))
    means = np.array([np.mean(curve[size]) for size in sizes])
    middle, square, slope, constant = parabola_through(np.log(sizes), np.atleast_2d(means))

    def loss(log_sizes: Array) -> Array:
        away = log_sizes - middle
        return np.asarray(square * away**2 + slope * away + constant)

    return loss


def draw_optimum(axes: Axes, x: float, optimum: Optimum, mark: Mark, *, star: bool = True) -> None:
    """The optimum at ``x`` as a star, or as ``mark``, with the interval of its loss; that of its size if
    ``x`` is it."""
    loss = optimum.loss or 0.0
    errors: dict[str, Any] = {}
    if optimum.loss_interval:
        errors["yerr"] = [[loss - optimum.loss_interval[0]], [optimum.loss_interval[1] - loss]]
    if optimum.size_interval and x == optimum.size:
        errors["xerr"] = [[x - optimum.size_interval[0]], [optimum.size_interval[1] - x]]
    style: dict[str, Any] = dict(_STAR) if star else {"marker": mark.marker, "markersize": 6}
    style |= {"color": mark.color, "capsize": 3, "linestyle": "none", "zorder": 1.8 if star else 4}
    axes.errorbar([x], [loss], **errors, **style)
