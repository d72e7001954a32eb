"""Figure of timings: realised efficiency of the routed schemes."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.report.plot_style import (
    DOTTED,
    GREY,
    REFERENCE,
    Draws,
    Mark,
    draw_point,
    handle,
    legend_below,
    panels,
)
from modbench.report.timing.table import Case, TimingTable, is_timed

#: Largest number of shapes with a panel each; of more, one case of each phase has a panel with them all.
_PANELS = 4
_SCHEME, _GAP = 0.09, 0.14  #: inches of a scheme, and between two lines
#: Marks of times that other work disturbed.
_DISTURBED = ("loaded", "throttled")


def timing_figures(table: TimingTable, look_of: Mapping[str, Mark]) -> Draws:
    """Realised efficiency by case and shape. ``look_of``: the marks of all schemes."""
    return {"realised_efficiency": partial(efficiencies, table.cases, look_of)}


def efficiencies(cases: Sequence[Case], look_of: Mapping[str, Mark]) -> Figure | None:
    """A panel per shape with a line per case or, of many shapes, a panel per phase with a line per
    shape. None without a routed scheme that can be compared with vanilla."""
    routed = [row for row in cases if row["router"] != "vanilla" and is_timed(row)]
    rows = sorted((row for row in routed if row["realised_efficiency"]), key=_size)  # stable
    by_shape = len({_shape(row) for row in rows}) <= _PANELS
    if not by_shape:
        largest = {row["phase"]: row["case"] for row in rows}  # cases of a phase ascend
        rows = [row for row in rows if row["case"] == largest[row["phase"]]]
    if not rows:
        return None
    panel, line = (_shape, _case) if by_shape else (_case, _shape)
    titles, lines = ([*dict.fromkeys(map(name, rows))] for name in (panel, line))
    schemes = sorted({*map(_scheme, rows)})
    height = (_SCHEME * len(schemes) + _GAP) * len(lines) + 0.6
    figure, every = panels(len(titles), height, sharex=True, sharey=True)
    for axes, title in zip(every, titles, strict=True):
        axes.set_title(title)
        for row in (row for row in rows if panel(row) == title):
            # Next to each other, so that no marker hides another.
            shift = 0.8 * ((schemes.index(_scheme(row)) + 0.5) / len(schemes) - 0.5)
            mark, doubts = look_of[_scheme(row)], row["efficiency_marks"]
            shown = Mark(mark.color, "|") if _is_disturbed(row) else mark
            at = row["realised_efficiency"] or 0.0, lines.index(line(row)) + shift
            draw_point(axes, *at, shown, filled=not doubts, clip_on=False)
        axes.axvline(1.0, **DOTTED)
        axes.grid(visible=False, axis="y")
        for number in range(1, len(lines), 2):
            axes.axhspan(number - 0.5, number + 0.5, color=REFERENCE, alpha=0.1, linewidth=0)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_yticks(range(len(lines)), lines)
    every[0].set_xlim(0, 1.1 * max(1.0, *(row["realised_efficiency"] or 0 for row in rows)))
    figure.supxlabel("speed-up achieved / expected from FLOPs", fontsize="medium")
    handles: dict[str, Any] = {scheme: handle(look_of[scheme]) for scheme in schemes}
    handles["as expected"] = Line2D([], [], **DOTTED)
    if any(row["efficiency_marks"] and not _is_disturbed(row) for row in rows):
        handles["unstable or host-bound time"] = handle(GREY, filled=False)
    if any(map(_is_disturbed, rows)):
        handles["loaded machine: no result"] = handle(Mark(REFERENCE, "|"))
    legend_below(figure, handles)
    return figure


def _is_disturbed(row: Case) -> bool:
    return any(word in row["efficiency_marks"] for word in _DISTURBED)


def _scheme(row: Case) -> str:
    return str(row["label"]).partition("/")[0]


def _shape(row: Case) -> str:
    return str(row["label"]).partition("/")[2]


def _size(row: Case) -> int:
    """Order of shapes: about the parameters of their blocks."""
    model = json.loads(row["model"])
    return int(model.get("layers") or 1) * int(model.get("width") or 1) ** 2


def _case(row: Case) -> str:
    return row["case"]
