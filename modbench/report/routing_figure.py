"""Two figures of routing on held-out text: selected tokens by position and by router score, for depth
routing and expert choice; and the load of experts. One strip or panel per row, summed over seeds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from modbench.report.leaderboard import Leaderboard
from modbench.report.plot_style import (
    DOTTED,
    REFERENCE,
    WIDTH,
    files,
    look,
    row_names,
    say_nothing_to_show,
    sheet,
)
from modbench.report.routing import busiest_first, pooled, taken_by_experts

#: Largest number of strips or panels, in the table's order.
MOST_ROWS = 12
#: Largest number of position bins; finer ones show noise only.
_POSITIONS = 16

_WIDTH, _STRIP, _MARGIN = 9.0, 2.5, 0.5  # inches
_SKIPPED = "0.82"
_TRAINING: dict[str, Any] = {"linestyle": (0, (1, 1.2)), "linewidth": 1.1}
_CAUSAL: dict[str, Any] = {"linewidth": 1.6}
_EVEN: dict[str, Any] = DOTTED | {"linewidth": 1.2}
_EXPERT: dict[str, Any] = {"marker": "o", "markersize": 3}
_NO_OP: dict[str, Any] = _EXPERT | {"linestyle": (0, (2, 1))}


@dataclass(frozen=True)
class _Strip:
    """Contents of one strip. ``part``: ``depth``, or ``taken`` for expert choice."""

    title: str
    part: str
    seeds: int
    causal: dict[str, Any]
    training: dict[str, Any]

    def lines(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Counts and style of each line: the training rule's, then the causal rule's, by layer."""
        pairs = list(zip(self.training[self.part], self.causal[self.part], strict=True))
        for (training, causal), color in zip(pairs, _colors(len(pairs)), strict=True):
            yield training, {"color": color, **_TRAINING}
            yield causal, {"color": color, **_CAUSAL}


def routing_figures(board: Leaderboard) -> dict[str, bytes]:
    """Both figures of ``board``, by file name."""
    contents = {}
    for name, draw in (("routing", depth_figure), ("expert_load", expert_figure)):
        with look():
            contents.update(files(name, draw(board)))
    return contents


def depth_figure(board: Leaderboard) -> Figure:
    """For each depth-routed row, the share of selected tokens by position and the router scores in the
    first and last routed layer. For each expert-choice row, the share of tokens with any expert by
    position, and the number of experts per token."""
    found = _strips(board)
    strips = found[:MOST_ROWS]
    if not strips:
        return _nothing("no run has depth-routed layers or experts that choose tokens")
    figure = _spaced(_WIDTH, _STRIP * len(strips) + _MARGIN)
    parts = figure.subfigures(len(strips), 1, squeeze=False).flat
    for part, strip in zip(parts, strips, strict=True):
        part.suptitle(strip.title, x=0.01, ha="left", fontsize=11)
        draw: Callable[[SubFigure, _Strip], None] = _draw_depth if strip.part == "depth" else _draw_taken
        draw(part, strip)
    handles: list[Any] = [Line2D([], [], color=REFERENCE, **style) for style in (_CAUSAL, _TRAINING)]
    labels = ["causal rule", "training rule"]
    if any(strip.part == "depth" for strip in strips):
        handles += [Patch(color=REFERENCE), Patch(color=_SKIPPED)]
        labels += ["selected", "skipped (causal rule)"]
    _legend(figure, handles, labels, len(found))
    return figure


def _strips(board: Leaderboard) -> list[_Strip]:
    found = []
    texts = row_names(board.entries)
    for entry in board.entries:
        routings = entry.row.routings
        if not routings:
            continue
        causal, training = (
            pooled(routings, rule) | {"taken": taken_by_experts(routings, rule)}
            for rule in ("causal", "topk")
        )
        seeds = f"{len(routings)} seeds, " if len(routings) > 1 else ""
        tokens = f"{seeds}{causal['windows'] * causal['sequence']:,} held-out tokens"
        name = texts[entry.row.label]
        for part, title in (("depth", name), ("taken", f"{name}, by its experts' choice")):
            if causal[part]:
                found.append(_Strip(f"{title}: {tokens}", part, len(routings), causal, training))
    return found


def _draw_depth(part: SubFigure, strip: _Strip) -> None:
    layers = strip.causal["depth"]
    scored = [pair for pair in zip(layers, _colors(len(layers)), strict=True) if pair[0]["gates"]]
    ends = scored[:1] + scored[1:][-1:]
    by_position, *by_weight = _panels(part, 1 + len(ends))
    _positions(by_position, strip, "routed", "tokens selected")
    for axes, (layer, color) in zip(by_weight, ends, strict=True):
        _weights(axes, layer, color, strip.seeds)


def _draw_taken(part: SubFigure, strip: _Strip) -> None:
    by_position, by_number = _panels(part, 2)
    _positions(by_position, strip, "taken", "tokens chosen")
    for layer, style in strip.lines():
        shares = [count / sum(layer["by_taken"]) for count in layer["by_taken"]]
        by_number.plot(range(len(shares)), shares, **style)
    by_number.set_xlim(left=0)
    by_number.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    by_number.set_xlabel("experts per token")
    by_number.set_ylim(bottom=0)
    _percent(by_number, "tokens")


