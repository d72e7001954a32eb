"""What the figures share: a look that no user setting changes, a colour and mark to each label, labels
that keep clear of points, and files whose bytes repeat."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, count, zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from modbench.report.leaderboard import Entry

#: Inches, legend aside. On a phone a figure is some 6 cm wide, and 11 points of this still read.
WIDTH, HEIGHT = 5.4, 4.2
_LEGEND_LINE = 0.24
DOTS_PER_INCH = 200
REFERENCE = "0.35"  #: grey of reference lines, which are no scheme's
_FONT_FILE = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
_FONT = "modbench DejaVu Sans"
_MARKERS = "osD^vPX"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)))
_LONGEST, _END = 30, 14
_MOST_NAMED = 10  #: points of a figure that have room for a name beside each
#: Built-in schemes by the place of their mark, the same in every figure.
SCHEMES = (
    *("expert_choice", "mod", "mode_integrated", "mode_staged", "token_choice", "vanilla"),
    None,  # for the first scheme that is none of them
    *("expert_threshold", "mixture_of_recursions", "relu_routing", "threshold_skip"),
)


@dataclass(frozen=True)
class Mark:
    """How one label is drawn; colour, marker and dashes each tell it apart."""

    color: Any
    marker: str
    dashes: Any


def marks(labels: Sequence[str]) -> dict[str, Mark]:
    """A mark to each label. A built-in scheme has its own; all others take, in their order, what is
    free: the place after the six schemes of the quick suite, theirs, and so on. Where several labels are
    of one scheme (what stands before a slash or a bracket) they share its colour."""
    schemes: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        schemes.setdefault(label.partition("/")[0].partition(" [")[0], []).append(label)
    places = {scheme: SCHEMES.index(scheme) for scheme in schemes if scheme in SCHEMES}
    start, taken = SCHEMES.index(None), set(places.values())
    free = (place for place in chain(range(start, -1, -1), count(start + 1)) if place not in taken)
    places |= dict(zip((scheme for scheme in schemes if scheme not in places), free, strict=False))
    return {
        label: _mark(places[scheme], further)
        for scheme, own in schemes.items()
        for further, label in enumerate(own)
    }


def _mark(place: int, further: int) -> Mark:
    colors, other = _colors(), place + further
    return Mark(
        colors[place % len(colors)], _MARKERS[other % len(_MARKERS)], _DASHES[other % len(_DASHES)]
    )


def _colors() -> list[Any]:
    """seaborn's colour-blind-safe palette but for its pink and yellow, too pale on white."""
    palette = sns.color_palette("colorblind")
    return [palette[index] for index in (0, 1, 2, 3, 4, 5, 7, 9)]


@contextmanager
def look() -> Iterator[None]:
    """Inside, matplotlib has our settings and nobody else's."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(sns.axes_style("whitegrid"))
        mpl.rcParams.update(
            {
                "font.family": _font(),
                "font.size": 11,
                "axes.labelsize": 11,
                "axes.titlesize": 11,
                "legend.fontsize": 10,
                "xtick.labelsize": 10,
                "ytick.labelsize": 10,
                "axes.edgecolor": "0.3",
                "grid.color": "0.9",
                "text.parse_math": False,  # a label may hold a dollar sign
                "svg.hashsalt": "modbench",
            }
        )
        yield


@cache
def _font() -> str:
    """A family name for matplotlib's own DejaVu Sans: another of that name may be on the machine."""
    fontManager.ttflist.append(FontEntry(fname=str(_FONT_FILE), name=_FONT, weight=400, size="scalable"))
    return _FONT


def plain(label: str) -> str:
    """``label`` as a figure can show it: one line, no sign that the font lacks, and not too long: of a
    long one the start and the end, by which long labels differ most."""
    text = _in_font(label, lambda _: "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1 - _END]}…{text[-_END:]}"


def plains(labels: Sequence[str]) -> dict[str, str]:
    """`plain` of each label, no two alike: those that would be are cut where they begin to differ; or,
    if that tells them not apart either, shown whole, signs that the font lacks by their numbers."""
    texts = {label: plain(label) for label in labels}
    for text in {text for text in texts.values() if list(texts.values()).count(text) > 1}:
        alike = {label: " ".join(label.split()) for label in texts if texts[label] == text}
        signs = enumerate(zip_longest(*alike.values()))
        start = max(next((place for place, at in signs if len(set(at)) > 1), 0) - 3, 8)
        for label, line in alike.items():
            texts[label] = plain(f"{line[:8]}…{line[start : start + 12]}…{line[-8:]}")
    shared = {label for label, text in texts.items() if list(texts.values()).count(text) > 1}
    whole = {label: _in_font(label, lambda sign: f"\\u{ord(sign):04x}") for label in shared}
    return texts | whole


def _in_font(label: str, instead: Callable[[str], str]) -> str:
    """``label`` in one line, with something ``instead`` of each sign that the font lacks."""
    font = get_font(str(_FONT_FILE))
    signs = " ".join(label.split())
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else instead(c) for c in signs)


def row_names(entries: Sequence[Entry]) -> dict[str, str]:
    """What figures call each row, by its label; one that the table doesn't rank says so itself."""
    shown = plains([entry.row.label for entry in entries])
    unranked = {entry.row.label for entry in entries if entry.rank is None}
    return {
        label: text + (" (not ranked)" if label in unranked else "") for label, text in shown.items()
    }


