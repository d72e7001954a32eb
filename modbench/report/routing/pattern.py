"""Figure of the routing pattern (Raposo et al. 2024, figure 5): the tokens of one held-out passage that
each layer processes, with the passage's text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from modbench.records.sections import FirstChoice, Passage, Selected
from modbench.report.plot_style import FONT_FILE, WIDTH, drawn_files, legend_below, sheet
from modbench.report.routing.cases import MOST_CASES, RoutingCase, with_passage

#: Positions of one strip.
STRIP = 64
#: Experts with a legend entry each; of more, the first and the last.
MOST_NAMED = 8
_SKIPPED, _DENSE, _SELECTED = "#f3f3f3", "0.72", mpl.colormaps["Blues"]
_LIGHTEST = 0.55  #: of `_SELECTED`, for the smallest router weight
#: From dark to bright, which no scheme's colour does: the marks of experts are no marks of schemes.
_EXPERTS = mpl.colormaps["viridis"]
#: Inches: figure, margins of a strip, heights of its parts.
_WIDTH, _LEFT, _RIGHT = 2 * WIDTH, 0.35, 0.1
_LAYER, _DENSE_LAYER, _TITLE, _POSITIONS, _LETTER, _GAP = 0.19, 0.08, 0.24, 0.18, 0.072, 0.15
_TOKEN = (_WIDTH - _LEFT - _RIGHT) / STRIP
_FONT_SIZE = 8
_LONGEST = 9  #: characters of a token's text
_SPECIAL = {"": "<end>", " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Bar:
    """A token, or all tokens of a strip, in a layer; ``top`` in inches below the first layer."""

    layer: int
    first: int  #: position
    tokens: int
    top: float
    height: float
    color: Any


def pattern_files(cases: Sequence[RoutingCase]) -> dict[str, bytes]:
    """The figure of ``cases``, by file name; {} if none has a passage."""
    draws = {"routing_pattern": partial(pattern_figure, cases)}
    return drawn_files(draws) if with_passage(cases) else {}


def pattern_figure(cases: Sequence[RoutingCase]) -> Figure:
    """The routing of the passage under the causal rule, layer by position. Cases of one passage are
    stacked above its text."""
    routed = with_passage(cases)
    shown = routed[:MOST_CASES]
    of_text: dict[tuple[str, ...], list[RoutingCase]] = {}
    for case in shown:
        of_text.setdefault(tuple(_passage(case).texts), []).append(case)
    strips = [
        (stacked, texts, start)
        for texts, stacked in of_text.items()
        for start in range(0, len(texts), STRIP)
    ]
    heights = [_strip_height(stacked, texts[start : start + STRIP]) for stacked, texts, start in strips]
    figure = sheet(_WIDTH, sum(heights))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(sum(heights), 0)
    top = 0.0
    for (stacked, texts, start), height in zip(strips, heights, strict=True):
        _draw_strip(axes, stacked, texts, start, top)
        top += height
    if len(routed) > len(shown):
        figure.suptitle(f"the first {len(shown)} of {len(routed)} schemes")
    legend_below(figure, _handles(shown), _not_drawn(cases))
    return figure


def _not_drawn(cases: Iterable[RoutingCase]) -> str:
    """A sentence on the schemes with experts whose tokens have no first expert."""
    names = [case.name for case in cases if case.passage is None and case.has_experts]
    return f"not drawn, since experts choose their tokens: {', '.join(names)}" if names else ""


def _passage(case: RoutingCase) -> Passage:
    assert case.passage is not None
    return case.passage


def layers_of(case: RoutingCase) -> list[tuple[int, Selected | FirstChoice | None]]:
    """All layers from the first; None: a dense one."""
    passage = _passage(case)
    layers: Sequence[Selected | FirstChoice] = passage.causal or passage.experts
    routed = {layer.layer: layer for layer in layers}
    return [
        (number, routed.get(number))
        for number in range(max(case.record.run.model.layers, max(routed) + 1))
    ]


def shares(case: RoutingCase) -> str:
    """Shares of the passage's tokens that depth-routed layers select; empty without such layers."""
    passage = _passage(case)
    masks = ["".join(layer.selected for layer in rule) for rule in (passage.causal, passage.topk)]
    if not masks[0]:
        return ""
    causal, training = (f"{100 * mask.count('1') / len(mask):.1f} %" for mask in masks)
    return f"selected here: {causal}, by the training rule {training}"


def _case_height(case: RoutingCase) -> float:
    return _TITLE + sum(_DENSE_LAYER if layer is None else _LAYER for _, layer in layers_of(case))


def _strip_height(cases: Iterable[RoutingCase], texts: Sequence[str]) -> float:
    longest = max(map(len, token_labels(texts)))
    return _POSITIONS + sum(map(_case_height, cases)) + _LETTER * longest + _GAP


