"""Figures of an isoFLOP sweep: curves with their optima, loss at the optimum against budget, normalised
loss against normalised forward FLOPs, learning rates, speed-ups."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from modbench.analysis.isoflop import Optimum
from modbench.report.isoflop import DENSE, HEADLINE, SIZES, Sweep, scheme_of
from modbench.report.plot_style import (
    DOTTED,
    HEIGHT,
    REFERENCE,
    WIDTH,
    Mark,
    files,
    handle,
    legend_below,
    look,
    marks,
    sheet,
    written_out,
)

_Handles = dict[str, Any]
_LOSS = "held-out loss, causal rule (nats/token)"
_AXIS = {
    "active_parameters": "active parameters",
    "parameters": "all parameters",
    "forward_flops_per_token": "forward FLOPs per token (nominal)",
}


def isoflop_figures(sweep: Sweep) -> dict[str, bytes]:
    """All figures of ``sweep``, by file name."""
    drawn: dict[str, Callable[[], Figure]] = {
        "isoflop_curves": lambda: curves(sweep, SIZES[0]),
        "isoflop_curves_forward_flops": lambda: curves(sweep, SIZES[2]),
        "loss_at_optimum": lambda: losses_at_optimum(sweep),
        "normalised_loss": lambda: normalised(sweep),
        "learning_rates": lambda: learning_rates(sweep),
        "speed_up": lambda: speed_ups(sweep),
    }
    contents: dict[str, bytes] = {}
    for name, draw in drawn.items():
        with look():
            contents |= files(name, draw())
    return contents


def _marks(sweep: Sweep) -> dict[str, Mark]:
    return marks(sorted(sweep.rates))


def _panels(number: int, height: float = HEIGHT, **shared: Any) -> tuple[Figure, list[Axes]]:
    """``number`` panels side by side; ``shared``: sharex or sharey."""
    figure = sheet(WIDTH * (0.35 + 0.65 * number), height)
    panels = list(figure.subplots(1, number, squeeze=False, **shared).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def curves(sweep: Sweep, size: str) -> Figure:
    """Loss against ``size``, a panel per budget: means of seeds, the parabola of each curve with an
    interior optimum, and the optimum with its intervals. Other curves have hollow markers."""
    analysis = sweep.analysis if size == SIZES[0] else None
    if analysis is None:
        from modbench.analysis.isoflop import analyse

        analysis = analyse(sweep.runs(size), fits=(HEADLINE,))
    look_of = _marks(sweep)
    figure, panels = _panels(len(sweep.budgets))
    points: dict[tuple[str, float], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in sweep.runs(size):
        points[run.scheme, run.budget][run.size].append(run.loss)
    hollow = False
    for axes, budget in zip(panels, sweep.budgets, strict=True):
        for scheme, mark in look_of.items():
            curve = points.get((scheme, budget))
            if not curve:
                continue
            optimum = analysis.optimum(scheme, budget, HEADLINE)
            hollow |= optimum.loss is None
            _draw_curve(axes, curve, optimum, mark)
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel(_AXIS[size])
        axes.set_title(f"{budget:.3g} training FLOPs")
    panels[0].set_ylabel(f"{_LOSS}\nmean and range of seeds; lines: parabolas")
    handles: _Handles = {scheme: handle(mark) for scheme, mark in look_of.items()}
    handles["optimum, 95 %"] = Line2D([], [], color="0.2", marker="*", markersize=11, linestyle="none")
    if hollow:
        handles["no interior optimum"] = handle(Mark("0.35", "o", "-"), filled=False)
    legend_below(figure, handles)
    return figure


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


def _draw_optimum(axes: Axes, x: float, optimum: Optimum, mark: Mark) -> None:
    """The optimum as a star at ``x``, with the interval of its loss; that of its size if ``x`` is it."""
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
        marker="*",
        markersize=13,
        markeredgecolor="white",
        linestyle="none",
        **style,
    )


def losses_at_optimum(sweep: Sweep) -> Figure:
    """Loss at the optimum against budget, with the law that the dense surface gives."""
    figure, (axes,) = _panels(1)
    handles: _Handles = {}
    for scheme, mark in _marks(sweep).items():
        optima = [sweep.analysis.optimum(*key, HEADLINE) for key in _keys(sweep, scheme)]
        optima = [one for one in optima if one.loss is not None]
        for one in optima:
            _draw_optimum(axes, one.budget, one, mark)
        if optima:
            budgets, losses = [one.budget for one in optima], [one.loss or 0 for one in optima]
            axes.plot(budgets, losses, color=mark.color, linewidth=1)
            handles[scheme] = Line2D([], [], color=mark.color, marker="*", markersize=10)
    dense = [sweep.analysis.optimum(*key, "surface") for key in _keys(sweep, DENSE)]
    law = [(one.budget, one.loss) for one in dense if one.loss is not None]
    if law:
        handles["dense surface"] = Line2D([], [], color=REFERENCE, **DOTTED)
        axes.plot(*zip(*law, strict=True), color=REFERENCE, **DOTTED)
    axes.set_xscale("log")
    written_out(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel("training FLOPs (convention model)")
    axes.set_ylabel(f"{_LOSS}\nat the optimal size, 95 % interval")
    legend_below(figure, handles)
    return figure


def _keys(sweep: Sweep, scheme: str) -> list[tuple[str, int]]:
    """The (scheme, budget) pairs of ``scheme`` that have a curve."""
    known = {(one.scheme, one.budget) for one in sweep.analysis.optima}
    return [(scheme, budget) for budget in sweep.budgets if (scheme, budget) in known]


def normalised(sweep: Sweep) -> Figure:
    """Loss against forward FLOPs per token, both over those of the dense optimum of the same budget
    (Raposo et al. 2024, figure 4): the lower left quadrant is better and cheaper."""
    figure, panels = _panels(len(sweep.budgets), sharey=True)
    look_of = _marks(sweep)
    shown = [1.0]
    for axes, budget in zip(panels, sweep.budgets, strict=True):
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("forward FLOPs per token / dense optimum's")
        found = [
            one
            for one in sweep.analysis.optima
            if (one.scheme, one.budget, one.fit) == (DENSE, budget, HEADLINE)
        ]
        flops = sweep.forward_flops(found[0]) if found else None
        if not flops or found[0].loss is None:
            axes.text(0.5, 0.5, "no interior dense optimum", ha="center", transform=axes.transAxes)
            continue
        points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for record in sweep.curve_records():
            if record.cell["train"]["budget"] == budget:
                at = record.metrics["forward_flops_per_token"] / flops
                points[scheme_of(record)][at].append(record.metrics["heldout_loss"] / found[0].loss)
        for scheme, curve in points.items():
            mark, x = look_of[scheme], sorted(curve)
            losses = [float(np.mean(curve[at])) for at in x]
            shown += losses
            style: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "linewidth": 1}
            axes.plot(x, losses, markersize=5, **style)
        axes.set_xscale("log")
        _plain_numbers(axes)
        low, high = axes.get_xlim()
        axes.fill_between([low, 1], 0, 1, color="0.93", zorder=0, linewidth=0)
        axes.set_xlim(low, high)
        axes.axvline(1, color=REFERENCE, **DOTTED)
        axes.axhline(1, color=REFERENCE, **DOTTED)
    panels[0].set_ylabel("held-out loss / dense optimum's")
    margin = 0.05 * (max(shown) - min(shown)) or 0.01
    panels[0].set_ylim(min(shown) - margin, max(shown) + margin)
    handles: _Handles = {scheme: handle(mark) for scheme, mark in look_of.items()}
    handles["better and cheaper"] = Line2D([], [], color="0.85", linewidth=9)
    legend_below(figure, handles)
    return figure


def _plain_numbers(axes: Axes) -> None:
    """Write the ticks of a logarithmic x axis as 0.5, 1, 2."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def learning_rates(sweep: Sweep) -> Figure:
    """Loss against learning rate at the middle size and budget of each scheme; the chosen is filled."""
    figure, (axes,) = _panels(1)
    handles: _Handles = {}
    for scheme, mark in _marks(sweep).items():
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
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel(f"{_LOSS}\nmiddle size and budget, one seed")
    legend_below(figure, handles)
    return figure


