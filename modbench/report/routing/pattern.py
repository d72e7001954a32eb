"""Figure of the routing pattern (Raposo et al. 2024, figure 5): the tokens of one held-out passage that
each layer processes, with the passage's text."""

from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from modbench.report.plot_style import FONT_FILE, WIDTH, drawn_files, legend_below, sheet
from modbench.report.routing.cases import MOST_CASES, RoutingCase, with_passage

#: Positions of one strip.
STRIP = 64
_SKIPPED, _DENSE, _SELECTED = "#f3f3f3", "0.72", mpl.colormaps["Blues"]
_LIGHTEST = 0.55  #: of `_SELECTED`, for the smallest router weight
_LAYER, _DENSE_LAYER, _POSITIONS, _TITLE = 0.19, 0.08, 0.35, 0.25  #: inches
_FONT_SIZE = 7.5
_LONGEST = 9  #: characters of a token's text
_SPECIAL = {"": "<end>", " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def pattern_files(cases: Sequence[RoutingCase]) -> dict[str, bytes]:
    """The figure of ``cases``, by file name; {} if none has a passage."""
    found = with_passage(cases)
    return drawn_files({"routing_pattern": partial(pattern_figure, cases)}) if found else {}


def pattern_figure(cases: Sequence[RoutingCase]) -> Figure:
    """The routing of the passage under the causal rule, layer by position."""
    found = with_passage(cases)
    shown = found[:MOST_CASES]
    strips = [(case, start) for case in shown for start in range(0, len(_passage(case)["texts"]), STRIP)]
    rows = [_rows_height(case) for case, _ in strips]
    around = sum(_around(case, start) for case, start in strips)
    figure = sheet(2 * WIDTH, sum(rows) + around)
    figure.set_layout_engine("constrained", hspace=0, h_pad=0.05)
    if len(found) > len(shown):
        figure.suptitle(f"the first {len(shown)} of {len(found)} schemes")
    grid = figure.subplots(len(strips), squeeze=False, gridspec_kw={"height_ratios": rows})
    handles: dict[str, Any] = {}
    for (case, start), axes in zip(strips, grid.flat, strict=True):
        if start == 0:
            axes.set_title(case.name, loc="left", pad=14)
            axes.set_title(_shares(_passage(case)), loc="right", pad=14, fontsize=9, color="0.35")
        handles |= _draw_strip(axes, case, start)
    legend_below(figure, handles)
    return figure


def _passage(case: RoutingCase) -> dict[str, Any]:
    return case.passage or {}


def _layers(case: RoutingCase) -> list[tuple[int, dict[str, Any] | None]]:
    """All layers from the first; None: a dense one."""
    passage = _passage(case)
    routed = {layer["layer"]: layer for layer in passage["causal"] or passage["experts"]}
    return [
        (number, routed.get(number))
        for number in range(max(case.record.run.model.layers, max(routed) + 1))
    ]


def _shares(passage: dict[str, Any]) -> str:
    """Shares of the passage's tokens that depth-routed layers select; empty without such layers."""
    masks = ["".join(layer["selected"] for layer in passage[rule]) for rule in ("causal", "topk")]
    if not masks[0]:
        return ""
    causal, training = (f"{100 * mask.count('1') / len(mask):.1f} %" for mask in masks)
    return f"selected here: {causal}, by the training rule {training}"


def _rows_height(case: RoutingCase) -> float:
    return sum(_DENSE_LAYER if layer is None else _LAYER for _, layer in _layers(case))


def _around(case: RoutingCase, start: int) -> float:
    """Height of a strip's text, positions and title."""
    longest = max(map(len, _labels(_passage(case)["texts"][start : start + STRIP])))
    return _POSITIONS + 0.075 * longest + _TITLE * (start == 0)


def _labels(texts: Sequence[str]) -> list[str]:
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


def _draw_strip(axes: Axes, case: RoutingCase, start: int) -> dict[str, Any]:
    """Draw the positions from ``start`` on; return the handles of what was drawn."""
    passage, layers = _passage(case), _layers(case)
    labels = _labels(passage["texts"][start : start + STRIP])
    end = start + len(labels)
    bottoms = [0.0]
    for _, layer in layers:
        bottoms.append(bottoms[-1] + (_DENSE_LAYER if layer is None else _LAYER))
    training = {layer["layer"]: layer["selected"] for layer in passage["topk"]}
    handles: dict[str, Any] = {}
    for (number, layer), (low, high) in zip(layers, pairwise(bottoms), strict=True):
        row = (low + 0.012, high - low - 0.024)
        if layer is None:
            axes.broken_barh([(start, end - start)], row, facecolor=_DENSE)
            handles["layer that processes all tokens"] = Patch(facecolor=_DENSE)
            continue
        axes.broken_barh([(start, end - start)], row, facecolor=_SKIPPED)
        if "first" in layer:
            handles |= _draw_experts(axes, layer["first"], range(start, end), row)
        else:
            handles |= _draw_selected(axes, layer, training[number], range(start, end), row)
    middles = [(low + high) / 2 for low, high in pairwise(bottoms)]
    routed = [place for place, (_, layer) in enumerate(layers) if layer is not None]
    axes.set_yticks([middles[place] for place in routed], [str(layers[place][0]) for place in routed])
    axes.set_ylabel("layer", fontsize=9)
    axes.set_ylim(0, bottoms[-1])
    axes.set_xlim(start, start + STRIP)
    rotated = max(map(len, labels)) > 1
    axes.set_xticks([place + 0.5 for place in range(start, end)], labels)
    axes.tick_params(axis="x", labelsize=_FONT_SIZE, length=0, pad=1, labelrotation=90 if rotated else 0)
    axes.tick_params(axis="y", labelsize=8, length=0)
    above = axes.secondary_xaxis("top")
    above.set_xticks([place + 0.5 for place in range(start, end, 8)], map(str, range(start, end, 8)))
    above.tick_params(labelsize=_FONT_SIZE, length=2, pad=1, colors="0.4")
    for spine in (*axes.spines.values(), *above.spines.values()):
        spine.set_visible(False)
    for each in (axes, above):
        each.grid(visible=False)
    return handles


def _draw_selected(
    axes: Axes, layer: dict[str, Any], training: str, places: range, row: tuple[float, float]
) -> dict[str, Any]:
    """Draw the tokens that a depth-routed layer selects, and dots where the training rule differs."""
    handles: dict[str, Any] = {}
    chosen = [place for place in places if layer["selected"][place] == "1"]
    gates = layer.get("gates")
    low, high = (min(gates), max(gates)) if gates else (0, 1)
    shades = [(gates[place] - low) / (high - low or 1) if gates else 1 for place in chosen]
    colors = [_SELECTED(_LIGHTEST + (1 - _LIGHTEST) * shade) for shade in shades]
    axes.broken_barh([(place + 0.04, 0.92) for place in chosen], row, facecolors=colors)
    darker = "selected, causal rule (darker: larger router weight)"
    handles[darker if gates else "selected, causal rule"] = Patch(facecolor=_SELECTED(0.9))
    handles["skipped"] = Patch(facecolor=_SKIPPED, edgecolor="0.8")
    differ = [place for place in places if layer["selected"][place] != training[place]]
    if differ:
        inks = ["white" if layer["selected"][place] == "1" else "0.35" for place in differ]
        middle = row[0] + row[1] / 2
        axes.scatter([p + 0.5 for p in differ], [middle] * len(differ), s=4, c=inks, linewidths=0)
        dot = Line2D([], [], color="0.35", marker="o", markersize=3, linestyle="none")
        handles["training rule decides otherwise"] = dot
    return handles


def _draw_experts(
    axes: Axes, first: Sequence[int], places: range, row: tuple[float, float]
) -> dict[str, Any]:
    """Draw the expert that each token chooses first."""
    palette = mpl.colormaps["tab10"]
    if max(first) >= palette.N:
        palette = mpl.colormaps["turbo"].resampled(max(first) + 1)
    used = [place for place in places if first[place] >= 0]
    colors = [palette(first[place]) for place in used]
    axes.broken_barh([(place + 0.04, 0.92) for place in used], row, facecolors=colors)
    handles: dict[str, Any] = {"first expert of the token, a colour each": Patch(facecolor=palette(0))}
    if len(used) < len(places):
        handles["no-op experts only"] = Patch(facecolor=_SKIPPED, edgecolor="0.8")
    return handles
