"""Figure of anyone's isoFLOP points: loss against size, a panel per group, a colour per budget."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.analysis.isoflop import Optimum
from modbench.analysis.point_fits import PointFits
from modbench.report.plot_style import (
    GREY,
    HEIGHT,
    REFERENCE,
    WIDTH,
    folded,
    handle,
    legend_below,
    sheet,
    written_out,
)

#: Panels in a row.
_ACROSS = 3
_MARKERS = {"parabola": "*", "akima": "^", "surface": "D"}


def points_figure(fits: PointFits) -> Figure:
    """Means of seeds by size, the parabola of each curve where it is interior, and the optimum by each
    fit. Curves without an interior optimum by the first fit have hollow markers."""
    groups = [*fits.points]
    rows, columns = -(-len(groups) // _ACROSS), min(_ACROSS, len(groups))
    figure = sheet(WIDTH * (0.45 + 0.65 * columns), HEIGHT * (0.15 + 0.85 * rows))
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    budgets = sorted({run.budget for run in fits.runs})
    colors: Colormap = sns.color_palette("crest", as_cmap=True)
    scale = LogNorm(budgets[0], budgets[-1])
    for axes, group in zip(panels, groups, strict=False):
        for budget in fits.budgets(group):
            optima = [fits.analysis.optimum(group, budget, fit) for fit in fits.fits]
            _draw_curve(axes, fits.curve(group, budget), optima, colors(scale(budget)))
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel("size")
        if len(groups) > 1:
            axes.set_title(folded(group))
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    if len(budgets) > 1:
        bar = figure.colorbar(ScalarMappable(scale, colors), ax=panels, aspect=20 * rows, pad=0.02)
        bar.set_label("training FLOPs")
        bar.set_ticks(_ticks(budgets), labels=[f"{budget:.3g}" for budget in _ticks(budgets)])
        bar.minorticks_off()
        bar.outline.set_visible(False)
    else:
        figure.suptitle(f"{budgets[0]:.3g} training FLOPs", fontsize=11)
    for axes in panels[::columns]:
        axes.set_ylabel("loss")
    legend_below(figure, _handles(fits))
    return figure


def _ticks(budgets: Sequence[float]) -> Sequence[float]:
    """``budgets``, thinned to ten at most."""
    return budgets[:: -(-len(budgets) // 10)]


def _draw_curve(
    axes: Axes, curve: dict[float, list[float]], optima: Sequence[Optimum], color: Any
) -> None:
    sizes = np.array([*curve])
    means = np.array([np.mean(losses) for losses in curve.values()])
    inside = optima[0].size is not None
    line = bool(inside and optima[0].fit == "parabola")
    axes.plot(
        sizes,
        means,
        color=color,
        marker="o",
        markersize=4,
        markerfacecolor=color if inside else "white",
        linewidth=0 if line else 0.8,
        linestyle="-" if inside else (0, (2, 2)),
    )
    if line:
        fine = np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 101)
        middle = np.log(sizes).mean()
        parabola = np.polyfit(np.log(sizes) - middle, means, 2)
        axes.plot(np.exp(fine), np.polyval(parabola, fine - middle), color=color, linewidth=1.2)
    for optimum in optima:
        if optimum.size is not None and optimum.loss is not None:
            _draw_optimum(axes, optimum, optimum.size, optimum.loss, color)


def _draw_optimum(axes: Axes, optimum: Optimum, size: float, loss: float, color: Any) -> None:
    errors: dict[str, Any] = {}
    if optimum.size_interval and optimum.loss_interval:
        (left, right), (low, high) = optimum.size_interval, optimum.loss_interval
        # The interval of an interpolation may lie on one side of the optimum.
        errors["xerr"] = [[max(0, size - left)], [max(0, right - size)]]
        errors["yerr"] = [[max(0, loss - low)], [max(0, high - loss)]]
    style = _style(optimum.fit, color)
    axes.errorbar([size], [loss], **errors, **style, capsize=2, elinewidth=1)


def _style(fit: str, color: Any) -> dict[str, Any]:
    """The marker of an optimum: a star on top of hollow ones, so that fits that agree stay visible."""
    if fit == "parabola":
        marker: dict[str, Any] = {"markersize": 12, "markeredgecolor": "white", "zorder": 5}
    else:
        marker = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.2, "zorder": 4}
    return {"marker": _MARKERS[fit], "color": color, "linestyle": "none", **marker}


def _handles(fits: PointFits) -> dict[str, Any]:
    repeated = fits.analysis.noise.pooled is not None
    handles: dict[str, Any] = {"mean of seeds" if repeated else "point": handle(GREY)}
    if "parabola" in fits.fits:
        handles["parabola"] = Line2D([], [], color=REFERENCE, linewidth=1.2)
    for fit in fits.fits:
        handles[f"optimum, {fit}"] = Line2D([], [], **_style(fit, REFERENCE))
    if any(optimum.size is None for optimum in fits.analysis.optima if optimum.fit == fits.fits[0]):
        handles["no interior optimum"] = handle(GREY, filled=False)
    return handles
