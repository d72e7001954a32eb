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

from modbench.report.leaderboard import Entry, Leaderboard
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
_EXPERTS: tuple[dict[str, Any], dict[str, Any]] = (
    {"marker": "o", "markersize": 3},
    {"marker": "o", "markersize": 3, "linestyle": (0, (2, 1))},
)
_TICK_STEPS = (1, 2, 5, 10)
#: Largest number of lines in a legend.
_NAMED = 4


@dataclass(frozen=True)
class _Strip:
    """Contents of one strip."""

    title: str
    causal: dict[str, Any]
    training: dict[str, Any]
    names: dict[int, str]  #: of the layers shown
    draw: Callable[[SubFigure, "_Strip"], None]

    def layers(self, rule: dict[str, Any], part: str) -> list[dict[str, Any]]:
        return [layer for layer in rule[part] if layer["layer"] in self.names]

    def lines(self, part: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Counts and style of each line: the training rule's, then the causal rule's, by layer."""
        pairs = list(zip(self.layers(self.training, part), self.layers(self.causal, part), strict=True))
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
        return _nothing("no run has a layer that tokens skip, or experts that choose")
    figure = _spaced(_WIDTH, _STRIP * len(strips) + _MARGIN)
    parts = figure.subfigures(len(strips), 1, squeeze=False).flat
    for part, strip in zip(parts, strips, strict=True):
        part.suptitle(strip.title, x=0.01, ha="left", fontsize=11)
        strip.draw(part, strip)
    handles = [Line2D([], [], color=REFERENCE, **_CAUSAL), Line2D([], [], color=REFERENCE, **_TRAINING)]
    labels = ["causal rule", "training rule"]
    if any(strip.draw is _draw_depth for strip in strips):
        handles += [Patch(color=REFERENCE), Patch(color=_SKIPPED)]  # type: ignore[list-item]
        labels += ["enters", "passes by (causal rule)"]
    _legend(figure, handles, labels, len(found))
    return figure


def _strips(board: Leaderboard) -> list[_Strip]:
    found = []
    texts = row_names(board.entries)
    for entry in board.entries:
        routings = entry.row.routings
        if not routings:
            continue
        causal, training = (pooled(routings, rule) for rule in ("causal", "topk"))
        seeds = f"{len(routings)} seeds, " if len(routings) > 1 else ""
        tokens = f"{seeds}{causal['windows'] * causal['sequence']:,} held-out tokens"
        if causal["depth"]:
            called = _depth_names(entry, [layer["layer"] for layer in causal["depth"]])
            title = f"{texts[entry.row.label]}: {tokens}"
            found.append(_Strip(title, causal, training, called, _draw_depth))
        for rule, name in ((causal, "causal"), (training, "topk")):
            rule["taken"] = taken_by_experts(routings, name)
        if causal["taken"]:
            title = f"{texts[entry.row.label]}, by its experts' choice: {tokens}"
            called = {layer["layer"]: f"layer {layer['layer']}" for layer in causal["taken"]}
            found.append(_Strip(title, causal, training, called, _draw_taken))
    return found


def _depth_names(entry: Entry, layers: Sequence[int]) -> dict[int, str]:
    """Names of the depth-routed layers; in mixture-of-recursions, of the first layer of each
    recursion, which has the same tokens as the others."""
    cell = entry.row.cell
    recursions = cell["router"]["options"].get("recursions")
    if cell["router"]["name"] != "mixture_of_recursions" or not recursions:
        return {layer: f"layer {layer}" for layer in layers}
    each = max((cell["model"]["layers"] - 2) // recursions, 1)
    names = {layer: f"recursion {(layer - 1) // each + 1}" for layer in reversed(layers)}
    return {min(n for n in layers if names[n] == name): name for name in reversed(names.values())}


def _draw_depth(part: SubFigure, strip: _Strip) -> None:
    layers = strip.layers(strip.causal, "depth")
    colors = _colors(len(layers))
    with_scores = [pair for pair in zip(layers, colors, strict=True) if pair[0]["gates"]]
    ends = with_scores[:1] + with_scores[1:][-1:]
    by_position, *by_weight = _panels(part, 1 + len(ends))
    _positions(by_position, strip, "depth", "routed")
    _percent(by_position, "tokens that enter")
    for axes, (layer, color) in zip(by_weight, ends, strict=True):
        _weights(axes, layer, strip.names[layer["layer"]], color)


def _draw_taken(part: SubFigure, strip: _Strip) -> None:
    by_position, by_number = _panels(part, 2)
    _positions(by_position, strip, "taken", "taken")
    _percent(by_position, "tokens taken")
    most = 1
    for layer, style in strip.lines("taken"):
        shares = [count / sum(layer["by_taken"]) for count in layer["by_taken"]]
        by_number.plot(range(len(shares)), shares, **style)
        most = max(most, len(shares) - 1)
    by_number.set_xlim(0, most)
    by_number.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=_TICK_STEPS))
    by_number.set_xlabel("experts that take a token")
    by_number.set_ylim(bottom=0)
    _percent(by_number, "tokens")


def _panels(part: SubFigure, count: int) -> list[Axes]:
    """Panels side by side, the first slightly wider."""
    found = part.subplots(1, count, squeeze=False, width_ratios=(1.25, *[1.0] * (count - 1)))
    return list(found.flat)


def _positions(axes: Axes, strip: _Strip, part: str, counted: str) -> None:
    """Share of tokens in ``counted`` by position, one line per layer and rule."""
    causal = strip.causal
    together = -(-(len(causal["edges"]) - 1) // _POSITIONS)
    edges = sorted({*causal["edges"][::together], causal["edges"][-1]})
    tokens = [(high - low) * causal["windows"] for low, high in pairwise(edges)]
    for layer, style in strip.lines(part):
        starts = range(0, len(layer[counted]), together)
        counts = [sum(layer[counted][start : start + together]) for start in starts]
        shares = [count / of for count, of in zip(counts, tokens, strict=True)]
        axes.stairs(shares, edges, baseline=None, **style)
    axes.set_xlim(0, edges[-1])
    axes.set_xticks(_places(0, edges[-1]))
    axes.set_xlabel("position in the sequence")
    _name_lines(axes, [strip.names[layer["layer"]] for layer in strip.layers(causal, part)])


def _places(first: int, last: int) -> list[int]:
    """Ticks from ``first`` to ``last``: quarters if ``last`` is a multiple of 4, else round numbers."""
    ticks = [part * last // 4 for part in range(1, 5)]
    if last % 4:
        round_ones = MaxNLocator(nbins=6, integer=True, steps=_TICK_STEPS)
        ticks = [int(tick) for tick in round_ones.tick_values(first, last)]
    return [first, *(tick for tick in ticks if first < tick <= last)]


def _weights(axes: Axes, layer: dict[str, Any], name: str, color: Any) -> None:
    """Histograms of the router scores of all tokens and of the selected ones."""
    gates = layer["gates"]
    width, tokens = 2.0 ** gates["exponent"], sum(gates["all"])
    edges = [(gates["first"] + number) * width for number in range(len(gates["all"]) + 1)]
    for counts, shade in ((gates["all"], _SKIPPED), (gates["selected"], color)):
        axes.stairs([count / tokens for count in counts], edges, fill=True, color=shade, zorder=2)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
    axes.set_xlabel(f"router's weight, {name}", fontsize=10)  # the name of a recursion is long
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
    # Three or two panels per line, whichever leaves fewer places empty.
    columns = len(rows) if len(rows) < 3 else min((3, 2), key=lambda columns: -len(rows) % columns)
    lines = -(-len(rows) // columns)
    figure = _spaced(_WIDTH if columns > 1 else WIDTH, _STRIP * lines + _MARGIN)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    some_do_nothing = False
    texts = row_names(board.entries)
    for axes, entry in zip(panels, rows, strict=False):
        no_ops = entry.row.cell["router"]["options"].get("no_op_experts") or 0
        some_do_nothing |= no_ops > 0
        _loads(axes, busiest_first(entry.row.routings, "causal", no_ops))
        axes.set_title(texts[entry.row.label])
    handles, labels = [Line2D([], [], color=REFERENCE, **_EVEN)], ["even load"]
    if some_do_nothing:
        handles.append(Line2D([], [], color=REFERENCE, **_EXPERTS[1]))
        labels.append("experts that do nothing")
    _legend(figure, handles, labels, len(found))
    return figure


def _loads(axes: Axes, layers: dict[int, tuple[list[int], list[int]]]) -> None:
    colors = _colors(len(layers))
    most = 1
    for parts, color in zip(layers.values(), colors, strict=True):
        mean = sum(map(sum, parts)) / sum(map(len, parts))
        first = 1
        for loads, style in zip(parts, _EXPERTS, strict=True):
            places = range(first, first + len(loads))
            axes.plot(places, [load / mean if mean else 0 for load in loads], color=color, **style)
            first += len(loads)
        most = max(most, first - 1)
    axes.axhline(1, color=REFERENCE, **_EVEN)
    axes.set_xticks(range(1, most + 1) if most <= 8 else _places(1, most))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
    axes.set_xlabel("experts, busiest first")
    axes.set_ylabel("load / even load")
    _name_lines(axes, [f"layer {number}" for number in layers])


def _colors(count: int) -> list[Any]:
    """Colours from the first layer to the last, without the palest ones."""
    shades = mpl.colormaps["viridis"]
    return [shades(0.8 * index / max(count - 1, 1)) for index in range(count)]


def _percent(axes: Axes, label: str) -> None:
    """Format the y axis in percent, up to 100 %."""
    ticks = MaxNLocator(nbins=5, steps=_TICK_STEPS).tick_values(*axes.get_ylim())
    axes.set_yticks([tick for tick in ticks if 0 <= tick <= min(axes.get_ylim()[1], 1 + 1e-9)])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axes.set_ylabel(label)


def _name_lines(axes: Axes, names: list[str]) -> None:
    """Add a legend above the lines; of many lines it names the first, the last and some in between."""
    count, colors = min(len(names), _NAMED), _colors(len(names))
    shown = [round(n * (len(names) - 1) / max(count - 1, 1)) for n in range(count)]
    rows = -(-len(shown) // 2)
    _, top = axes.get_ylim()
    axes.set_ylim(0, (1.07 + 0.14 * rows) * top)
    axes.legend(
        [Line2D([], [], color=colors[index], linewidth=1.6) for index in shown],
        [names[index] for index in shown],
        loc="upper center",
        ncols=min(len(shown), 2),
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.2,
        handletextpad=0.5,
        labelspacing=0.3,
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
