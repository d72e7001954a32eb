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
    _legend(figure, {"causal rule": _CAUSAL, "training rule": _TRAINING})
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
        styles |= {"no-op experts": _NO_OP} if no_ops else {}
    _legend(figure, styles)
    return figure


def _routing(row: Row) -> dict[str, Any]:
    return row.ok[0].routing


def _panels(board: Leaderboard, part: str) -> tuple[Figure | None, list[tuple[Axes, Row]]]:
    """A figure with a titled panel for each row whose routing has a ``part``; None if there are none."""
    found = [e.row for e in board.entries if e.row.ok and _routing(e.row).get("causal", {}).get(part)]
    rows = found[:MOST_ROWS]
    if not rows:
        return None, []
    columns = min(len(rows), 2 if len(rows) == 4 else 3)
    lines = -(-len(rows) // columns)
    figure = sheet(_WIDTH if columns > 1 else WIDTH, _PANEL * lines + _MARGIN)
    figure.set_layout_engine("constrained", wspace=0.06, hspace=0.06)
    if len(found) > len(rows):
        figure.suptitle(f"the first {len(rows)} of {len(found)} rows")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
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
    axes.set_ylabel("tokens selected")
    _finish(axes, layers)


def _loads(axes: Axes, layers: list[dict[str, Any]], no_ops: int) -> None:
    """Draw loads, busiest first; the last ``no_ops`` experts of a layer are no-ops."""
    for layer, color in zip(layers, _colors(len(layers)), strict=True):
        real = len(layer["load"]) - no_ops
        mean = sum(layer["load"]) / len(layer["load"])
        loads = sorted(layer["load"][:real], reverse=True) + sorted(layer["load"][real:], reverse=True)
        ratios = [load / mean if mean else 0 for load in loads]
        places = range(1, len(loads) + 1)
        axes.plot(places[:real], ratios[:real], color=color, **_EXPERT)
        axes.plot(places[real:], ratios[real:], color=color, **_NO_OP)
    axes.axhline(1, color=REFERENCE, **DOTTED)
    axes.set_xlabel("experts, busiest first")
    axes.set_ylabel("load / even load")
    _finish(axes, layers)


def _colors(count: int) -> list[Any]:
    """Colours from the first layer to the last, without the palest ones."""
    shades = mpl.colormaps["viridis"]
    return [shades(0.8 * index / max(count - 1, 1)) for index in range(count)]


def _finish(axes: Axes, layers: Sequence[dict[str, Any]]) -> None:
    """Set ticks, and add a legend above the lines, which names all ``layers``, or the first and the last
    of more than `NAMED`."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    colors = _colors(len(layers))
    named = range(len(layers)) if len(layers) <= NAMED else (0, len(layers) - 1)
    axes.legend(
        [Line2D([], [], color=colors[index], linewidth=1.6) for index in named],
        [f"layer {layers[index]['layer']}" for index in named],
        loc="upper center",
        ncols=len(named),
        fontsize=9,
        handlelength=1.2,
        borderaxespad=0.2,
        framealpha=1,  # no grid lines through names
        edgecolor="none",
    )


def _legend(figure: Figure, styles: dict[str, dict[str, Any]]) -> None:
    handles = [Line2D([], [], color=REFERENCE, **style) for style in styles.values()]
    figure.legend(handles, list(styles), loc="outside lower center", ncols=len(styles), frameon=False)
