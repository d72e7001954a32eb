"""Two figures of routing on held-out text: who enters the blocks that tokens skip, by position and by
the router's weight; and how evenly experts are loaded. One strip or panel to each row of the table, its
seeds added up."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from modbench.report.canvas import REFERENCE, files, look, plain, say_nothing_to_show, sheet
from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.routing import busiest_first, pooled

#: Rows that are drawn, in the table's order: a page of more nobody reads.
MOST_ROWS = 12
#: Bins of positions that are drawn: in finer ones chance is all that shows.
_POSITIONS = 16

_WIDTH, _STRIP, _MARGIN, _BESIDE = 9.0, 2.5, 0.5, 3  # inches, and panels that stand side by side
_SKIPPED = "0.82"
_TRAINING: dict[str, Any] = {"linestyle": (0, (1, 1.2)), "linewidth": 1.1}
_CAUSAL: dict[str, Any] = {"linewidth": 1.6}
_EVEN: dict[str, Any] = {"linestyle": (0, (1, 1)), "linewidth": 1.2}
_EXPERTS: tuple[dict[str, Any], dict[str, Any]] = (
    {"marker": "o", "markersize": 3},
    {"marker": "o", "markersize": 3, "linestyle": (0, (2, 1))},
)
_TICK_STEPS = (1, 2, 5, 10)


def routing_figures(board: Leaderboard) -> dict[str, bytes]:
    """Both figures of ``board``, by file name."""
    contents = {}
    for name, draw in (("routing", depth_figure), ("expert_load", expert_figure)):
        with look():
            for ending, content in files(draw(board)).items():
                contents[f"{name}.{ending}"] = content
    return contents


def depth_figure(board: Leaderboard) -> Figure:
    """To each row the share of tokens that enter by position, and the router's weights in the first and
    the last layer that tokens skip."""
    rows = _rows(board, "depth")
    if not rows:
        return _nothing("no run has a layer that tokens skip")
    figure = _spaced(_WIDTH, _STRIP * len(rows) + _MARGIN)
    strips = figure.subfigures(len(rows), 1, squeeze=False).flat
    for part, (entry, routings) in zip(strips, rows, strict=True):
        causal, training = (pooled(routings, rule) for rule in ("causal", "topk"))
        tokens = causal["windows"] * causal["sequence"]
        seeds = f"{len(routings)} seeds, " if len(routings) > 1 else ""
        title = f"{_name(entry)}: {seeds}{tokens:,} held-out tokens"
        part.suptitle(title, x=0.01, ha="left", fontsize=11)
        by_position, *by_weight = part.subplots(1, _BESIDE, width_ratios=(1.25, 1, 1))
        colors = _colors(len(causal["depth"]))
        _positions(by_position, causal, training, colors)
        weighed = [pair for pair in zip(causal["depth"], colors, strict=True) if pair[0]["gates"]]
        for axes, place in zip(by_weight, (0, -1), strict=True):
            if len(weighed) > -place:
                _weights(axes, *weighed[place])
            else:
                axes.set_axis_off()
    handles = [
        Line2D([], [], color=REFERENCE, **_CAUSAL),
        Line2D([], [], color=REFERENCE, **_TRAINING),
        Patch(color=REFERENCE),
        Patch(color=_SKIPPED),
    ]
    _legend(figure, handles, ["causal rule", "training rule", "enters", "passes by (causal rule)"])
    return figure


def _positions(
    axes: Axes, causal: dict[str, Any], training: dict[str, Any], colors: Sequence[Any]
) -> None:
    """The share of tokens that enter, by position, a line to each layer and rule."""
    together = -(-(len(causal["edges"]) - 1) // _POSITIONS)
    edges = sorted({*causal["edges"][::together], causal["edges"][-1]})
    tokens = [(high - low) * causal["windows"] for low, high in pairwise(edges)]
    in_training = {layer["layer"]: layer for layer in training["depth"]}
    for layer, color in zip(causal["depth"], colors, strict=True):
        for rule, style in ((in_training.get(layer["layer"]), _TRAINING), (layer, _CAUSAL)):
            if rule is None:
                continue
            starts = range(0, len(rule["routed"]), together)
            counts = [sum(rule["routed"][start : start + together]) for start in starts]
            shares = [count / of for count, of in zip(counts, tokens, strict=True)]
            axes.stairs(shares, edges, baseline=None, color=color, **style)
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("position in the sequence")
    _percent(axes, "tokens that enter")
    _name_layers(axes, [layer["layer"] for layer in causal["depth"]], colors)


def _weights(axes: Axes, layer: dict[str, Any], color: Any) -> None:
    """The router's weights of all tokens, and the part of them that enters."""
    gates = layer["gates"]
    width, tokens = 2.0 ** gates["exponent"], sum(gates["all"])
    edges = [(gates["first"] + number) * width for number in range(len(gates["all"]) + 1)]
    for counts, shade in ((gates["all"], _SKIPPED), (gates["selected"], color)):
        axes.stairs([count / tokens for count in counts], edges, fill=True, color=shade, zorder=2)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
    axes.set_xlabel(f"router's weight, layer {layer['layer']}")
    _percent(axes, "tokens")


