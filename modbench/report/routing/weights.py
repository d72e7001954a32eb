"""Figure of router weights (Raposo et al. 2024, figure 5): histograms of each depth-routed layer, of
selected tokens against the others."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from modbench.report.plot_style import WIDTH, drawn_files, legend_below, sheet
from modbench.report.routing.cases import MOST_CASES, RoutingCase, with_weights

#: Largest number of layers drawn of a run, spread evenly from the first to the last.
MOST_LAYERS = 4
_SKIPPED, _SELECTED = "0.82", mpl.colormaps["Blues"](0.8)
_TRAINING: dict[str, Any] = {"color": "0.1", "linestyle": (0, (1, 1.2)), "linewidth": 1.2}
_PANEL = 1.75  #: inches
#: Share of all tokens below and above the axis: a few far out would leave no room for the others.
_BEYOND = 0.005


def weight_files(cases: Sequence[RoutingCase]) -> dict[str, bytes]:
    """The figure of ``cases``, by file name; {} if none has router weights."""
    draws = {"router_weights": partial(weight_figure, cases)}
    return drawn_files(draws) if with_weights(cases) else {}


def weight_figure(cases: Sequence[RoutingCase]) -> Figure:
    """A panel per layer of each run: shares of held-out tokens under the causal rule."""
    weighted = with_weights(cases)
    shown = weighted[:MOST_CASES]
    columns = min(max(len(case.weights("causal")) for case in shown), MOST_LAYERS)
    abreast = min(MOST_LAYERS // columns, len(shown))
    lines = -(-len(shown) // abreast)
    figure = sheet(2 * WIDTH * columns * abreast / MOST_LAYERS, _PANEL * lines)
    if len(weighted) > len(shown):
        figure.suptitle(f"the first {len(shown)} of {len(weighted)} schemes")
    parts = figure.subfigures(lines, abreast, squeeze=False).flat
    for part, case in zip(parts, shown, strict=False):
        _draw_case(part, case, columns)
    legend_below(
        figure,
        {
            "selected, causal rule": Patch(facecolor=_SELECTED),
            "not selected": Patch(facecolor=_SKIPPED),
            "selected, training rule": Line2D([], [], **_TRAINING),
        },
    )
    return figure


def _draw_case(part: SubFigure, case: RoutingCase, columns: int) -> None:
    causal, training = case.weights("causal"), case.weights("topk")
    layers = _spread(sorted(causal))
    left_out = f" ({len(layers)} of {len(causal)} layers)" if len(layers) < len(causal) else ""
    part.suptitle(case.name + left_out, x=0.01, ha="left", fontsize=11)
    panels = part.subplots(1, columns, squeeze=False)[0]
    for axes in panels[len(layers) :]:
        axes.set_axis_off()
    for axes, layer in zip(panels, layers, strict=False):
        _draw_layer(axes, causal[layer], training.get(layer))
        axes.set_title(f"layer {layer}", fontsize=10)
    panels[0].set_ylabel("tokens", fontsize=10)


def _spread(layers: Sequence[int]) -> list[int]:
    chosen = np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS)).round().astype(int)
    return [layers[index] for index in chosen]


def _edges(weights: dict[str, Any]) -> np.ndarray:
    return (weights["first"] + np.arange(len(weights["all"]) + 1)) * 2.0 ** weights["exponent"]


def _draw_layer(axes: Axes, causal: dict[str, Any], training: dict[str, Any] | None) -> None:
    edges, total = _edges(causal), max(sum(causal["all"]), 1)
    every, selected = (np.array(causal[name]) / total for name in ("all", "selected"))
    axes.stairs(every, edges, fill=True, baseline=selected, color=_SKIPPED)
    axes.stairs(selected, edges, fill=True, color=_SELECTED)
    if training is not None:
        shares = np.array(training["selected"]) / max(sum(training["all"]), 1)
        shares = shares * 2.0 ** (causal["exponent"] - training["exponent"])  # of bins as wide
        axes.stairs(shares, _edges(training), **_TRAINING)
    below = np.cumsum(every)
    first, last = np.searchsorted(below, (_BEYOND, below[-1] - _BEYOND))
    axes.set_xlim(edges[first], edges[last + 1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.tick_params(labelsize=9)
    axes.set_xlabel("router weight", fontsize=10)
