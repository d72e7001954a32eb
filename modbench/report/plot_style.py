"""Style shared by all figures: fixed matplotlib settings, a colour and marker per scheme, legends,
reproducible files."""

import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from modbench.report.leaderboard.board import Entry

#: Inches, without legend. At 6 cm (a phone), a font of 11 points is still readable.
WIDTH, HEIGHT = 5.4, 4.2
_LEGEND_LINE = 0.24
DOTS_PER_INCH = 200
REFERENCE = "0.35"  #: grey, for reference lines
DOTTED: dict[str, Any] = {"linestyle": (0, (1, 1)), "linewidth": 1.4}
FONT_FILE = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
_FONT = "modbench DejaVu Sans"
_MARKERS = "osD^vPXdp"  # nine for eight colours: no pair repeats among 72 schemes
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)))
#: Of seaborn's colour-blind-safe palette: without pink and yellow, too pale on white.
_COLORS = (0, 1, 2, 3, 4, 5, 7, 9)
_LONGEST = 30  #: characters of a line of a name


@dataclass(frozen=True)
class Mark:
    """Colour, marker and dashes of one scheme."""

    color: Any
    marker: str
    dashes: Any


GREY = Mark(REFERENCE, "o", "-")


def marks(schemes: Iterable[str]) -> dict[str, Mark]:
    """One mark per scheme, by its place in sorted order: the same in all figures of a suite."""
    palette = [sns.color_palette("colorblind")[index] for index in _COLORS]
    return {
        scheme: Mark(
            palette[place % len(palette)],
            _MARKERS[place % len(_MARKERS)],
            _DASHES[place % len(_DASHES)],
        )
        for place, scheme in enumerate(sorted(set(schemes)))
    }


def draw_point(axes: Axes, x: float, y: float, mark: Mark, *, filled: bool, **style: Any) -> None:
    """Draw the marker of ``mark``; hollow unless ``filled``."""
    style |= {"color": mark.color, "marker": mark.marker, "linestyle": "none"}
    axes.plot([x], [y], markerfacecolor=mark.color if filled else "white", **style)


def handle(mark: Mark, *, filled: bool = True) -> Line2D:
    """The marker of ``mark`` for a legend."""
    face = mark.color if filled else "white"
    return Line2D([], [], color=mark.color, marker=mark.marker, markerfacecolor=face, linestyle="none")


@contextmanager
def look() -> Iterator[None]:
    """Context with our matplotlib settings, whatever the user's are."""
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
                "axes.spines.top": False,
                "axes.spines.right": False,
                "grid.color": "0.9",
                "text.parse_math": False,  # a label may hold a dollar sign
                "svg.hashsalt": "modbench",
            }
        )
        yield


@cache
def _font() -> str:
    """Family name of the DejaVu Sans that matplotlib ships; the system's may differ."""
    fontManager.ttflist.append(FontEntry(fname=str(FONT_FILE), name=_FONT, weight=400, size="scalable"))
    return _FONT


def row_names(entries: Sequence[Entry]) -> dict[str, str]:
    """Name of each row in figures, by label; marks unranked rows."""
    return {e.row.label: folded(e.row.label + " (not ranked)" * bool(e.unranked)) for e in entries}


def folded(label: str) -> str:
    """``label`` in lines that are short enough for a panel's title."""
    return textwrap.fill(label, _LONGEST)


def sheet(width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """A figure without axes, sizes in inches, drawn by Agg."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def written_out(axis: Axis, low: float, high: float) -> None:
    """Set the ticks of a logarithmic ``axis`` from ``low`` to ``high``, such as 2 G."""
    subs = (1, 2, 5) if high < 100 * low else (1,)
    axis.set_major_locator(
        LogLocator(subs=subs, numticks=12) if high > 6 * low else MaxNLocator(nbins=5)
    )
    axis.set_major_formatter(EngFormatter())
    axis.set_minor_locator(NullLocator())


def legend_below(figure: Figure, handles: dict[str, Any]) -> None:
    """Add a legend of ``handles`` by text below the axes, in up to three columns as the width allows;
    the figure grows by its height."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    height, lines = figure.get_figheight(), sum(1 + name.count("\n") for name in handles)
    place: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "handlelength": 2.8}
    for columns in (3, 2, 1):
        figure.set_figheight(height + _LEGEND_LINE * -(-lines // columns))
        legend = figure.legend(list(handles.values()), list(handles), ncols=columns, **place)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            break
        legend.remove()


def drawn_files(draws: Mapping[str, Callable[[], Figure | None]]) -> dict[str, bytes]:
    """The figures that ``draws`` make by name, those that have data, by file name."""
    contents: dict[str, bytes] = {}
    for name, draw in draws.items():
        with look():
            if figure := draw():
                contents |= _files(name, figure)
    return contents


def _files(name: str, figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and SVG, by file name; equal figures give equal bytes."""
    contents = {}
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        stream = io.BytesIO()
        figure.savefig(stream, format=ending, metadata=metadata, dpi=DOTS_PER_INCH)
        contents[f"{name}.{ending}"] = stream.getvalue()
    return contents
