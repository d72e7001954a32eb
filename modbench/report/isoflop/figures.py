"""Figures of an isoFLOP suite besides its curves: loss at the optimum against budget, normalised loss
against normalised forward FLOPs, learning rates, speed-ups."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as MarkerPath
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from modbench.analysis.frames import DENSE
from modbench.analysis.isoflop import HEADLINE
from modbench.errors import several
from modbench.records.names import at_depth
from modbench.report.isoflop.curve_figures import (
    LOSS,
    Handles,
    Marks,
    Point,
    add_legend,
    curves,
    cut_above,
    draw_optimum,
    panels_of,
)
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.isoflop.tables import loss_ends
from modbench.report.plot_style import (
    DOTTED,
    GREY,
    HEIGHT,
    REFERENCE,
    Mark,
    draw_point,
    drawn_files,
    handle,
    legend_below,
    marks,
)

#: An open arrow that starts with a stroke at the value, as a marker; half of its size is its length.
_CORNERS = ((0, -0.25), (0, 0.25), (0, 0), (1, 0), (0.7, 0.2), (1, 0), (0.7, -0.2))
_CODES = (1, 2, 1, 2, 1, 2, 2)  # moves and lines: the stroke, the shaft, the head
_RIGHT = MarkerPath(_CORNERS, _CODES)
_LEFT = MarkerPath([(-x, y) for x, y in _CORNERS], _CODES)
_ARROWS = {"at least": _RIGHT, "at most": _LEFT}
_ARROW_SIZE = 32  #: points; an arrow is half as long


def isoflop_figures(suite: IsoFlopSuite, look_of: Marks | None = None) -> dict[str, bytes]:
    """All figures of ``suite`` that have data, by file name. ``look_of``: the marks of all schemes."""
    look_of = look_of or suite_marks(suite)
    draws: dict[str, Callable[[IsoFlopSuite, Marks], Figure | None]] = {
        "isoflop_depths" if suite.depths else "isoflop_curves": curves,
        "loss_at_optimum": losses_at_optimum,
        "normalised_loss": normalised,
        "learning_rates": learning_rates,
        "speed_up": speed_ups,
    }
    return drawn_files({name: partial(draw, suite, look_of) for name, draw in draws.items()})


def suite_marks(suite: IsoFlopSuite) -> dict[str, Mark]:
    """The marks of the schemes of ``suite``."""
    return marks({result.scheme: result.run.router.name for result in suite.results})


def losses_at_optimum(suite: IsoFlopSuite, look_of: Marks) -> Figure | None:
    """Loss at the optimum by budget, with the loss that the dense surface gives. The schemes of a budget
    stand side by side, over half of the space between two budgets."""
    best = [row for row in suite.rows.optima if row.best and row.fit == HEADLINE]
    if not best:
        return None
    figure, (axes,) = panels_of(1)
    half = min((b / a for a, b in pairwise(suite.budgets)), default=1.2) ** 0.25
    several_schemes = len(suite.schemes) > 1
    shifts = np.geomspace(1 / half, half, len(suite.schemes)) if several_schemes else [1.0]
    shift_of = dict(zip(suite.schemes, shifts, strict=True))
    handles: Handles = {}
    for row in sorted(best, key=lambda row: (row.scheme, row.budget)):
        mark = look_of[row.scheme]
        style = {"color": mark.color, "marker": mark.marker, "markersize": 6, "capsize": 3, "zorder": 4}
        draw_optimum(axes, row, loss_ends(row), shift_of[row.scheme] * row.budget, **style)
        handles[row.scheme] = handle(mark)
    for row in suite.rows.optima:
        if row.best and (row.scheme, row.fit) == (DENSE, "surface"):
            handles["dense, fit of all budgets"] = Line2D([], [], color=REFERENCE, **DOTTED)
            ends = row.budget / half / 1.05, row.budget * half * 1.05
            axes.plot(ends, [row.loss] * 2, color=REFERENCE, **DOTTED)
    axes.set_xscale("log")
    axes.set_xticks(suite.budgets, [f"{budget:.3g}" for budget in suite.budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training FLOPs (convention model)\nschemes of a budget stand side by side")
    axes.set_ylabel(f"{LOSS}\nat the optimal size, 95 % interval")
    legend_below(figure, handles)
    return figure


def normalised(suite: IsoFlopSuite, look_of: Marks) -> Figure | None:
    """Loss against forward FLOPs per token, both over those of the dense optimum of the same budget
    (Raposo et al. 2024, figure 4): the lower left quadrant is better and cheaper."""
    best = {budget: suite.best(budget) for budget in suite.budgets}
    dense = {row.budget: row for of in best.values() for row in of if row.scheme == DENSE and row.best}
    if not dense:
        return None
    figure, panels = panels_of(len(dense), sharey=True)
    good, every, outside = [1.0], list[Point](), False
    curve_of: dict[Any, list[Any]] = defaultdict(list)
    measured = (point for point in suite.rows.points if point.seeds)
    for point in sorted(measured, key=lambda point: point.forward_flops_per_token):
        curve_of[point.scheme, point.budget, point.depth].append(point)
    for axes, (budget, optimum) in zip(panels, dense.items(), strict=True):
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("nominal forward FLOPs per token\n/ dense optimum's")
        for row in best[budget]:
            if not (curve := curve_of.get((row.scheme, budget, row.depth))):
                continue
            mark = look_of[row.scheme]
            x = [point.forward_flops_per_token / optimum.forward_flops_per_token for point in curve]
            losses = [point.loss / optimum.loss for point in curve]
            face = mark.color if row.best else "white"
            style = {"color": mark.color, "marker": mark.marker, "markerfacecolor": face}
            axes.plot(x, losses, markersize=5, linewidth=1, **style)
            good += losses if row.best else []
            outside = outside or not row.best
            every += [(axes, at, mean, mark) for at, mean in zip(x, losses, strict=True)]
        axes.set_xscale("log")
        _plain_numbers(axes)
        low, high = axes.get_xlim()
        axes.fill_between([low, 1], 0, 1, color="0.93", zorder=0, linewidth=0)
        axes.set_xlim(low, high)
        axes.axvline(1, color=REFERENCE, **DOTTED)
        axes.axhline(1, color=REFERENCE, **DOTTED)
    panels[0].set_ylabel("held-out loss / dense optimum's")
    losses = [1.0, *(loss for _, _, loss, _ in every)]
    margin = 0.05 * (max(losses) - min(losses)) or 0.01
    panels[0].set_ylim(min(losses) - margin, max(losses) + margin)
    cut = cut_above(good, every)
    handles: Handles = {of: handle(look_of[of]) for of in sorted({of for of, *_ in curve_of})}
    handles["better and cheaper"] = Line2D([], [], color="0.85", linewidth=9)
    add_legend(figure, handles, outside, cut)
    return figure


def _plain_numbers(axes: Axes) -> None:
    """Write the ticks of a logarithmic x axis as 0.5, 1, 2."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def learning_rates(suite: IsoFlopSuite, look_of: Marks) -> Figure:
    """Loss against learning rate at the middle size and budget of each scheme; the chosen is filled, as
    soon as it is chosen. A panel per depth, if the suite has several."""
    depths: list[int | None] = [*suite.depths] or [None]
    figure, panels = panels_of(len(depths))
    handles: Handles = {}
    rates: dict[Any, list[Any]] = defaultdict(list)
    for row in suite.rows.rates:
        rates[row.depth, row.scheme].append(row)
    for axes, depth in zip(panels, depths, strict=True):
        for scheme in suite.schemes:
            mark, tried = look_of[scheme], [row for row in rates[depth, scheme] if row.loss is not None]
            if not tried:
                continue
            style: dict[str, Any] = {"color": mark.color, "marker": mark.marker}
            losses = [row.loss for row in tried]
            line: dict[str, Any] = {"linewidth": 1.3, "markerfacecolor": "white"}
            axes.plot([row.learning_rate for row in tried], losses, **style, **line)
            word = "" if tried[0].verdict == "interior" else f" ({tried[0].verdict})"
            for row in tried:
                if row.chosen and row.verdict != "open":
                    axes.plot([row.learning_rate], [row.loss], zorder=4, **style)
            handles[f"{at_depth(scheme, depth if word else None)}{word}"] = handle(mark)
        axes.set_xscale("log")
        axes.margins(x=0.08)  # room for the outermost labels
        _plain_numbers(axes)
        of_depth = (row.learning_rate for (of, _), rows in rates.items() if of == depth for row in rows)
        ticks = sorted({rate for rate in of_depth if rate is not None})
        axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axes.set_xlabel("peak learning rate")
        if depth is not None:
            axes.set_title(several(depth, "layer"))
    panels[0].set_ylabel(f"{LOSS}\nmiddle size and budget, one seed")
    legend_below(figure, handles)
    return figure


