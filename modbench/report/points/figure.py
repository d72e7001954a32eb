"""Figure of anyone's isoFLOP points: loss against size, a panel per group, a colour per budget."""

from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.analysis.frames import rows_of
from modbench.analysis.point_fits import PointFits
from modbench.report.isoflop.curve_figures import draw_curve, draw_optimum
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
    """Means and ranges of seeds by size, the parabola of each curve where it is interior, and the
    optimum by each fit. Curves without an interior optimum by the first fit have hollow markers."""
    groups = [*dict.fromkeys(fits.optima["scheme"])]
    rows, columns = -(-len(groups) // _ACROSS), min(_ACROSS, len(groups))
    figure = sheet(WIDTH * (0.45 + 0.65 * columns), HEIGHT * (0.15 + 0.85 * rows))
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    budgets = sorted(fits.points["budget"].unique())
    colors: Colormap = sns.color_palette("crest", as_cmap=True)
    scale = LogNorm(budgets[0], budgets[-1])
    points = rows_of(fits.points.sort_values("active_parameters"))
    optima = rows_of(fits.optima)
    for axes, group in zip(panels, groups, strict=False):
        for budget in budgets:
            curve = [point for point in points if (point.scheme, point.budget) == (group, budget)]
            of_fit = [row for row in optima if (row.scheme, row.budget) == (group, budget)]
            if not curve:
                continue
            color = colors(scale(budget))
            draw_curve(axes, curve, of_fit[0], color, marker="o", markersize=4)
            for row in of_fit:
                if row.loss is not None:
                    ends = (row.loss_low, row.loss_high)
                    draw_optimum(axes, row, ends, **_style(row.fit, color), capsize=2, elinewidth=1)
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
        ticks = budgets[:: -(-len(budgets) // 10)]  # ten at most
        bar.set_ticks(ticks, labels=[f"{budget:.3g}" for budget in ticks])
        bar.minorticks_off()
        bar.outline.set_visible(False)
    else:
        figure.suptitle(f"{budgets[0]:.3g} training FLOPs", fontsize=11)
    for axes in panels[::columns]:
        axes.set_ylabel("loss")
    repeated = bool((fits.points["seeds"] > 1).any())
    handles: dict[str, Any] = {"mean and range of seeds" if repeated else "point": handle(GREY)}
    if "parabola" in fits.fits:
        handles["parabola"] = Line2D([], [], color=REFERENCE, linewidth=1.2)
    for fit in fits.fits:
        handles[f"optimum, {fit}"] = Line2D([], [], linestyle="none", **_style(fit, REFERENCE))
    if any(row.loss is None for row in optima if row.fit == fits.fits[0]):
        handles["no interior optimum"] = handle(GREY, filled=False)
    legend_below(figure, handles)
    return figure


def _style(fit: str, color: Any) -> dict[str, Any]:
    """The marker of an optimum: a star on top of hollow ones, so that fits that agree stay visible."""
    if fit == "parabola":
        marker: dict[str, Any] = {"markersize": 12, "markeredgecolor": "white", "zorder": 5}
    else:
        marker = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.2, "zorder": 4}
    return {"marker": _MARKERS[fit], "color": color, **marker}
