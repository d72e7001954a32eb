"""Figures of an isoFLOP sweep: curves with their optima, loss at the optimum against budget, normalised
loss against normalised forward FLOPs, learning rates, speed-ups."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.isoflop import Optimum
from modbench.report.isoflop.seconds import SecondsSpeedUp
from modbench.report.isoflop.sweep import DENSE, HEADLINE, SIZES, Sweep
from modbench.report.plot_style import (
    DOTTED,
    GREY,
    HEIGHT,
    REFERENCE,
    WIDTH,
    Mark,
    draw_point,
    drawn_files,
    handle,
    legend_below,
    marks,
    sheet,
    written_out,
)

_Handles = dict[str, Any]
_Marks = Mapping[str, Mark]
_Point = tuple[Axes, float, float, Mark]  #: panel, place on its x axis, loss
_ARROWS = {"at least": ">", "at most": "<"}
#: The figures of curves and the size on their axis.
CURVES = {
    "isoflop_curves": "active_parameters",
    "isoflop_curves_parameters": "parameters",
    "isoflop_curves_forward_flops": "forward_flops_per_token",
}
_LOSS = "held-out loss, causal rule (nats/token)"
_AXIS = {
    "active_parameters": "active parameters",
    "parameters": "all parameters",
    "forward_flops_per_token": "forward FLOPs per token (nominal)",
}


def isoflop_figures(sweep: Sweep, look_of: _Marks | None = None) -> dict[str, bytes]:
    """All figures of ``sweep`` that have data, by file name. ``look_of``: the marks of all schemes."""
    look_of = look_of or marks(sweep.rates)
    draws: dict[str, Callable[[Sweep, _Marks], Figure | None]] = {
        **{name: partial(curves, size=size) for name, size in CURVES.items()},
        "loss_at_optimum": losses_at_optimum,
        "normalised_loss": normalised,
        "learning_rates": learning_rates,
        "speed_up": speed_ups,
    }
    return drawn_files({name: partial(draw, sweep, look_of) for name, draw in draws.items()})


def _of_sweep(sweep: Sweep, look_of: _Marks) -> dict[str, Mark]:
    return {scheme: look_of[scheme] for scheme in sorted(sweep.rates)}


def _panels(number: int, height: float = HEIGHT, **shared: Any) -> tuple[Figure, list[Axes]]:
    """``number`` panels side by side; ``shared``: sharex or sharey."""
    figure = sheet(WIDTH * (0.35 + 0.65 * number), height)
    return figure, list(figure.subplots(1, number, squeeze=False, **shared).flat)


def curves(sweep: Sweep, look_of: _Marks, *, size: str) -> Figure:
    """Loss against ``size``, a panel per budget: means of seeds, the parabola of each curve with an
    interior optimum, and the optimum with its intervals. Other curves have hollow markers."""
    analysis = sweep.analysis if size == SIZES[0] else None
    if analysis is None:
        from modbench.analysis.isoflop import analyse

        analysis = analyse(sweep.runs(size), fits=(HEADLINE,))
    look_of = _of_sweep(sweep, look_of)
    figure, panels = _panels(len(sweep.budgets))
    points: dict[tuple[str, float], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in sweep.runs(size):
        points[run.scheme, run.budget][run.size].append(run.loss)
    inside = outside = cut = False  # an optimum in its grid; a point above the panel
    handles: _Handles = {
        scheme: handle(look_of[scheme]) for scheme in sorted({one for one, _ in points})
    }
    for axes, budget in zip(panels, sweep.budgets, strict=True):
        good, every = list[float](), list[_Point]()
        for scheme, mark in look_of.items():
            curve = points.get((scheme, budget))
            if not curve:
                continue
            optimum = analysis.optimum(scheme, budget, HEADLINE)
            inside, outside = inside or optimum.loss is not None, outside or optimum.loss is None
            _draw_curve(axes, curve, optimum, mark)
            means = {x: float(np.mean(losses)) for x, losses in curve.items()}
            every += [(axes, x, mean, mark) for x, mean in means.items()]
            good += means.values() if optimum.loss is not None else ()
        cut = _cut_above(good, every) or cut
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel(_AXIS[size])
        axes.set_title(f"{budget:.3g} training FLOPs")
    panels[0].set_ylabel(f"{_LOSS}\nmean and range of seeds" + "; lines: parabolas" * inside)
    if inside:
        star: dict[str, Any] = {"color": "0.2", "marker": "*", "markersize": 11}
        handles["optimum, 95 %"] = Line2D([], [], linestyle="none", **star)
    _legend(figure, handles, outside, cut)
    return figure


def _legend(figure: Figure, handles: _Handles, outside: bool, cut: bool) -> None:
    """Add a legend of ``handles``, of curves ``outside`` their grids, and of points ``cut`` off."""
    if outside:
        handles["no interior optimum"] = handle(GREY, filled=False)
    if cut:
        handles["above the axis"] = handle(Mark(REFERENCE, "^", "-"))
    legend_below(figure, handles)


def _cut_above(good: list[float], points: list[_Point]) -> bool:
    """Limit the loss axis of ``points`` to the ``good`` losses and half their range above, so that one
    bad scheme doesn't flatten the others. An arrow at the top marks each point above."""
    if not good or max(loss for _, _, loss, _ in points) <= (top := 1.5 * max(good) - 0.5 * min(good)):
        return False
    for axes, x, loss, mark in points:
        if loss > top:
            style: dict[str, Any] = {"marker": "^", "markersize": 6, "clip_on": False}
            axes.plot([x], [top], color=mark.color, **style)
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
    middle = np.log(sizes).mean()
    parabola = np.polyfit(np.log(sizes) - middle, means, 2)
    axes.plot(np.exp(fine), np.polyval(parabola, fine - middle), color=mark.color, linewidth=1.3)
    _draw_optimum(axes, optimum.size, optimum, mark)


