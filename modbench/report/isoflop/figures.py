"""Figures of an isoFLOP sweep besides its curves: loss at the optimum against budget, normalised loss
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

from modbench.analysis.comparison import SpeedUp
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
    depth_curves,
    draw_optimum,
    of_sweep,
    panels_of,
)
from modbench.report.isoflop.seconds import SecondsSpeedUp
from modbench.report.isoflop.sweep import DENSE, HEADLINE, Sweep
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


def isoflop_figures(sweep: Sweep, look_of: Marks | None = None) -> dict[str, bytes]:
    """All figures of ``sweep`` that have data, by file name. ``look_of``: the marks of all schemes."""
    look_of = look_of or sweep_marks(sweep)
    draws: dict[str, Callable[[Sweep, Marks], Figure | None]] = {
        **({"isoflop_depths": depth_curves} if sweep.depths else {"isoflop_curves": curves}),
        "loss_at_optimum": losses_at_optimum,
        "normalised_loss": normalised,
        "learning_rates": learning_rates,
        "speed_up": speed_ups,
    }
    return drawn_files({name: partial(draw, sweep, look_of) for name, draw in draws.items()})


def sweep_marks(sweep: Sweep) -> dict[str, Mark]:
    """The marks of the schemes of ``sweep``."""
    return marks({record.scheme: record.run.router.name for record in sweep.cells})


def losses_at_optimum(sweep: Sweep, look_of: Marks) -> Figure | None:
    """Loss at the optimum by budget, with the loss that the dense surface gives. The schemes of a budget
    stand side by side, over half of the space between two budgets."""
    figure, (axes,) = panels_of(1)
    handles: Handles = {}
    half = min((b / a for a, b in pairwise(sweep.budgets)), default=1.2) ** 0.25
    schemes = of_sweep(sweep, look_of)
    shifts = np.geomspace(1 / half, half, len(schemes)) if len(schemes) > 1 else [1.0]
    for (scheme, mark), shift in zip(schemes.items(), shifts, strict=True):
        for optimum in (sweep.analysis.optimum(*key, HEADLINE) for key in _keys(sweep, scheme)):
            if optimum.loss is not None:
                draw_optimum(axes, shift * optimum.budget, optimum, mark, star=False)
                handles[scheme] = handle(mark)
    if not handles:
        return None
    for optimum in (sweep.analysis.optimum(*key, "surface") for key in _keys(sweep, DENSE)):
        if optimum.loss is not None:
            handles["dense, fit of all budgets"] = Line2D([], [], color=REFERENCE, **DOTTED)
            ends = optimum.budget / half / 1.05, optimum.budget * half * 1.05
            axes.plot(ends, [optimum.loss] * 2, color=REFERENCE, **DOTTED)
    axes.set_xscale("log")
    axes.set_xticks(sweep.budgets, [f"{budget:.3g}" for budget in sweep.budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training FLOPs (convention model)\nschemes of a budget stand side by side")
    axes.set_ylabel(f"{LOSS}\nat the optimal size, 95 % interval")
    legend_below(figure, handles)
    return figure


def _keys(sweep: Sweep, scheme: str) -> list[tuple[str, int]]:
    """The (scheme, budget) pairs of ``scheme`` that have a curve."""
    known = {(optimum.scheme, optimum.budget) for optimum in sweep.analysis.optima}
    return [(scheme, budget) for budget in sweep.budgets if (scheme, budget) in known]


def normalised(sweep: Sweep, look_of: Marks) -> Figure | None:
    """Loss against forward FLOPs per token, both over those of the dense optimum of the same budget
    (Raposo et al. 2024, figure 4): the lower left quadrant is better and cheaper."""
    dense = {budget: sweep.optimum(DENSE, budget, HEADLINE) for budget in sweep.budgets}
    known = {budget: at for budget, at in dense.items() if at is not None and at.loss is not None}
    if not known:
        return None
    figure, panels = panels_of(len(known), sharey=True)
    good, every, without = [1.0], list[Point](), set[str]()
    for axes, (budget, optimum) in zip(panels, known.items(), strict=True):
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("nominal forward FLOPs per token\n/ dense optimum's")
        flops, loss = sweep.forward_flops(optimum) or 1.0, optimum.loss or 1.0
        points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for record in sweep.curve_records():
            if record.budget != budget:
                continue
            of_scheme = sweep.analysis.optimum(record.scheme, budget, HEADLINE)
            if record.depth == of_scheme.depth:
                at = record.metrics["forward_flops_per_token"] / flops
                points[record.scheme][at].append(record.metrics["heldout_loss"] / loss)
        for scheme, curve in points.items():
            mark, x = look_of[scheme], sorted(curve)
            losses = [float(np.mean(curve[at])) for at in x]
            style: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "linewidth": 1}
            if sweep.analysis.optimum(scheme, budget, HEADLINE).loss is None:
                without.add(scheme)
                style["markerfacecolor"] = "white"
            else:
                good += losses
            axes.plot(x, losses, markersize=5, **style)
            every += [(axes, at, mean, mark) for at, mean in zip(x, losses, strict=True)]
        axes.set_xscale("log")
        _plain_numbers(axes)
        low, high = axes.get_xlim()
        axes.fill_between([low, 1], 0, 1, color="0.93", zorder=0, linewidth=0)
        axes.set_xlim(low, high)
        axes.axvline(1, color=REFERENCE, **DOTTED)
        axes.axhline(1, color=REFERENCE, **DOTTED)
    panels[0].set_ylabel("held-out loss / dense optimum's")
    losses = [1.0, *(loss for _, _, loss, *_ in every)]
    margin = 0.05 * (max(losses) - min(losses)) or 0.01
    panels[0].set_ylim(min(losses) - margin, max(losses) + margin)
    cut = cut_above(good, every)
    drawn = sorted({record.scheme for record in sweep.curve_records()})
    handles: Handles = {scheme: handle(look_of[scheme]) for scheme in drawn}
    handles["better and cheaper"] = Line2D([], [], color="0.85", linewidth=9)
    add_legend(figure, handles, bool(without), cut)
    return figure


def _plain_numbers(axes: Axes) -> None:
    """Write the ticks of a logarithmic x axis as 0.5, 1, 2."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def learning_rates(sweep: Sweep, look_of: Marks) -> Figure:
    """Loss against learning rate at the middle size and budget of each scheme; the chosen is filled, as
    soon as it is chosen. A panel per depth, if the suite has several."""
    depths: list[int | None] = [*sweep.depths] or [None]
    figure, panels = panels_of(len(depths))
    handles: Handles = {}
    for axes, depth in zip(panels, depths, strict=True):
        _draw_rates(axes, sweep, look_of, depth, handles)
    panels[0].set_ylabel(f"{LOSS}\nmiddle size and budget, one seed")
    legend_below(figure, handles)
    return figure


