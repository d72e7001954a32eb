"""Style shared by all figures: fixed matplotlib settings, a colour and marker per scheme, legends,
reproducible files."""

import io
import textwrap
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from modbench.report.leaderboard.rows import Row

#: Inches, without legend. At 6 cm (a phone), a font of 11 points is still readable.
WIDTH, HEIGHT = 5.4, 4.2
DOTS_PER_INCH = 200
REFERENCE = "0.35"  #: grey, for reference lines
DOTTED: dict[str, Any] = {"linestyle": (0, (1, 1)), "linewidth": 1.4}
FONT_FILE = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
_FONT = "modbench DejaVu Sans"
#: Seaborn's palette, the colour's place in it, and the marker of each router of modbench: the same in
#: all suites. Routers of the shipped suites have the colours that differ most; dense is grey.
_BUILT_IN = {
    "vanilla": ("colorblind", 7, "o"),
    "mod": ("colorblind", 0, "s"),
    "expert_choice": ("colorblind", 2, "D"),
    "token_choice": ("colorblind", 1, "P"),
    "mode_staged": ("colorblind", 4, "v"),
    "mode_integrated": ("colorblind", 3, "^"),
    "expert_threshold": ("colorblind", 5, "d"),
    "mixture_of_recursions": ("colorblind", 9, "X"),
    "relu_routing": ("dark", 8, "p"),
    "threshold_skip": ("dark", 9, "h"),
}
#: The same of plugins, in the order of their names.
_PLUGINS = (("dark", 6), ("dark", 3), ("dark", 2), ("dark", 0))
_PLUGIN_MARKERS = "<>8H*"  # five for four colours: 20 plugins differ
#: Presets and other schemes of a router: its colour mixed with black (below 0) or white, another marker,
#: and dashes.
_VARIANTS = (
    (-0.4, "<", (0, (5, 1.5))),
    (0.35, ">", (0, (1.5, 1.2))),
    (-0.4, "8", (0, (6, 1.5, 1.5, 1.5))),
    (0.35, "H", (0, (3, 3))),
    (-0.65, "d", (0, (1, 2.5))),
    (0.35, "*", (0, (9, 2))),
)
_LONGEST = 30  #: characters of a line of a name


@dataclass(frozen=True)
class Mark:
    """Colour, marker and dashes of one scheme."""

    color: Any
    marker: str
    dashes: Any


GREY = Mark(REFERENCE, "o", "-")


def marks(routers: Mapping[str, str]) -> dict[str, Mark]:
    """One mark per scheme. ``routers``: the router's name by scheme.

    The scheme that is named as its router has the router's mark, which for modbench's routers is the
    same in all suites. Its other schemes have a shade of the colour, by a hash of their name. Plugins
    take colours in the order of their names.
    """
    plugins = sorted({*routers.values()} - {*_BUILT_IN})
    taken: dict[str, set[int]] = {}
    looks = {}
    for scheme, router in sorted(routers.items()):
        base = _mark_of(router, plugins)
        if scheme == router:
            looks[scheme] = base
            continue
        used = taken.setdefault(router, set())
        first = zlib.crc32(scheme.encode()) % len(_VARIANTS)
        order = [(first + step) % len(_VARIANTS) for step in range(len(_VARIANTS))]
        number = next((number for number in order if number not in used), first)
        used.add(number)
        looks[scheme] = _variant(base, number, is_grey=router == "vanilla")
    return looks


def _mark_of(router: str, plugins: Sequence[str]) -> Mark:
    if router in _BUILT_IN:
        palette, index, marker = _BUILT_IN[router]
    else:
        number = plugins.index(router)
        palette, index = _PLUGINS[number % len(_PLUGINS)]
        marker = _PLUGIN_MARKERS[number % len(_PLUGIN_MARKERS)]
    return Mark(_palette(palette)[index], marker, "-")


def _variant(base: Mark, number: int, *, is_grey: bool) -> Mark:
    mixed, marker, dashes = _VARIANTS[number]
    if is_grey:  # a lighter grey is too pale on white
        mixed = -abs(mixed)
    target = float(mixed > 0)
    color = tuple(part + abs(mixed) * (target - part) for part in base.color)
    return Mark(color, marker, dashes)


@cache
def _palette(name: str) -> Sequence[Any]:
    return tuple(_seaborn().color_palette(name))


@cache
def _seaborn() -> Any:
    """Seaborn, imported with the first figure: it takes longer than all of a report without figures."""
    import seaborn

    return seaborn


def draw_point(axes: Axes, x: float, y: float, mark: Mark, *, filled: bool, **style: Any) -> None:
    """Draw the marker of ``mark``; hollow unless ``filled``."""
    style |= {"color": mark.color, "marker": mark.marker, "linestyle": "none"}
    axes.plot([x], [y], markerfacecolor=mark.color if filled else "white", **style)


def handle(mark: Mark, *, filled: bool = True, markersize: float = 6) -> Line2D:
    """The marker of ``mark`` for a legend, as `draw_point` draws it."""
    style: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "linestyle": "none"}
    face = mark.color if filled else "white"
    return Line2D([], [], markerfacecolor=face, markersize=markersize, **style)


@contextmanager
def look() -> Iterator[None]:
    """Context with our matplotlib settings, whatever the user's are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_seaborn().axes_style("whitegrid"))
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


def row_names(rows: Sequence[Row]) -> dict[str, str]:
    """Name of each row in figures, by label; marks unranked rows."""
    return {
        row["_name"]: folded(row["_name"] + " (not ranked)" * bool(row["_unranked"])) for row in rows
    }


def folded(label: str, longest: int = _LONGEST) -> str:
    """``label`` in lines short enough for a panel's title; a budget in brackets gets its own line."""
    if len(label) <= longest:
        return label
    return "\n".join(textwrap.fill(line, longest) for line in label.replace(" [", "\n[").split("\n"))


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


def legend_below(figure: Figure, handles: Mapping[str, Any], above: str = "") -> None:
    """Add a legend of ``handles`` by text below the axes, in as many columns as the width allows; the
    figure grows by its height. ``above``: text over it, such as the name of all panels' x axis."""
    style: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "handlelength": 2.8}
    style |= {"title": above, "title_fontsize": 11} if above else {}
    for columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(list(handles.values()), list(handles), ncols=columns, **style)
        legend.get_title().set_multialignment("center")
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or columns == 1:
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            return
        legend.remove()


def lay_out(figure: Figure) -> None:
    """Lay out ``figure`` once; drawing it keeps the layout."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")


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
    lay_out(figure)
    png, svg = io.BytesIO(), io.BytesIO()
    # Not by `Figure.savefig`, which draws a figure with a layout engine twice.
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return {f"{name}.png": png.getvalue(), f"{name}.svg": svg.getvalue()}