def token_labels(texts: Sequence[str]) -> list[str]:
    """``texts`` as labels of tokens: white space is visible, and long ones are cut."""
    known = _characters()
    labels = []
    for text in texts:
        label = _SPECIAL.get(text) or "".join(_SPECIAL.get(char, char) for char in text)
        if text[:1] == " " and text.strip():
            label = label[1:]  # nearly every word begins with a space
        label = "".join(char if ord(char) in known else "□" for char in label)
        labels.append(label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…")
    return labels


@cache
def _characters() -> frozenset[int]:
    """Characters that the font can draw."""
    return frozenset(FT2Font(str(FONT_FILE)).get_charmap())


def _draw_strip(
    axes: Axes, cases: Sequence[RoutingCase], texts: Sequence[str], start: int, top: float
) -> None:
    """Draw the tokens from ``start`` on in all layers of ``cases``; ``top``: inches from the top."""
    positions = range(start, min(start + STRIP, len(texts)))
    for position in positions[::8]:
        _write(axes, _left(position + 0.5, start), top + 0.1, str(position), size=8, color="0.4")
    top += _POSITIONS
    corners: list[Any] = []
    colors: list[Any] = []
    dots: list[tuple[float, float, str]] = []
    for case in cases:
        _write(axes, 0, top + 0.14, case.name, ha="left")
        if start == 0:
            _write(axes, _WIDTH - _RIGHT, top + 0.14, shares(case), size=9, color="0.35", ha="right")
        top += _TITLE
        middles: dict[int, float] = {}
        for bar in layer_bars(case, positions):
            corners.append(_corners(bar, start, top))
            colors.append(to_rgba(bar.color))
            middles[bar.layer] = top + bar.top + bar.height / 2
        for number, layer in layers_of(case):
            if layer is not None:
                _write(axes, _LEFT - 0.08, middles[number], str(number), size=8, ha="right")
        for number, position, selected in differing(case, positions):
            ink = "white" if selected else "0.35"
            dots.append((_left(position + 0.5, start), middles[number], ink))
        top += _case_height(case) - _TITLE
    axes.add_collection(PolyCollection(corners, facecolors=colors, edgecolors="none"), autolim=False)
    if dots:
        x, y, inks = zip(*dots, strict=True)
        axes.scatter(x, y, s=4, c=inks, linewidths=0, zorder=3)
    labels = token_labels(texts[positions.start : positions.stop])
    style: dict[str, Any] = {"size": _FONT_SIZE, "va": "top"}
    style |= {"rotation": 90} if max(map(len, labels)) > 1 else {}
    for position, label in zip(positions, labels, strict=True):
        _write(axes, _left(position + 0.5, start), top + 0.04, label, **style)


def _left(position: float, start: int) -> float:
    return _LEFT + (position - start) * _TOKEN


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    # Not in the layout, which measures each text: their room is known.
    axes.text(x, y, text, **{"ha": "center", "va": "center"} | style).set_in_layout(False)


def _corners(bar: Bar, start: int, top: float) -> list[tuple[float, float]]:
    inset = 0.04 if bar.tokens == 1 else 0
    left = _left(bar.first + inset, start)
    right = _left(bar.first + bar.tokens - inset, start)
    upper = top + bar.top + 0.012
    lower = top + bar.top + bar.height - 0.012
    return [(left, upper), (right, upper), (right, lower), (left, lower)]


def layer_bars(case: RoutingCase, positions: range) -> Iterator[Bar]:
    """The bars of each layer, the last layer at the top: its background, which is all of a dense layer,
    then the tokens that it selects or that have a first expert."""
    top = 0.0
    for number, layer in reversed(layers_of(case)):
        height = _DENSE_LAYER if layer is None else _LAYER
        background = _DENSE if layer is None else _SKIPPED
        yield Bar(number, positions.start, len(positions), top, height, background)
        if layer is not None:
            for position, color in _token_colors(layer, positions):
                yield Bar(number, position, 1, top, height, color)
        top += height


def _token_colors(layer: Selected | FirstChoice, positions: range) -> Iterator[tuple[int, Any]]:
    """The tokens of ``layer`` that are drawn and their colours."""
    if isinstance(layer, FirstChoice):
        experts, count = layer.first, max(layer.first) + 1
        yield from ((p, _expert_color(experts[p], count)) for p in positions if experts[p] >= 0)
        return
    gates = layer.gates
    low, high = (min(gates), max(gates)) if gates else (0, 1)
    for position in positions:
        if layer.selected[position] == "1":
            shade = (gates[position] - low) / (high - low or 1) if gates else 1
            yield position, _SELECTED(_LIGHTEST + (1 - _LIGHTEST) * shade)


def _expert_color(expert: int, count: int) -> Any:
    return _EXPERTS(expert / max(count - 1, 1))


def differing(case: RoutingCase, positions: range) -> Iterator[tuple[int, int, bool]]:
    """(layer, position, True if the causal rule selects it) of the tokens for which the rules of a
    depth-routed layer differ."""
    passage = _passage(case)
    training = {layer.layer: layer.selected for layer in passage.topk}
    for layer in passage.causal:
        selected, other = layer.selected, training[layer.layer]
        for position in positions:
            if selected[position] != other[position]:
                yield layer.layer, position, selected[position] == "1"


def _handles(cases: Sequence[RoutingCase]) -> dict[str, Any]:
    """The legend of what is drawn of ``cases``."""
    passages = [_passage(case) for case in cases]
    depth = [layer for passage in passages for layer in passage.causal]
    experts = [layer for passage in passages if not passage.causal for layer in passage.experts]
    handles: dict[str, Any] = {}
    if depth:
        darker = " (darker: larger router weight)" * any(layer.gates for layer in depth)
        handles[f"selected, causal rule{darker}"] = Patch(facecolor=_SELECTED(0.9))
        handles["skipped"] = Patch(facecolor=_SKIPPED, edgecolor="0.8")
        if any(True for c in cases for _ in differing(c, range(len(_passage(c).texts)))):
            dot = Line2D([], [], color="0.35", marker="o", markersize=3, linestyle="none")
            handles["training rule decides otherwise"] = dot
    if any(layer is None for case in cases for _, layer in layers_of(case)):
        handles["layer that processes all tokens"] = Patch(facecolor=_DENSE)
    if experts:
        count = max(max(layer.first) for layer in experts) + 1
        named = range(count) if count <= MOST_NAMED else (0, count - 1)
        for expert in named:
            handles[f"first expert: {expert}"] = Patch(facecolor=_expert_color(expert, count))
        if any(-1 in layer.first for layer in experts):
            handles["no-op experts only"] = Patch(facecolor=_SKIPPED, edgecolor="0.8")
    return handles