def _draw_rates(axes: Axes, sweep: Sweep, look_of: Marks, depth: int | None, handles: Handles) -> None:
    for scheme, mark in of_sweep(sweep, look_of).items():
        rates = sweep.rates.get((scheme, depth))
        if rates is None:
            continue
        known = {rate: loss for rate, loss in rates.losses.items() if loss is not None}
        if not known:
            continue
        style: dict[str, Any] = {"color": mark.color, "linewidth": 1.3, "marker": mark.marker}
        axes.plot(list(known), list(known.values()), markerfacecolor="white", **style)
        best = rates.choice.best
        if best in known and rates.choice.verdict != "open":
            axes.plot([best], [known[best]], color=mark.color, marker=mark.marker, zorder=4)
        word = "" if rates.choice.verdict == "interior" else f" ({rates.choice.verdict})"
        handles[f"{at_depth(scheme, depth if word else None)}{word}"] = handle(mark)
    axes.set_xscale("log")
    axes.margins(x=0.08)  # room for the outermost labels
    _plain_numbers(axes)
    of_depth = (rates for (_, of), rates in sweep.rates.items() if of == depth)
    tried = sorted({rate for rates in of_depth for rate in rates.losses})
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axes.set_xlabel("peak learning rate")
    if depth is not None:
        axes.set_title(several(depth, "layer"))