def _draw_optimum(axes: Axes, x: float, optimum: Optimum, mark: Mark, marker: str = "*") -> None:
    """The optimum at ``x`` as a star, or as ``marker``, with the interval of its loss; that of its size
    if ``x`` is it."""
    loss = optimum.loss or 0.0
    style: dict[str, Any] = {"color": mark.color, "zorder": 4, "capsize": 3}
    errors: dict[str, Any] = {}
    if optimum.loss_interval:
        errors["yerr"] = [[loss - optimum.loss_interval[0]], [optimum.loss_interval[1] - loss]]
    if optimum.size_interval and x == optimum.size:
        errors["xerr"] = [[x - optimum.size_interval[0]], [optimum.size_interval[1] - x]]
    axes.errorbar(
        [x],
        [loss],
        **errors,
        marker=marker,
        markersize=13 if marker == "*" else 7,
        markeredgecolor="white",
        linestyle="none",
        **style,
    )


def losses_at_optimum(sweep: Sweep, look_of: _Marks) -> Figure | None:
    """Loss at the optimum by budget, with the loss that the dense surface gives. The schemes of a budget
    stand side by side, over half of the space between two budgets."""
    figure, (axes,) = _panels(1)
    handles: _Handles = {}
    half = min((b / a for a, b in pairwise(sweep.budgets)), default=1.2) ** 0.25
    schemes = _of_sweep(sweep, look_of)
    shifts = np.geomspace(1 / half, half, len(schemes)) if len(schemes) > 1 else [1.0]
    for (scheme, mark), shift in zip(schemes.items(), shifts, strict=True):
        for one in (sweep.analysis.optimum(*key, HEADLINE) for key in _keys(sweep, scheme)):
            if one.loss is not None:
                _draw_optimum(axes, shift * one.budget, one, mark, mark.marker)
                handles[scheme] = handle(mark)
    if not handles:
        return None
    for one in (sweep.analysis.optimum(*key, "surface") for key in _keys(sweep, DENSE)):
        if one.loss is not None:
            handles["dense surface"] = Line2D([], [], color=REFERENCE, **DOTTED)
            ends = one.budget / half / 1.05, one.budget * half * 1.05
            axes.plot(ends, [one.loss] * 2, color=REFERENCE, **DOTTED)
    axes.set_xscale("log")
    axes.set_xticks(sweep.budgets, [f"{budget:.3g}" for budget in sweep.budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training FLOPs (convention model)\nschemes of a budget stand side by side")
    axes.set_ylabel(f"{_LOSS}\nat the optimal size, 95 % interval")
    legend_below(figure, handles)
    return figure


def _keys(sweep: Sweep, scheme: str) -> list[tuple[str, int]]:
    """The (scheme, budget) pairs of ``scheme`` that have a curve."""
    known = {(one.scheme, one.budget) for one in sweep.analysis.optima}
    return [(scheme, budget) for budget in sweep.budgets if (scheme, budget) in known]


def normalised(sweep: Sweep, look_of: _Marks) -> Figure | None:
    """Loss against forward FLOPs per token, both over those of the dense optimum of the same budget
    (Raposo et al. 2024, figure 4): the lower left quadrant is better and cheaper."""
    dense = {budget: sweep.optimum(DENSE, budget, HEADLINE) for budget in sweep.budgets}
    known = {budget: one for budget, one in dense.items() if one is not None and one.loss is not None}
    if not known:
        return None
    figure, panels = _panels(len(known), sharey=True)
    good, every, without = [1.0], list[_Point](), set[str]()
    for axes, (budget, optimum) in zip(panels, known.items(), strict=True):
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("forward FLOPs per token / dense optimum's")
        flops, loss = sweep.forward_flops(optimum) or 1.0, optimum.loss or 1.0
        points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for record in sweep.curve_records():
            if record.budget == budget:
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
            every += [(axes, at, one, mark) for at, one in zip(x, losses, strict=True)]
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
    cut = _cut_above(good, every)
    drawn = sorted({one.scheme for one in sweep.curve_records()})
    handles: _Handles = {scheme: handle(look_of[scheme]) for scheme in drawn}
    handles["better and cheaper"] = Line2D([], [], color="0.85", linewidth=9)
    _legend(figure, handles, bool(without), cut)
    return figure


def _plain_numbers(axes: Axes) -> None:
    """Write the ticks of a logarithmic x axis as 0.5, 1, 2."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def learning_rates(sweep: Sweep, look_of: _Marks) -> Figure:
    """Loss against learning rate at the middle size and budget of each scheme; the chosen is filled."""
    figure, (axes,) = _panels(1)
    handles: _Handles = {}
    for scheme, mark in _of_sweep(sweep, look_of).items():
        rates = sweep.rates[scheme]
        known = {rate: loss for rate, loss in rates.losses.items() if loss is not None}
        if not known:
            continue
        style: dict[str, Any] = {"color": mark.color, "linewidth": 1.3, "marker": mark.marker}
        axes.plot(list(known), list(known.values()), markerfacecolor="white", **style)
        best = rates.choice.best
        if best in known:
            axes.plot([best], [known[best]], color=mark.color, marker=mark.marker, zorder=4)
        word = "" if rates.choice.verdict == "interior" else f" ({rates.choice.verdict})"
        handles[f"{scheme}{word}"] = handle(mark)
    axes.set_xscale("log")
    _plain_numbers(axes)
    tried = sorted({rate for rates in sweep.rates.values() for rate in rates.losses})
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel(f"{_LOSS}\nmiddle size and budget, one seed")
    legend_below(figure, handles)
    return figure


def speed_ups(sweep: Sweep, look_of: _Marks) -> Figure | None:
    """Effective speed-up over the dense optimum at equal loss, with intervals, a panel per budget.
    Filled markers are in FLOPs, hollow ones in seconds. A bound is an arrow from its factor."""
    lines = {
        budget: {line.optimum.scheme: line for line in sweep.lines(budget) if line.speed_up}
        for budget in sweep.budgets
    }
    lines = {budget: found for budget, found in lines.items() if found}
    if not lines:
        return None
    schemes = [scheme for scheme in sorted(sweep.rates) if scheme != DENSE]
    height = max(0.6 * HEIGHT, 0.9 + 0.32 * len(schemes))
    figure, panels = _panels(len(lines), height, sharex=True, sharey=True)
    timed = any(line.seconds for found in lines.values() for line in found.values())
    for axes, (budget, found) in zip(panels, lines.items(), strict=True):
        for place, scheme in enumerate(schemes):
            if scheme not in found:
                axes.text(1.0, place, "  no optimum", va="center", color=REFERENCE, fontsize=9)
                continue
            line, shift = found[scheme], 0.16 if timed else 0.0
            _draw_factor(axes, place - shift, line.speed_up, line.speed_up, look_of[scheme])
            _draw_factor(axes, place + shift, line.seconds, line.speed_up, look_of[scheme], filled=False)
        axes.axvline(1, color=REFERENCE, **DOTTED)
        axes.set_yticks(range(len(schemes)), schemes)
        axes.set_ylim(len(schemes) - 0.5, -0.5)
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("speed-up at equal loss")
    legend: _Handles = {"in FLOPs": handle(GREY)}
    if timed:
        legend["in seconds"] = handle(GREY, filled=False)
    bounds = {
        line.speed_up.bound for found in lines.values() for line in found.values() if line.speed_up
    }
    legend |= {
        bound: handle(Mark(REFERENCE, sign, "-")) for bound, sign in _ARROWS.items() if bound in bounds
    }
    legend_below(figure, legend)
    return figure


def _draw_factor(
    axes: Axes,
    place: float,
    found: SpeedUp | SecondsSpeedUp | None,
    in_flops: SpeedUp | None,
    mark: Mark,
    *,
    filled: bool = True,
) -> None:
    """A factor with its interval, as an arrow if that in FLOPs is a bound. An unknown end is an arrow to
    the edge of the panel."""
    if found is None or in_flops is None:
        return
    for end in found.interval or ():
        if 0 < end < np.inf:
            axes.plot([found.factor, end], [place, place], color=mark.color, linewidth=2)
        else:
            arrow = {"arrowstyle": "-|>", "color": mark.color, "linewidth": 2, "shrinkA": 0}
            edge = (float(end > 0), place)
            frame: Any = ("axes fraction", "data")
            axes.annotate("", edge, (found.factor, place), frame, "data", arrowprops=arrow)
    sign = _ARROWS.get(in_flops.bound, mark.marker)
    draw_point(axes, found.factor, place, Mark(mark.color, sign, "-"), filled=filled, markersize=7)