def speed_ups(suite: IsoFlopSuite, look_of: Marks) -> Figure | None:
    """Effective speed-up over the dense optimum at equal loss, with intervals, a panel per budget.
    Filled markers are in FLOPs, hollow ones in seconds. A bound is an open arrow at its factor."""
    known: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in suite.rows.optima:
        if row.fit == HEADLINE and row.speed_up is not None:
            known[row.budget][row.scheme] = row
    if not known:
        return None
    schemes = [scheme for scheme in suite.schemes if scheme != DENSE]
    height = max(0.6 * HEIGHT, 1.0 + 0.4 * len(schemes))
    figure, panels = panels_of(len(known), height, sharex=True, sharey=True)
    arrows: dict[str, MarkerPath] = {}
    for axes, (budget, rows) in zip(panels, known.items(), strict=True):
        for number, scheme in enumerate(schemes):
            if scheme not in rows:
                axes.text(1.0, number, "  no optimum", va="center", color=REFERENCE, fontsize=9)
                continue
            row = rows[scheme]
            shift = 0.18 if row.speed_up_seconds is not None else 0.0
            arrows |= _draw_factor(axes, number - shift, row, "", look_of[scheme])
            if shift:
                arrows |= _draw_factor(axes, number + shift, row, "_seconds", look_of[scheme])
        axes.axvline(1, color=REFERENCE, **DOTTED)
        axes.set_yticks(range(len(schemes)), schemes)
        axes.set_ylim(len(schemes) - 0.5, -0.5)
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("speed-up at equal loss")
        axes.margins(x=0.12)
    legend: Handles = {"in FLOPs": handle(GREY, markersize=7)}
    if any(row.speed_up_seconds is not None for rows in known.values() for row in rows.values()):
        legend["in seconds"] = handle(GREY, filled=False, markersize=7)
    for name, arrow in sorted(arrows.items()):
        style: dict[str, Any] = {"marker": arrow, "markersize": _ARROW_SIZE, "linestyle": "none"}
        legend[name] = Line2D([], [], color=REFERENCE, markerfacecolor="none", **style)
    legend_below(figure, legend)
    return figure