def sheet(width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """A figure without axes, in inches, drawn by Agg whatever the machine's display."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def blank() -> tuple[Figure, Axes]:
    """An empty figure with axes."""
    figure = sheet()
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def say_nothing_to_show(axes: Axes, why: str) -> None:
    """The sentence ``why`` in place of data."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, why, ha="center", va="center", wrap=True, transform=axes.transAxes)


def logarithmic(axes: Axes) -> None:
    """A logarithmic x axis with ticks that are written out (2 G), however short the axis is."""
    axes.set_xscale("log")
    written_out(axes.xaxis, *axes.get_xlim())


def written_out(axis: Axis, low: float, high: float, unit: str = "") -> None:
    """Ticks of a logarithmic ``axis`` from ``low`` to ``high``, written out."""
    decades = np.log10(high / low)
    locator: Locator = MaxNLocator(nbins=5)
    if decades > 0.8:
        locator = LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=12)
    axis.set_major_locator(locator)
    axis.set_major_formatter(EngFormatter(unit))
    axis.set_minor_locator(NullLocator())


def linear(axes: Axes) -> None:
    """A linear x axis with ticks that are written out."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(EngFormatter())


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """The legend under the axes, where it covers nothing, in as many columns as the figure is wide
    enough for, three at most; the figure grows by its lines."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for columns in (3, 2, 1):
        figure.set_figheight(HEIGHT + _LEGEND_LINE * -(-len(labels) // columns))
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.8
        )
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            break
        legend.remove()


@dataclass(frozen=True)
class Point:
    """A labelled point, in data coordinates."""

    x: float
    y: float
    text: str
    color: Any
    marker: str = "o"


def label_points(
    figure: Figure, axes: Axes, points: Sequence[Point], avoid: Sequence[tuple[float, float]] = ()
) -> None:
    """Write each point's text beside it, clear of all points, of other texts, of the places ``avoid``
    (x, y in data coordinates) and of the edge; with a thin line where that is a little away."""
    if not points:
        return
    figure.draw_without_rendering()
    # The layout is settled; from here on nothing may move under the texts.
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    edge = np.asarray(axes.get_window_extent(renderer).extents)
    pixels = figure.dpi / 72
    centres = axes.transData.transform([(point.x, point.y) for point in points])
    taken = _boxes(centres, 6 * pixels)
    if avoid:
        taken = np.concatenate([taken, _boxes(axes.transData.transform(avoid), pixels)])
    texts = np.empty((0, 4))
    for index in np.lexsort((centres[:, 0], centres[:, 1])):
        point, centre = points[index], centres[index]
        note = axes.annotate(
            point.text,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
        )
        size = note.get_window_extent(renderer)
        half = np.array([size.width, size.height]) / 2
        best_cost = np.inf
        for away, angle in _AROUND:
            way = np.array([np.cos(angle), np.sin(angle)])
            # The text's near edge, not its middle, is what stands `away` from the point.
            middle = centre + way * (away * pixels + half)
            box = _boxes(middle[None], half)[0]
            outside = 4 * half.prod() - _shared(box, edge[None])[0]
            cost = _shared(box, taken).sum() + 4 * (_shared(box, texts).sum() + outside)
            # A text beside somebody else's point would be read as that one's.
            gaps = np.hypot(*(centres - np.clip(centres, box[:2], box[2:])).T)
            astray = bool((np.delete(gaps, index) <= gaps[index]).any())
            cost += half.prod() * astray
            if cost < best_cost - 1e-6:
                best_cost, best = cost, (away > 14 or astray, middle, box)
            if best_cost < 1:
                break
        far, middle, box = best
        texts = np.concatenate([texts, box[None]])
        note.set_position(tuple((middle - centre) / pixels))
        if far:
            ends = [centre, np.clip(centre, box[:2], box[2:])]
            line = axes.transData.inverted().transform(ends).T
            axes.plot(*line, color=point.color, linewidth=0.8, zorder=1.5)


def name_points(
    figure: Figure,
    axes: Axes,
    points: Sequence[Point],
    avoid: Sequence[tuple[float, float]] = (),
    lines: Sequence[tuple[Any, str]] = (),
) -> None:
    """`label_points`; of more than `_MOST_NAMED`, or where a name is long, a number stands beside each,
    and what it means in the legend, before the ``lines`` (handle, text) that stand there anyway."""
    handles, texts = [], []
    if len(points) > _MOST_NAMED or any(len(point.text) >= _LONGEST for point in points):
        for number, point in enumerate(points, start=1):
            handles.append(Line2D([], [], color=point.color, marker=point.marker, linestyle="none"))
            texts.append(f"{number}  {point.text}")
        points = [replace(point, text=str(number)) for number, point in enumerate(points, start=1)]
    for handle, text in lines:
        handles.append(handle)
        texts.append(text)
    if handles:
        legend_below(figure, handles, texts)
    label_points(figure, axes, points, avoid)


#: Where a text may stand: how far off in points, and at what angle; the nearest first, right and left
#: before the others.
_AROUND = [
    (away, np.radians(angle))
    for away in (8, 12, 17, 24, 34, 46, 60, 80)
    for angle in (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)
]


def _boxes(middles: Any, half: Any) -> Any:
    """Boxes (left, bottom, right, top) around ``middles`` (N, 2) that reach ``half`` to each side."""
    return np.concatenate([middles - half, middles + half], axis=1)


def _shared(box: Any, others: Any) -> Any:
    """The area that ``box`` (4,) shares with each of ``others`` (N, 4), in square pixels."""
    both = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.clip(both, 0, None).prod(axis=1)


def files(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and SVG, by ending; the same figure gives the same bytes at any time."""
    contents = {}
    for ending, metadata in (
        ("png", {"Software": None}),
        ("svg", {"Date": None, "Creator": None}),
    ):
        stream = io.BytesIO()
        figure.savefig(stream, format=ending, metadata=metadata, dpi=DOTS_PER_INCH)
        contents[ending] = stream.getvalue()
    return contents
