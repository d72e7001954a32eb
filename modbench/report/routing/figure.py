"""Two figures of routing on held-out text: selected tokens by position, and the load of experts. One
panel per row, one line per layer, of the first finished seed."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.row import Row
from modbench.report.plot_style import (
    DOTTED,
    REFERENCE,
    WIDTH,
    drawn_files,
    legend_below,
    row_names,
    sheet,
)

#: Largest number of panels, in the table's order.
MOST_ROWS = 12
#: Largest number of layers that are all named.
NAMED = 4
#: Largest number of position bins; finer ones show noise only.
_POSITIONS = 16

_WIDTH, _PANEL, _MARGIN = 9.0, 2.5, 0.5  # inches
_TRAINING: dict[str, Any] = {"linestyle": (0, (1, 1.2)), "linewidth": 1.1}
_CAUSAL: dict[str, Any] = {"linewidth": 1.6}
_EXPERT: dict[str, Any] = {"marker": "o", "markersize": 3}
_NO_OP: dict[str, Any] = _EXPERT | {"linestyle": (0, (2, 1))}


def routing_figures(board: Leaderboard) -> dict[str, bytes]:
    """Those of both figures that ``board`` has data of, by file name."""
    return drawn_files(
        {"routing": partial(depth_figure, board), "expert_load": partial(expert_figure, board)}
    )


def depth_figure(board: Leaderboard) -> Figure | None:
    """The share of tokens that each depth-routed layer selects, by position; None without any."""
    figure, panels = _panels(board, "depth")
    if figure is None:
        return None
    for axes, row in panels:
        _positions(axes, row)
    _finish(figure, panels, "depth", {"causal rule": _CAUSAL, "training rule": _TRAINING})
    return figure


def expert_figure(board: Leaderboard) -> Figure | None:
    """The load of the experts of each layer; None without experts."""
    figure, panels = _panels(board, "experts")
    if figure is None:
        return None
    styles = {"even load": DOTTED}
    for axes, row in panels:
        no_ops = row.run.router.options.get("no_op_experts")
        no_ops = no_ops if isinstance(no_ops, int) else 0
        _loads(axes, _routing(row)["causal"]["experts"], no_ops)
        styles |= {"no-op experts, ranked apart": _NO_OP} if no_ops else {}
    _finish(figure, panels, "experts", styles)
    return figure


def _routing(row: Row) -> dict[str, Any]:
    return row.ok[0].routing


def _panels(board: Leaderboard, part: str) -> tuple[Figure | None, list[tuple[Axes, Row]]]:
    """A figure with a titled panel for each row whose routing has a ``part``; None if there are none."""
    routed = [e.row for e in board.entries if e.row.ok and _routing(e.row).get("causal", {}).get(part)]
    rows = routed[:MOST_ROWS]
    if not rows:
        return None, []
    columns = min(len(rows), 2 if len(rows) == 4 else 3)
    lines = -(-len(rows) // columns)
    figure = sheet(_WIDTH if columns > 1 else WIDTH, _PANEL * lines + _MARGIN)
    figure.set_layout_engine("constrained", wspace=0.06, hspace=0.06)
    if len(routed) > len(rows):
        figure.suptitle(f"the first {len(rows)} of {len(routed)} rows")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    names = row_names(board.entries)
    for axes, row in zip(panels, rows, strict=False):
        axes.set_title(names[row.label])
    return figure, list(zip(panels, rows, strict=False))


def _positions(axes: Axes, row: Row) -> None:
    routing = _routing(row)
    together = -(-(len(routing["edges"]) - 1) // _POSITIONS)
    edges = sorted({*routing["edges"][::together], routing["edges"][-1]})
    tokens = [(high - low) * routing["windows"] for low, high in pairwise(edges)]
    layers = routing["causal"]["depth"]
    for rule, style in (("topk", _TRAINING), ("causal", _CAUSAL)):
        for layer, color in zip(routing[rule]["depth"], _colors(len(layers)), strict=False):
            routed = layer["routed"]
            sums = (sum(routed[at : at + together]) for at in range(0, len(routed), together))
            shares = [count / of for count, of in zip(sums, tokens, strict=True)]
            axes.stairs(shares, edges, baseline=None, color=color, **style)
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("position in the sequence")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _name_side(axes, "tokens selected")


def _loads(axes: Axes, layers: list[dict[str, Any]], no_ops: int) -> None:
    """Draw loads, busiest first. The last ``no_ops`` experts of a layer are no-ops, ranked apart."""
    for layer, color in zip(layers, _colors(len(layers)), strict=True):
        real = len(layer["load"]) - no_ops
        mean = sum(layer["load"]) / len(layer["load"])
        for experts, style in ((layer["load"][:real], _EXPERT), (layer["load"][real:], _NO_OP)):
            ratios = [load / mean if mean else 0 for load in sorted(experts, reverse=True)]
            if ratios:
                axes.plot(range(1, len(ratios) + 1), ratios, color=color, **style)
    axes.axhline(1, color=REFERENCE, **DOTTED)
    axes.set_xlabel("rank of the expert by load")
    _name_side(axes, "load / even load")


def _name_side(axes: Axes, text: str) -> None:
    """Name the common y axis of a line of panels at the first of them."""
    cell = axes.get_subplotspec()
    if cell is None or cell.is_first_col():
        axes.set_ylabel(text)


def _colors(count: int) -> list[Any]:
    """Colours from the first layer to the last, without the palest ones."""
    shades = mpl.colormaps["viridis"]
    return [shades(0.8 * index / max(count - 1, 1)) for index in range(count)]


def _finish(
    figure: Figure, panels: Sequence[tuple[Axes, Row]], part: str, styles: dict[str, dict[str, Any]]
) -> None:
    """Set ticks; add a legend of the layers and ``styles`` below the panels. The layers of panels that
    differ in them are named in each panel."""
    layers = [[layer["layer"] for layer in _routing(row)["causal"][part]] for _, row in panels]
    handles: dict[str, Any] = {}
    for (axes, _), numbers in zip(panels, layers, strict=True):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylim(bottom=0)
        named = _named(numbers)
        if numbers == layers[0]:
            handles |= named
        else:
            axes.legend(named.values(), named, fontsize=9, framealpha=1, edgecolor="none")
    handles |= {name: Line2D([], [], color=REFERENCE, **style) for name, style in styles.items()}
    legend_below(figure, handles)


def _named(layers: Sequence[int]) -> dict[str, Line2D]:
    """Handles of all ``layers``, or of the first and the last of more than `NAMED`."""
    named = range(len(layers)) if len(layers) <= NAMED else (0, len(layers) - 1)
    colors = _colors(len(layers))
    return {
        f"layer {layers[index]}": Line2D([], [], color=colors[index], linewidth=1.6) for index in named
    }
