"""Figures of routing on held-out text: selected tokens by position, and the load of experts, one panel
per row, one line per layer, of the first finished seed."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from modbench.records.result import Result
from modbench.records.sections import ExpertLayer
from modbench.report.plot_style import DOTTED, REFERENCE, WIDTH, Draws, legend_below, panels
from modbench.report.suite import Suite

#: Largest number of panels, in the table's order.
MOST_ROWS = 12
#: Largest number of layers that are all named.
NAMED = 4
#: Largest number of position bins; finer ones show noise only.
_POSITIONS = 16
_TRAINING: dict[str, Any] = {"linestyle": (0, (1, 1.2)), "linewidth": 1.1}
_CAUSAL: dict[str, Any] = {"linewidth": 1.6}
_EXPERT: dict[str, Any] = {"marker": "o", "markersize": 3}
_NO_OP: dict[str, Any] = _EXPERT | {"linestyle": (0, (2, 1))}


def routing_figures(suite: Suite) -> Draws:
    """The figures of ``suite``."""
    return {"routing": partial(depth_figure, suite), "expert_load": partial(expert_figure, suite)}


def depth_figure(suite: Suite) -> Figure | None:
    """The share of tokens that each depth-routed layer selects, by position; None without any."""
    figure, shown = _panels(suite, "depth")
    if figure is None:
        return None
    for axes, result in shown:
        _positions(axes, result)
    figure.supxlabel("position in the sequence", fontsize="medium")
    figure.supylabel("tokens selected", fontsize="medium")
    _finish(figure, shown, "depth", {"causal rule": _CAUSAL, "training rule": _TRAINING})
    return figure


def expert_figure(suite: Suite) -> Figure | None:
    """The load of the experts of each layer; None without experts."""
    figure, shown = _panels(suite, "experts")
    if figure is None:
        return None
    styles = {"even load": DOTTED}
    for axes, result in shown:
        no_ops = result.run.router.options.get("no_op_experts")
        no_ops = no_ops if isinstance(no_ops, int) else 0
        _loads(axes, _layers(result, "experts"), no_ops)
        styles |= {"no-op experts, ranked apart": _NO_OP} if no_ops else {}
    figure.supxlabel("rank of the expert by load", fontsize="medium")
    figure.supylabel("load / even load", fontsize="medium")
    _finish(figure, shown, "experts", styles)
    return figure


def _layers(result: Result, part: str) -> list[Any]:
    """The layers of ``part``, depth or experts, under the causal rule."""
    return [*getattr(result.routing.causal, part)] if result.routing else []


def _panels(suite: Suite, part: str) -> tuple[Figure | None, list[tuple[Axes, Result]]]:
    """A figure with a titled panel for each row whose routing has a ``part``, with its first finished
    result; None if there are none."""
    first = ((row, suite.finished(row)[0]) for row in suite.rows if row["seeds"])
    shown = [(row, result) for row, result in first if _layers(result, part)][:MOST_ROWS]
    if not shown:
        return None, []
    figure, every = panels(len(shown), 0.35 * WIDTH, sharey=True)
    for axes, (row, _) in zip(every, shown, strict=True):
        axes.set_title(row["row"] + " (not ranked)" * bool(row["unranked"]))
    return figure, [*zip(every, (result for _, result in shown), strict=True)]


def _positions(axes: Axes, result: Result) -> None:
    routing = result.routing
    assert routing is not None  # as in all panels
    together = -(-(len(routing.edges) - 1) // _POSITIONS)
    edges = sorted({*routing.edges[::together], routing.edges[-1]})
    tokens = [(high - low) * routing.windows for low, high in pairwise(edges)]
    colors = _colors(len(routing.causal.depth))
    for rule, style in ((routing.topk, _TRAINING), (routing.causal, _CAUSAL)):
        for layer, color in zip(rule.depth, colors, strict=False):
            routed = layer.routed
            sums = (sum(routed[at : at + together]) for at in range(0, len(routed), together))
            shares = [count / of for count, of in zip(sums, tokens, strict=True)]
            axes.stairs(shares, edges, baseline=None, color=color, **style)
    axes.set_xlim(0, edges[-1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _loads(axes: Axes, layers: list[ExpertLayer], no_ops: int) -> None:
    """Draw loads, busiest first. The last ``no_ops`` experts of a layer are no-ops, ranked apart."""
    for layer, color in zip(layers, _colors(len(layers)), strict=True):
        real = len(layer.load) - no_ops
        mean = sum(layer.load) / len(layer.load)
        for experts, style in ((layer.load[:real], _EXPERT), (layer.load[real:], _NO_OP)):
            ratios = [load / mean if mean else 0 for load in sorted(experts, reverse=True)]
            if ratios:
                axes.plot(range(1, len(ratios) + 1), ratios, color=color, **style)
    axes.axhline(1, **DOTTED)


def _colors(count: int) -> list[Any]:
    """Colours from the first layer to the last, without the palest ones."""
    shades = mpl.colormaps["viridis"]
    return [shades(0.8 * index / max(count - 1, 1)) for index in range(count)]


def _finish(
    figure: Figure,
    shown: Sequence[tuple[Axes, Result]],
    part: str,
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """Set ticks; add a legend of the layers and ``styles``. The layers of panels that differ in them are
    named in each panel."""
    layers = [[layer.layer for layer in _layers(result, part)] for _, result in shown]
    handles: dict[str, Any] = {}
    for (axes, _), numbers in zip(shown, layers, strict=True):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylim(bottom=0)
        named = _named(numbers)
        if numbers == layers[0]:
            handles |= named
        else:
            axes.legend(named.values(), named, fontsize="small", frameon=True)
    handles |= {name: Line2D([], [], **{"color": REFERENCE, **of}) for name, of in styles.items()}
    legend_below(figure, handles, columns=4)


def _named(layers: Sequence[int]) -> dict[str, Line2D]:
    """Handles of all ``layers``, or of the first and the last of more than `NAMED`."""
    named = range(len(layers)) if len(layers) <= NAMED else (0, len(layers) - 1)
    colors = _colors(len(layers))
    return {
        f"layer {layers[index]}": Line2D([], [], color=colors[index], linewidth=1.6) for index in named
    }