def speed_ups(sweep: Sweep) -> Figure:
    """Effective speed-up over the dense optimum at equal loss, with intervals, a panel per budget. A
    bound is drawn as an arrow from its factor."""
    figure, panels = _panels(len(sweep.budgets), 0.6 * HEIGHT, sharex=True, sharey=True)
    look_of = {scheme: mark for scheme, mark in _marks(sweep).items() if scheme != DENSE}
    for axes, budget in zip(panels, sweep.budgets, strict=True):
        lines = {line.optimum.scheme: line.speed_up for line in sweep.lines(budget)}
        for place, (scheme, mark) in enumerate(look_of.items()):
            found = lines.get(scheme)
            if found is None:
                axes.text(1.0, place, " not known", va="center", color="0.35", fontsize=9)
                continue
            low, high = (end if end is not None else found.factor for end in found.interval)
            axes.plot([low, high], [place, place], color=mark.color, linewidth=2)
            axes.plot([found.factor], [place], color=mark.color, marker=mark.marker, markersize=7)
            if found.bound:
                sign = ">" if found.bound == "at least" else "<"
                axes.plot([found.factor], [place], color=mark.color, marker=sign, markersize=11)
        axes.axvline(1, color=REFERENCE, **DOTTED)
        axes.set_yticks(range(len(look_of)), list(look_of))
        axes.set_ylim(len(look_of) - 0.5, -0.5)
        axes.set_title(f"{budget:.3g} training FLOPs")
        axes.set_xlabel("speed-up at equal loss")
    return figure
