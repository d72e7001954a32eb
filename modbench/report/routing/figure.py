"""Figures of routing on held-out text: selected tokens by position, and the load of experts, one panel
per row, one line per layer, of the first finished seed; and router weights (Raposo et al. 2024, figure
5), histograms of each depth-routed layer, of selected tokens against the others."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from modbench.records.sections import ExpertLayer, Routing, Weights
from modbench.report.leaderboard.board import Board
from modbench.report.leaderboard.rows import Row
from modbench.report.plot_style import DOTTED, REFERENCE, WIDTH, Draws, legend_below, panels
from modbench.report.routing.cases import MOST_CASES, RoutingCase, with_weights

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


def routing_figures(board: Board) -> Draws:
    """The figures of ``board``."""
    return {"routing": partial(depth_figure, board), "expert_load": partial(expert_figure, board)}


def depth_figure(board: Board) -> Figure | None:
    """The share of tokens that each depth-routed layer selects, by position; None without any."""
    figure, shown = _panels(board, "depth")
    if figure is None:
        return None
    for axes, row in shown:
        _positions(axes, row)
    figure.supxlabel("position in the sequence", fontsize="medium")
    figure.supylabel("tokens selected", fontsize="medium")
    _finish(figure, shown, "depth", {"causal rule": _CAUSAL, "training rule": _TRAINING})
    return figure


def expert_figure(board: Board) -> Figure | None:
    """The load of the experts of each layer; None without experts."""
    figure, shown = _panels(board, "experts")
    if figure is None:
        return None
    styles = {"even load": DOTTED}
    for axes, row in shown:
        no_ops = row["_first"].run.router.options.get("no_op_experts")
        no_ops = no_ops if isinstance(no_ops, int) else 0
        _loads(axes, _routing(row).causal.experts, no_ops)
        styles |= {"no-op experts, ranked apart": _NO_OP} if no_ops else {}
    figure.supxlabel("rank of the expert by load", fontsize="medium")
    figure.supylabel("load / even load", fontsize="medium")
    _finish(figure, shown, "experts", styles)
    return figure


def _routing(row: Row) -> Routing:
    routing: Routing = row["_ok"][0].routing
    return routing


def _layers(row: Row, part: str) -> list[Any]:
    """The layers of ``part``, depth or experts, under the causal rule."""
    routing = row["_ok"][0].routing
    return list(getattr(routing.causal, part)) if routing else []


def _panels(board: Board, part: str) -> tuple[Figure | None, list[tuple[Axes, Row]]]:
    """A figure with a titled panel for each row whose routing has a ``part``; None if there are none."""
    rows = [row for row in board.rows if row["_ok"] and _layers(row, part)][:MOST_ROWS]
    if not rows:
        return None, []
    figure, every = panels(len(rows), 0.35 * WIDTH, sharey=True)
    for axes, row in zip(every, rows, strict=True):
        axes.set_title(row["_name"] + " (not ranked)" * bool(row["_unranked"]))
    return figure, [*zip(every, rows, strict=True)]


def _positions(axes: Axes, row: Row) -> None:
    routing = _routing(row)
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
    shown: Sequence[tuple[Axes, Row]],
    part: str,
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """Set ticks; add a legend of the layers and ``styles``. The layers of panels that differ in them are
    named in each panel."""
    layers = [[layer.layer for layer in _layers(row, part)] for _, row in shown]
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


#: Largest number of layers drawn of a run, spread evenly from the first to the last.
MOST_LAYERS = 4
_SKIPPED, _SELECTED = "0.82", mpl.colormaps["Blues"](0.8)
_TRAINING_STYLE: dict[str, Any] = _TRAINING | {"color": "0.1"}
#: Share of all tokens below and above the axis: a few far out would leave no room for the others.
_BEYOND = 0.005


def weight_figure(cases: Sequence[RoutingCase]) -> Figure | None:
    """A panel per layer of each run: shares of held-out tokens under the causal rule. None if no case
    has router weights."""
    shown = [
        (case, layer)
        for case in with_weights(cases)[:MOST_CASES]
        for layer in _spread(sorted(case.weights("causal")))
    ]
    if not shown:
        return None
    figure, every = panels(len(shown), 0.3 * WIDTH)
    for axes, (case, layer) in zip(every, shown, strict=True):
        axes.set_title(f"{case.record.scheme}, layer {layer}")
        _draw_layer(axes, case.weights("causal")[layer], case.weights("topk").get(layer))
    figure.supxlabel("router weight", fontsize="medium")
    figure.supylabel("tokens", fontsize="medium")
    handles = {"selected, causal rule": Patch(facecolor=_SELECTED)}
    handles["not selected"] = Patch(facecolor=_SKIPPED)
    legend_below(figure, handles | {"selected, training rule": Line2D([], [], **_TRAINING_STYLE)})
    return figure


def _spread(layers: Sequence[int]) -> list[int]:
    chosen = np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS)).round().astype(int)
    return [layers[index] for index in chosen]


def _edges(weights: Weights) -> np.ndarray:
    return (weights.first + np.arange(len(weights.all) + 1)) * 2.0**weights.exponent


def _draw_layer(axes: Axes, causal: Weights, training: Weights | None) -> None:
    edges, total = _edges(causal), max(sum(causal.all), 1)
    every, selected = (np.array(counts) / total for counts in (causal.all, causal.selected))
    axes.stairs(every, edges, fill=True, baseline=selected, color=_SKIPPED)
    axes.stairs(selected, edges, fill=True, color=_SELECTED)
    if training is not None:
        shares = np.array(training.selected) / max(sum(training.all), 1)
        shares = shares * 2.0 ** (causal.exponent - training.exponent)  # of bins as wide
        axes.stairs(shares, _edges(training), **_TRAINING_STYLE)
    below = np.cumsum(every)
    first, last = np.searchsorted(below, (_BEYOND, below[-1] - _BEYOND))
    axes.set_xlim(edges[first], edges[last + 1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