def expert_figure(board: Leaderboard) -> Figure:
    """To each row the load of its experts, a line to each layer."""
    rows = _rows(board, "experts")
    if not rows:
        return _nothing("no run has experts")
    lines = -(-len(rows) // _BESIDE)
    figure = _spaced(_WIDTH, _STRIP * lines + _MARGIN)
    panels = list(figure.subplots(lines, _BESIDE, squeeze=False).flat)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    some_do_nothing = False
    for axes, (entry, routings) in zip(panels, rows, strict=False):
        no_ops = entry.row.cell["router"]["options"].get("no_op_experts", 0)
        some_do_nothing |= no_ops > 0
        _loads(axes, busiest_first(routings, "causal", no_ops))
        axes.set_title(_name(entry))
    handles, labels = [Line2D([], [], color=REFERENCE, **_EVEN)], ["even load"]
    if some_do_nothing:
        handles.append(Line2D([], [], color=REFERENCE, **_EXPERTS[1]))
        labels.append("experts that do nothing")
    _legend(figure, handles, labels)
    return figure


def _loads(axes: Axes, layers: dict[int, tuple[list[int], list[int]]]) -> None:
    colors = _colors(len(layers))
    for parts, color in zip(layers.values(), colors, strict=True):
        mean = sum(map(sum, parts)) / sum(map(len, parts))
        first = 1
        for loads, style in zip(parts, _EXPERTS, strict=True):
            places = range(first, first + len(loads))
            axes.plot(places, [load / mean if mean else 0 for load in loads], color=color, **style)
            first += len(loads)
    axes.axhline(1, color=REFERENCE, **_EVEN)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
    axes.set_xlabel("experts, busiest first")
    axes.set_ylabel("load / even load")
    _name_layers(axes, list(layers), colors)


def _rows(board: Leaderboard, part: str) -> list[tuple[Entry, list[dict[str, Any]]]]:
    """Rows that have layers with ``part`` (depth or experts), and their seeds' routing."""
    found = []
    for entry in board.entries:
        routings = [record.routing for record in entry.row.ok if record.routing]
        if any(routing["causal"][part] for routing in routings):
            found.append((entry, routings))
    return found[:MOST_ROWS]


def _name(entry: Entry) -> str:
    return plain(entry.row.label) + ("" if entry.rank is not None else " (not ranked)")


def _colors(count: int) -> list[Any]:
    """From the first layer to the last; without the palest end, which white paper swallows."""
    shades = mpl.colormaps["viridis"]
    return [shades(0.8 * index / max(count - 1, 1)) for index in range(count)]


def _percent(axes: Axes, label: str) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axes.set_ylabel(label)


def _name_layers(axes: Axes, numbers: list[int], colors: Sequence[Any]) -> None:
    """A legend above the lines, where it covers none; of many layers the first and the last."""
    _, top = axes.get_ylim()
    axes.set_ylim(0, 1.2 * top)
    shown = range(len(numbers)) if len(numbers) <= 4 else (0, len(numbers) - 1)
    axes.legend(
        [Line2D([], [], color=colors[index], linewidth=1.6) for index in shown],
        [f"layer {numbers[index]}" if index == 0 else f"{numbers[index]}" for index in shown],
        loc="upper center",
        ncols=len(shown),
        fontsize=9,
        handlelength=1.2,
        columnspacing=1,
        handletextpad=0.5,
        frameon=False,
    )


def _spaced(width: float, height: float) -> Figure:
    """A sheet with room between panels, for no label to be read as the neighbour's."""
    figure = sheet(width, height)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(wspace=0.06, hspace=0.06)  # type: ignore[call-arg]
    return figure


def _legend(figure: Figure, handles: list[Any], labels: list[str]) -> None:
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _nothing(why: str) -> Figure:
    figure = sheet()
    say_nothing_to_show(figure.add_subplot(), why)
    return figure
