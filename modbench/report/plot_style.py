"""Style of all figures: one set of matplotlib's settings, in light and dark, seaborn's palettes with a
colour and marker per scheme, panels, legends, and files that are the same for the same data."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

#: Figures by name, drawn when called; None: there are no data.
Draws = dict[str, Callable[[], Figure | None]]
#: Inches of a figure, whose text is legible on a phone, and of the height of one of its panels.
WIDTH, PANEL = 6.2, 2.6
REFERENCE = "0.5"  #: grey of reference lines, on white and on black
DOTTED: dict[str, Any] = {"color": REFERENCE, "linestyle": (0, (1, 1)), "linewidth": 1.4}
FONT_FILE = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
_STYLE = {
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": "medium",
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "axes.edgecolor": "0.3",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "errorbar.capsize": 2.5,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a label may hold a dollar sign
    "svg.fonttype": "none",  # text stays text: a quarter of the size, and it can be searched
    "svg.hashsalt": "modbench",
}
_PAPER, _INK = "#0d1117", "#d1d7e0"
_DARK = dict.fromkeys(("figure.facecolor", "axes.facecolor"), _PAPER) | {"grid.color": "#30363d"}
_DARK |= dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
)
#: Figures that the README shows, which are drawn for a dark page, too.
DARK_TOO = ("difference_to_dense",)
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
#: Presets and other schemes of a router, in the order of their names: its colour mixed with white, or
#: black (below 0), another marker, and dashes.
_VARIANTS = (
    (0.4, "<", (0, (5, 1.5))),
    (-0.4, ">", (0, (1.5, 1.2))),
    (0.4, "8", (0, (6, 1.5, 1.5, 1.5))),
    (-0.4, "H", (0, (3, 3))),
    (0.65, "d", (0, (1, 2.5))),
    (-0.65, "*", (0, (9, 2))),
)


@dataclass(frozen=True)
class Mark:
    """Colour, marker and dashes of one scheme."""

    color: Any
    marker: str
    dashes: Any = "-"


GREY = Mark(REFERENCE, "o")


def marks(routers: Mapping[str, str]) -> dict[str, Mark]:
    """One mark per scheme. ``routers``: the router's name by scheme.

    The scheme that is named as its router has the router's mark, which for modbench's routers is the
    same in all suites. Plugins take colours, and other schemes of a router shades of its colour, in the
    order of their names.
    """
    plugins = sorted({*routers.values()} - {*_BUILT_IN})
    looks: dict[str, Mark] = {}
    for router in sorted({*routers.values()}):
        if router in _BUILT_IN:
            palette, index, marker = _BUILT_IN[router]
        else:
            number = plugins.index(router)
            palette, index = _PLUGINS[number % len(_PLUGINS)]
            marker = _PLUGIN_MARKERS[number % len(_PLUGIN_MARKERS)]
        color = _palette(palette)[index]
        others = sorted(scheme for scheme, of in routers.items() if of == router != scheme)
        for number, scheme in enumerate(others):
            share, other_marker, dashes = _VARIANTS[number % len(_VARIANTS)]
            mixed = tuple(part + abs(share) * ((share > 0) - part) for part in color)
            looks[scheme] = Mark(mixed, other_marker, dashes)
        if router in routers:
            looks[router] = Mark(color, marker)
    return looks


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
    face = mark.color if filled else paper()
    axes.plot(
        [x], [y], mark.marker, color=mark.color, markerfacecolor=face, **{"markersize": 6, **style}
    )


def handle(mark: Mark, *, filled: bool = True, **style: Any) -> Line2D:
    """The marker of ``mark`` for a legend, as `draw_point` draws it."""
    shown: dict[str, Any] = {"marker": mark.marker, "linestyle": "none", "markersize": 6, **style}
    return Line2D([], [], color=mark.color, markerfacecolor=mark.color if filled else paper(), **shown)


def paper() -> Any:
    """The colour behind the axes, which fills hollow markers."""
    return mpl.rcParams["axes.facecolor"]


@contextmanager
def look(*, dark: bool = False) -> Iterator[None]:
    """Context with our settings of matplotlib, whatever the user's are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_seaborn().axes_style("whitegrid") | _STYLE | (_DARK if dark else {}))
        yield


def panels(
    number: int, height: float = PANEL, *, across: int = 2, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its ``number`` panels of ``height`` inches, ``across`` abreast; ``shared``: sharex or
    sharey, of panels that all have the names of their ticks."""
    across = min(across, number)
    down = -(-number // across)
    figure = Figure(figsize=(WIDTH, height * down), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.04)  # type: ignore[union-attr, call-arg]
    every = list(figure.subplots(down, across, squeeze=False, **shared).flat)
    for axes in every[number:]:
        axes.remove()
    for axes in every[:number]:
        axes.tick_params(labelbottom=True)
    return figure, every[:number]


def written_out(axis: Axis, low: float, high: float) -> None:
    """Set the ticks of a logarithmic ``axis`` from ``low`` to ``high``, such as 2 G."""
    subs = (1, 2, 5) if high < 12 * low else (1, 3) if high < 200 * low else (1,)
    is_wide = high > 4 * low
    axis.set_major_locator(LogLocator(subs=subs, numticks=12) if is_wide else MaxNLocator(nbins=4))
    axis.set_major_formatter(EngFormatter())
    axis.set_minor_locator(NullLocator())


def legend_below(figure: Figure, handles: Mapping[str, Any], columns: int = 3) -> None:
    """Add a legend of ``handles`` by text under the figure, which grows by it (`_files`)."""
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
    figure.legend([*handles.values()], [*handles], ncols=min(columns, len(handles)), **place)


def drawn_files(draws: Draws, *, png: bool = False) -> dict[str, bytes]:
    """The figures of ``draws`` that have data by file name: in SVG, and in PNG if ``png``."""
    contents: dict[str, bytes] = {}
    for name, draw in draws.items():
        for dark in (False, True) if name in DARK_TOO else (False,):
            with look(dark=dark):
                if figure := draw():
                    contents |= _files(f"{name}_dark" if dark else name, figure, png=png)
    return contents


def _files(name: str, figure: Figure, *, png: bool) -> dict[str, bytes]:
    """The files of a figure; equal figures give equal bytes."""
    metadata: dict[str, dict[str, Any]] = {"svg": {"Date": None, "Creator": None}}
    metadata |= {"png": {"Software": None}} if png else {}  # second, since drawing moves the layout
    contents = {}
    for kind, of_kind in metadata.items():
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, metadata=of_kind, bbox_inches="tight")
        contents[f"{name}.{kind}"] = stream.getvalue()
    return dict(sorted(contents.items()))
