"""Figures of an isoFLOP sweep: curves with their optima, loss at the optimum against budget, normalised
loss against normalised forward FLOPs, learning rates, speed-ups."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as MarkerPath
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.curve import parabola_through
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
_Point = tuple[Axes, float, float, Mark, str]  #: panel, place on its x axis, loss; name, see _name_marks
#: An open arrow that starts with a stroke at the value, as a marker; half of its size is its length.
_CORNERS = ((0, -0.25), (0, 0.25), (0, 0), (1, 0), (0.7, 0.2), (1, 0), (0.7, -0.2))
_CODES = (1, 2, 1, 2, 1, 2, 2)  # moves and lines: the stroke, the shaft, the head
_RIGHT = MarkerPath(_CORNERS, _CODES)
_LEFT = MarkerPath([(-x, y) for x, y in _CORNERS], _CODES)
_ARROWS = {"at least": _RIGHT, "at most": _LEFT}
_ARROW_SIZE = 32  #: points; an arrow is half as long
#: The figures of curves and the size on their axis.
CURVES = {
    "isoflop_curves": "active_parameters",
    "isoflop_curves_parameters": "parameters",
    "isoflop_curves_forward_flops": "forward_flops_per_token",
}
#: An optimum: hollow and behind the points, so that it hides none.
_STAR: dict[str, Any] = {"marker": "*", "markersize": 13, "markerfacecolor": "none"}
_LOSS = "held-out loss, causal rule (nats/token)"
_AXIS = {
    "active_parameters": "active parameters",
    "parameters": "all parameters",
    "forward_flops_per_token": "forward FLOPs per token (nominal)",
}


def isoflop_figures(sweep: Sweep, look_of: _Marks | None = None) -> dict[str, bytes]:
    """All figures of ``sweep`` that have data, by file name. ``look_of``: the marks of all schemes."""
    look_of = look_of or sweep_marks(sweep)
    draws: dict[str, Callable[[Sweep, _Marks], Figure | None]] = {
        **{name: partial(curves, size=size) for name, size in CURVES.items()},
        "loss_at_optimum": losses_at_optimum,
        "normalised_loss": normalised,
        "learning_rates": learning_rates,
        "speed_up": speed_ups,
    }
    return drawn_files({name: partial(draw, sweep, look_of) for name, draw in draws.items()})


def sweep_marks(sweep: Sweep) -> dict[str, Mark]:
    """The marks of the schemes of ``sweep``."""
    return marks({record.scheme: record.run.router.name for record in sweep.cells})


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
    handles: _Handles = {scheme: handle(look_of[scheme]) for scheme in sorted({s for s, _ in points})}
    for axes, budget in zip(panels, sweep.budgets, strict=True):
        good, every = list[float](), list[_Point]()
        for scheme, mark in look_of.items():
            curve = points.get((scheme, budget))
            if not curve:
                continue
            optimum = analysis.optimum(scheme, budget, HEADLINE)
            inside, outside = inside or optimum.loss is not None, outside or optimum.loss is None
            known = {*axes.get_children()}
            _draw_curve(axes, curve, optimum, mark)
            drawn = [artist for artist in axes.get_children() if artist not in known]
            name = f"scheme-{[*look_of].index(scheme)}-{panels.index(axes)}"
            _name_marks(drawn, name)
            means = {x: float(np.mean(losses)) for x, losses in curve.items()}
            every += [(axes, x, mean, mark, f"{name}-above") for x, mean in means.items()]
            good += means.values() if optimum.loss is not None else ()
        cut = _cut_above(good, every) or cut
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel(_AXIS[size])
        axes.set_title(f"{budget:.3g} training FLOPs")
    panels[0].set_ylabel(f"{_LOSS}\nmean and range of seeds" + "; lines: parabolas" * inside)
    if inside:
        handles["optimum, 95 %"] = Line2D([], [], color="0.2", linestyle="none", **_STAR)
    _legend(figure, handles, outside, cut)
    return figure


def _name_marks(artists: Sequence[Artist], name: str) -> None:
    """Give the ``artists`` of a scheme in a panel names by which a page can hide them: ``name``, which
    is ``scheme-SCHEME-PANEL`` (see `modbench.report.html.figures`), and a number."""
    for number, artist in enumerate(artists):
        artist.set_gid(f"{name}-{number}")


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
    if not good or max(loss for _, _, loss, *_ in points) <= (top := 1.5 * max(good) - 0.5 * min(good)):
        return False
    for number, (axes, x, loss, mark, name) in enumerate(points):
        if loss > top:
            style: dict[str, Any] = {"clip_on": False, "gid": f"{name}-{number}" if name else None}
            draw_point(axes, x, top, Mark(mark.color, "^", "-"), filled=True, **style)
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
    middle, square, slope, constant = parabola_through(np.log(sizes), np.atleast_2d(means))
    away = fine - middle
    parabola = square * away**2 + slope * away + constant
    axes.plot(np.exp(fine), parabola, color=mark.color, linewidth=1.3)
    _draw_optimum(axes, optimum.size, optimum, mark)


def _draw_optimum(axes: Axes, x: float, optimum: Optimum, mark: Mark, *, star: bool = True) -> None:
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


def losses_at_optimum(sweep: Sweep, look_of: _Marks) -> Figure | None:
    """Loss at the optimum by budget, with the loss that the dense surface gives. The schemes of a budget
    stand side by side, over half of the space between two budgets."""
    figure, (axes,) = _panels(1)
    handles: _Handles = {}
    half = min((b / a for a, b in pairwise(sweep.budgets)), default=1.2) ** 0.25
    schemes = _of_sweep(sweep, look_of)
    shifts = np.geomspace(1 / half, half, len(schemes)) if len(schemes) > 1 else [1.0]
    for (scheme, mark), shift in zip(schemes.items(), shifts, strict=True):
        for optimum in (sweep.analysis.optimum(*key, HEADLINE) for key in _keys(sweep, scheme)):
            if optimum.loss is not None:
                _draw_optimum(axes, shift * optimum.budget, optimum, mark, star=False)
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
    axes.set_ylabel(f"{_LOSS}\nat the optimal size, 95 % interval")
    legend_below(figure, handles)
    return figure


def _keys(sweep: Sweep, scheme: str) -> list[tuple[str, int]]:
    """The (scheme, budget) pairs of ``scheme`` that have a curve."""
    known = {(optimum.scheme, optimum.budget) for optimum in sweep.analysis.optima}
    return [(scheme, budget) for budget in sweep.budgets if (scheme, budget) in known]


def normalised(sweep: Sweep, look_of: _Marks) -> Figure | None:
    """Loss against forward FLOPs per token, both over those of the dense optimum of the same budget
    (Raposo et al. 2024, figure 4): the lower left quadrant is better and cheaper."""
    dense = {budget: sweep.optimum(DENSE, budget, HEADLINE) for budget in sweep.budgets}
    known = {budget: at for budget, at in dense.items() if at is not None and at.loss is not None}
    if not known:
        return None
    figure, panels = _panels(len(known), sharey=True)
    good, every, without = [1.0], list[_Point](), set[str]()
    for axes, (budget, optimum) in zip(panels, known.items(), strict=True):
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("nominal forward FLOPs per token\n/ dense optimum's")
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
            every += [(axes, at, mean, mark, "") for at, mean in zip(x, losses, strict=True)]
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
    cut = _cut_above(good, every)
    drawn = sorted({record.scheme for record in sweep.curve_records()})
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
    axes.margins(x=0.08)  # room for the outermost labels
    _plain_numbers(axes)
    tried = sorted({rate for rates in sweep.rates.values() for rate in rates.losses})
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel(f"{_LOSS}\nmiddle size and budget, one seed")
    legend_below(figure, handles)
    return figure


def speed_ups(sweep: Sweep, look_of: _Marks) -> Figure | None:
    """Effective speed-up over the dense optimum at equal loss, with intervals, a panel per budget.
    Filled markers are in FLOPs, hollow ones in seconds. A bound is an open arrow at its factor."""
    lines = {
        budget: {line.optimum.scheme: line for line in sweep.lines(budget) if line.speed_up}
        for budget in sweep.budgets
    }
    lines = {budget: of_scheme for budget, of_scheme in lines.items() if of_scheme}
    if not lines:
        return None
    schemes = [scheme for scheme in sorted(sweep.rates) if scheme != DENSE]
    height = max(0.6 * HEIGHT, 1.0 + 0.4 * len(schemes))
    figure, panels = _panels(len(lines), height, sharex=True, sharey=True)
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
    legend: _Handles = {"in FLOPs": handle(GREY, markersize=7)}
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
