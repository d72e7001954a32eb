"""Figure of the routing pattern (Raposo et al. 2024, figure 5): the first tokens of a held-out passage
that each layer processes, with their text."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from modbench.records.sections import FirstChoice, Passage, Selected
from modbench.report.plot_style import FONT_FILE, REFERENCE, WIDTH, legend_below
from modbench.report.routing.cases import MOST_CASES, RoutingCase, with_passage

#: Tokens that are drawn; the page in HTML has all of the passage.
POSITIONS = 44
#: Experts with a legend entry each; of more, the first and the last.
MOST_NAMED = 8
_SKIPPED, _DENSE, _SELECTED = "#f3f3f3", "0.72", mpl.colormaps["Blues"]
_LIGHTEST = 0.55  #: of `_SELECTED`, for the smallest router weight
#: From dark to bright, which no scheme's colour does: the marks of experts are no marks of schemes.
_EXPERTS = mpl.colormaps["viridis"]
_LONGEST = 9  #: characters of a token's text
_SPECIAL = {"": "<end>", " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def pattern_figure(cases: Sequence[RoutingCase]) -> Figure | None:
    """The routing under the causal rule, a panel per case, layer by position; text stands under the last
    case of a passage. None if no case has one."""
    shown = with_passage(cases)[:MOST_CASES]
    if not shown:
        return None
    layers = [len(layers_of(case)) for case in shown]
    figure = Figure(figsize=(WIDTH, 0.12 * sum(layers) + 0.4 * len(shown) + 1), layout="constrained")
    grid = figure.subplots(len(shown), squeeze=False, gridspec_kw={"height_ratios": layers})
    texts = [_passage(case).texts for case in shown]
    for axes, case, of_case, next_one in zip(grid.flat, shown, texts, [*texts[1:], None], strict=True):
        positions = range(min(POSITIONS, len(of_case)))
        _draw_case(axes, case, positions)
        labels = token_labels(of_case[: len(positions)]) if of_case != next_one else []
        axes.set_xticks([*positions][: len(labels)], labels, rotation=90, fontsize="small")
    legend_below(figure, _handles(shown))
    return figure


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
    return f"selected: {causal}, training rule {training}"


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


def _draw_case(axes: Axes, case: RoutingCase, positions: range) -> None:
    """Draw the tokens at ``positions`` in all layers of ``case``, layer 0 at the bottom."""
    axes.set_title(case.name, loc="left", fontsize="small")
    for number, layer in layers_of(case):
        thin = 0.2 if layer is None else 0.42
        every = [(positions.start - 0.5, len(positions))]
        background = _DENSE if layer is None else _SKIPPED
        axes.broken_barh(every, (number - thin, 2 * thin), facecolors=background)
        if layer is not None:
            color_of = dict(_token_colors(layer, positions))
            bars = [(position - 0.45, 0.9) for position in color_of]
            axes.broken_barh(bars, (number - thin, 2 * thin), facecolors=[*color_of.values()])
    for number, position, selected in differing(case, positions):
        axes.plot(position, number, ".", color="white" if selected else "0.35", markersize=3)
    axes.set_xlim(positions.start - 0.5, positions.stop - 0.5)
    axes.set_yticks([number for number, layer in layers_of(case) if layer is not None])
    axes.set_ylabel("layer", fontsize="small")
    axes.tick_params(labelsize="small", length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title(shares(case), loc="right", fontsize="small", color=REFERENCE)


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
        handles["selected, causal rule"] = Patch(facecolor=_SELECTED(0.9))
        handles["skipped"] = Patch(facecolor=_SKIPPED, edgecolor="0.8")
        handles["training rule differs"] = Line2D([], [], color="0.35", marker=".", linestyle="none")
    if any(layer is None for case in cases for _, layer in layers_of(case)):
        handles["layer of all tokens"] = Patch(facecolor=_DENSE)
    if experts:
        count = max(max(layer.first) for layer in experts) + 1
        for expert in range(count) if count <= MOST_NAMED else (0, count - 1):
            handles[f"first expert: {expert}"] = Patch(facecolor=_expert_color(expert, count))
        if any(-1 in layer.first for layer in experts):
            handles["no-op experts only"] = Patch(facecolor=_SKIPPED, edgecolor="0.8")
    return handles