def speed_ups(sweep: Sweep, look_of: Marks) -> Figure | None:
    """Effective speed-up over the dense optimum at equal loss, with intervals, a panel per budget.
    Filled markers are in FLOPs, hollow ones in seconds. A bound is an open arrow at its factor."""
    lines = {
        budget: {line.optimum.scheme: line for line in sweep.lines(budget) if line.speed_up}
        for budget in sweep.budgets
    }
    lines = {budget: of_scheme for budget, of_scheme in lines.items() if of_scheme}
    if not lines:
        return None
    schemes = [scheme for scheme in sweep.schemes if scheme != DENSE]
    height = max(0.6 * HEIGHT, 1.0 + 0.4 * len(schemes))
    figure, panels = panels_of(len(lines), height, sharex=True, sharey=True)
    arrows: dict[str, MarkerPath] = {}
    for axes, (budget, of_scheme) in zip(panels, lines.items(), strict=True):
        for number, scheme in enumerate(schemes):
            if scheme not in of_scheme:
                axes.text(1.0, number, "  no optimum", va="center", color=REFERENCE, fontsize=9)
                continue
            line = of_scheme[scheme]
            shift = 0.18 if line.seconds else 0.0
            for y, speed_up, filled in (
                (number - shift, line.speed_up, True),
                (number + shift, line.seconds, False),
            ):
                if speed_up and line.speed_up:
                    bound = line.speed_up.bound
                    arrows |= _draw_factor(axes, y, speed_up, bound, look_of[scheme], filled=filled)
        axes.axvline(1, color=REFERENCE, **DOTTED)
        axes.set_yticks(range(len(schemes)), schemes)
        axes.set_ylim(len(schemes) - 0.5, -0.5)
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("speed-up at equal loss")
        axes.margins(x=0.12)
    legend: Handles = {"in FLOPs": handle(GREY, markersize=7)}
    if any(line.seconds for of_scheme in lines.values() for line in of_scheme.values()):
        legend["in seconds"] = handle(GREY, filled=False, markersize=7)
    for name, arrow in sorted(arrows.items()):
        style: dict[str, Any] = {"marker": arrow, "markersize": _ARROW_SIZE, "linestyle": "none"}
        legend[name] = Line2D([], [], color=REFERENCE, markerfacecolor="none", **style)
    legend_below(figure, legend)
    return figure


def _draw_factor(
    axes: Axes, y: float, speed_up: SpeedUp | SecondsSpeedUp, bound: str, mark: Mark, *, filled: bool
) -> dict[str, MarkerPath]:
    """Draw a factor with its interval; return the arrows drawn, by their meaning. A bound has an open
    arrow at its value in place of a marker, and so has an end of the interval that is not known."""
    arrows = [(bound, _ARROWS[bound])] if bound in _ARROWS else []
    for end in speed_up.interval or ():
        if 0 < end < np.inf:
            axes.plot([speed_up.factor, end], [y, y], color=mark.color, linewidth=2)
        elif (arrow := _RIGHT if end else _LEFT) is not _ARROWS.get(bound):
            arrows.append(("interval open on this side", arrow))
    for _, arrow in arrows:
        style: dict[str, Any] = {"marker": arrow, "markersize": _ARROW_SIZE, "markerfacecolor": "none"}
        style |= {"markeredgewidth": 1.6 if filled else 1.0, "zorder": 2.5}
        axes.plot([speed_up.factor], [y], color=mark.color, linestyle="none", **style)
    if bound not in _ARROWS:
        draw_point(axes, speed_up.factor, y, mark, filled=filled, markersize=7, zorder=3)
    return dict(arrows)
