"""Figure of the routing pattern (Raposo et al. 2024, figure 5)."""

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from modbench.records.sections import FirstChoice, Selected
from modbench.report.plot_style import FONT_FILE, WIDTH, legend_below
from modbench.report.routing.cases import MOST_CASES, RoutingCase, layers_of, with_passage

POSITIONS = 44  #: tokens that are drawn; the page in HTML has all of the passage
_SKIPPED, _DENSE = to_rgba("#f3f3f3"), to_rgba("0.72")
_SELECTED, _EXPERTS = mpl.colormaps["Blues"], mpl.colormaps["viridis"]
_DOT: Any = {"marker": "o", "mfc": "white", "mec": "black", "ms": 3, "mew": 0.6, "linestyle": ""}
_SPECIAL = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})
_LEGEND = {
    "selected, causal rule": Patch(facecolor=_SELECTED(0.9)),
    "skipped": Patch(facecolor=_SKIPPED, edgecolor="0.8"),
    "training rule differs": Line2D([], [], **_DOT),
    "layer of all tokens": Patch(facecolor=_DENSE),
}


def pattern_figure(cases: Sequence[RoutingCase]) -> Figure | None:
    """The routing under the causal rule, a panel per case, layer by position; text stands under the last
    case of a passage. None if no case has one."""
    if not (shown := with_passage(cases)[:MOST_CASES]):
        return None
    sizes = [len(layers_of(case)) for case in shown]
    figure = Figure(figsize=(WIDTH, 0.12 * sum(sizes) + 0.4 * len(shown) + 1), layout="constrained")
    grid = figure.subplots(len(shown), squeeze=False, gridspec_kw={"height_ratios": sizes}).flat
    passages: list[Any] = [case.passage for case in shown]
    for axes, case, passage, after in zip(grid, shown, passages, [*passages[1:], None], strict=True):
        layers, texts = layers_of(case), passage.texts[:POSITIONS]
        for number, layer in layers:  # bars: the bytes of an image differ between versions of zlib
            runs = [(color, len([*of])) for color, of in groupby(_colors(layer, len(texts)))]
            colors, lengths = zip(*runs, strict=True)
            bars = [*zip(accumulate(lengths, initial=0), lengths, strict=False)]
            axes.broken_barh(bars, (number + 0.05, 0.9), facecolors=colors)
        for layer, other in zip(passage.causal, passage.topk, strict=True):
            differ = [n for n in range(len(texts)) if layer.selected[n] != other.selected[n]]
            axes.plot(np.array(differ) + 0.5, [layer.layer + 0.5] * len(differ), **_DOT)
        axes.set_title(case.name, loc="left", fontsize="small")
        labels = [] if after and after.texts == passage.texts else token_labels(texts)
        axes.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=90, fontsize="small")
        routed = [number for number, layer in layers if layer is not None]
        axes.set_yticks(np.array(routed) + 0.5, map(str, routed), fontsize="small")
        axes.set(ylabel="layer", frame_on=False, xmargin=0, ymargin=0)
        axes.tick_params(length=0, grid_alpha=0)
    experts = {"first expert: 0": Patch(facecolor=_EXPERTS(0.0)), "last": Patch(facecolor=_EXPERTS(1.0))}
    legend_below(figure, _LEGEND | (experts if any(not of.causal for of in passages) else {}))
    return figure


def token_labels(texts: Sequence[str]) -> list[str]:
    """``texts`` as labels of tokens: white space is visible, and long ones are cut."""
    known = FT2Font(str(FONT_FILE)).get_charmap()
    words = (text[1:] if text[:1] == " " and text[1:] else text or "<end>" for text in texts)
    plain = ("".join(c if ord(c) in known else "□" for c in text.translate(_SPECIAL)) for text in words)
    return [text if len(text) < 10 else f"{text[:8]}…" for text in plain]


def _colors(layer: Selected | FirstChoice | None, tokens: int) -> list[Any]:
    if layer is None:
        return [_DENSE] * tokens
    if isinstance(layer, FirstChoice):
        of_token = [(of >= 0, _EXPERTS(of / max(1, *layer.first))) for of in layer.first]
    else:
        gates = np.array(layer.gates or [1.0] * len(layer.selected))
        shades = 1 - 0.45 * (gates.max() - gates) / (np.ptp(gates) or 1)
        of_token = [(one == "1", _SELECTED(of)) for one, of in zip(layer.selected, shades, strict=True)]
    return [color if is_on else _SKIPPED for is_on, color in of_token[:tokens]]