def _draw_factor(axes: Axes, y: float, row: Any, unit: str, mark: Mark) -> dict[str, MarkerPath]:
    """Draw a factor with its interval; return the arrows drawn, by their meaning. A bound has an open
    arrow at its value in place of a marker, and so has an end of the interval that is not known."""
    factor, *interval = (getattr(row, f"speed_up{unit}{end}") for end in ("", "_low", "_high"))
    bound, filled = row.speed_up_bound, not unit
    arrows = [(bound, _ARROWS[bound])] if bound else []
    for end in interval:
        if end is None:
            continue
        if 0 < end < np.inf:
            axes.plot([factor, end], [y, y], color=mark.color, linewidth=2)
        elif (arrow := _RIGHT if end else _LEFT) is not _ARROWS.get(bound):
            arrows.append(("interval open on this side", arrow))
    for _, arrow in arrows:
        style: dict[str, Any] = {"marker": arrow, "markersize": _ARROW_SIZE, "markerfacecolor": "none"}
        style |= {"markeredgewidth": 1.6 if filled else 1.0, "zorder": 2.5}
        axes.plot([factor], [y], color=mark.color, linestyle="none", **style)
    if not bound:
        draw_point(axes, factor, y, mark, filled=filled, markersize=7, zorder=3)
    return dict(arrows)