def _panels(part: SubFigure, count: int) -> list[Axes]:
    """Panels side by side, the first slightly wider."""
    found = part.subplots(1, count, squeeze=False, width_ratios=(1.25, *[1.0] * (count - 1)))
    return list(found.flat)


def _positions(axes: Axes, strip: _Strip, counted: str, label: str) -> None:
    """Share of tokens in ``counted`` by position, one line per layer and rule."""
    causal = strip.causal
    together = -(-(len(causal["edges"]) - 1) // _POSITIONS)
    edges = sorted({*causal["edges"][::together], causal["edges"][-1]})
    tokens = [(high - low) * causal["windows"] for low, high in pairwise(edges)]
    for layer, style in strip.lines():
        starts = range(0, len(layer[counted]), together)
        counts = [sum(layer[counted][start : start + together]) for start in starts]
        shares = [count / of for count, of in zip(counts, tokens, strict=True)]
        axes.stairs(shares, edges, baseline=None, **style)
    axes.set_xlim(0, edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("position in the sequence")
    _name_layers(axes, [layer["layer"] for layer in causal[strip.part]])
    _percent(axes, label)


def _weights(axes: Axes, layer: dict[str, Any], color: Any, seeds: int) -> None:
    """Histograms of the router scores of all tokens and of the selected ones."""
    gates = layer["gates"]
    width, tokens = 2.0 ** gates["exponent"], sum(gates["all"])
    edges = [(gates["first"] + number) * width for number in range(len(gates["all"]) + 1)]
    for counts, shade in ((gates["all"], _SKIPPED), (gates["selected"], color)):
        axes.stairs([count / tokens for count in counts], edges, fill=True, color=shade, zorder=2)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    first = " (first seed)" if seeds > 1 else ""
    axes.set_xlabel(f"router score, layer {layer['layer']}{first}")
    _percent(axes, "tokens")


def expert_figure(board: Leaderboard) -> Figure:
    """Load of the experts of each row, one line per layer."""
    found = [
        entry
        for entry in board.entries
        if any(routing["causal"]["experts"] for routing in entry.row.routings)
    ]
    rows = found[:MOST_ROWS]
    if not rows:
        return _nothing("no run has experts")
    columns = min(len(rows), 2 if len(rows) == 4 else 3)
    lines = -(-len(rows) // columns)
    figure = _spaced(_WIDTH if columns > 1 else WIDTH, _STRIP * lines + _MARGIN)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    handles, labels = [Line2D([], [], color=REFERENCE, **_EVEN)], ["even load"]
    texts = row_names(board.entries)
    for axes, entry in zip(panels, rows, strict=False):
        no_ops = entry.row.cell["router"]["options"].get("no_op_experts")
        no_ops = no_ops if isinstance(no_ops, int) else 0
        _loads(axes, busiest_first(entry.row.routings, "causal", no_ops))
        axes.set_title(texts[entry.row.label])
        if no_ops and len(labels) == 1:
            handles.append(Line2D([], [], color=REFERENCE, **_NO_OP))
            labels.append("no-op experts")
    _legend(figure, handles, labels, len(found))
    return figure


def _loads(axes: Axes, layers: dict[int, tuple[list[int], list[int]]]) -> None:
    for (experts, no_ops), color in zip(layers.values(), _colors(len(layers)), strict=True):
        loads = experts + no_ops
        mean = sum(loads) / len(loads)
        ratios = [load / mean if mean else 0 for load in loads]
        places, real = range(1, len(loads) + 1), len(experts)
        axes.plot(places[:real], ratios[:real], color=color, **_EXPERT)
        axes.plot(places[real:], ratios[real:], color=color, **_NO_OP)
    axes.axhline(1, color=REFERENCE, **_EVEN)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("experts, busiest first")
    axes.set_ylabel("load / even load")
    _name_layers(axes, list(layers))


def _colors(count: int) -> list[Any]:
    """Colours from the first layer to the last, without the palest ones."""
    shades = mpl.colormaps["viridis"]
    return [shades(0.8 * index / max(count - 1, 1)) for index in range(count)]


def _percent(axes: Axes, label: str) -> None:
    """Format the y axis in percent."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %" if share <= 1 else "")
    axes.set_ylabel(label)


def _name_layers(axes: Axes, layers: Sequence[int]) -> None:
    """Add a legend above the lines, which names the first and the last of the ``layers``."""
    colors = _colors(len(layers))
    named = sorted({0, len(layers) - 1})
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    axes.legend(
        [Line2D([], [], color=colors[index], linewidth=1.6) for index in named],
        [f"layer {layers[index]}" for index in named],
        loc="upper center",
        ncols=2,
        fontsize=9,
        handlelength=1.2,
        borderaxespad=0.2,
        framealpha=1,  # no grid lines through names
        edgecolor="none",
    )


def _spaced(width: float, height: float) -> Figure:
    """A figure with extra room between panels."""
    figure = sheet(width, height)
    figure.set_layout_engine("constrained", wspace=0.06, hspace=0.06)
    return figure


def _legend(figure: Figure, handles: list[Any], labels: list[str], found: int) -> None:
    """Add the legend; it says if not all ``found`` rows are shown."""
    if found > MOST_ROWS:
        handles = [*handles, Line2D([], [], linestyle="none")]
        labels = [*labels, f"the first {MOST_ROWS} of {found}"]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _nothing(why: str) -> Figure:
    figure = sheet()
    say_nothing_to_show(figure.add_subplot(), why)
    return figure
