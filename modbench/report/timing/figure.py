"""Figure of timings: realised efficiency of the routed schemes."""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.report.plot_style import (
    DOTTED,
    GREY,
    REFERENCE,
    WIDTH,
    Mark,
    draw_point,
    drawn_files,
    folded,
    handle,
    legend_below,
    marks,
    sheet,
)
from modbench.report.timing.table import Case, TimingTable, is_timed

#: Largest number of shapes with a panel each; of more, one case of each phase has a panel with them all.
_PANELS = 4
_ROW, _TOP = 0.36, 0.5  #: inches of a line of a panel; of its title and axis
_STEP = 0.08  #: inches between two schemes of a line
#: Marks of times that other work disturbed.
_DISTURBED = ("loaded", "throttled")


def timing_figures(table: TimingTable, look_of: Mapping[str, Mark] | None = None) -> dict[str, bytes]:
    """Realised efficiency by case and shape, by file name; nothing without a routed scheme that can be
    compared with vanilla. ``look_of``: the marks of all schemes."""
    look_of = look_of or marks({_scheme(row): row["router"] for row in table.cases})
    return drawn_files({"realised_efficiency": partial(drawn, table.cases, look_of)})


def drawn(cases: Sequence[Case], look_of: Mapping[str, Mark]) -> Figure | None:
    """The figure of the routed ``cases``: a panel per shape with a line per case, or, of many shapes, a
    panel per phase with a line per shape."""
    routed = [row for row in cases if row["router"] != "vanilla" and is_timed(row)]
    rows = sorted((row for row in routed if row["realised_efficiency"]), key=_size)  # stable
    by_shape = len({_shape(row) for row in rows}) <= _PANELS
    if not by_shape:
        largest = {row["phase"]: row["case"] for row in rows}  # cases of a phase ascend
        rows = [row for row in rows if row["case"] == largest[row["phase"]]]
    if not rows:
        return None
    panel, line = (_shape, _case) if by_shape else (_case, _shape)
    titles = list(dict.fromkeys(map(panel, rows)))
    lines = list(dict.fromkeys(map(line, rows)))
    schemes = sorted({*map(_scheme, rows)})
    across = 2 if len(titles) > 1 else 1
    down = -(-len(titles) // across)
    height = _TOP + max(_ROW, _STEP * (len(schemes) + 1)) * len(lines)
    figure = sheet(WIDTH if across == 1 else 1.5 * WIDTH, height * down)
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True, sharex=True).flat)
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title)
        for row in (row for row in rows if panel(row) == title):
            # Next to each other, so that no marker hides another.
            offset = 0.8 * ((schemes.index(_scheme(row)) + 0.5) / len(schemes) - 0.5)
            _draw_row(axes, row, lines.index(line(row)) + offset, look_of[_scheme(row)])
        axes.axvline(1.0, color=REFERENCE, **DOTTED)
        axes.grid(visible=False, axis="y")
        for number in range(1, len(lines), 2):
            axes.axhspan(number - 0.5, number + 0.5, color="0.96", linewidth=0, zorder=0)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_yticks(range(len(lines)), lines)
    panels[0].set_xlim(0, 1.1 * max(1.0, *(row["realised_efficiency"] or 0 for row in rows)))
    notes = ["speed-up achieved / expected from FLOPs"]
    if missing := _missing(routed, schemes):
        notes.append(folded(missing, 70 if across > 1 else 45))
    handles: dict[str, Any] = {folded(scheme): handle(look_of[scheme]) for scheme in schemes}
    handles["as expected"] = Line2D([], [], color=REFERENCE, **DOTTED)
    if any(row["efficiency_marks"] and not _is_disturbed(row) for row in rows):
        is_bound = any("host-bound" in row["efficiency_marks"] for row in rows)
        handles["unstable or host-bound time" if is_bound else "unstable time"] = handle(
            GREY, filled=False
        )
    if any(map(_is_disturbed, rows)):
        handles["loaded machine: no result"] = handle(Mark(REFERENCE, "|", "-"), markersize=9)
    legend_below(figure, handles, "\n".join(notes))
    return figure


def _draw_row(axes: Axes, row: Case, y: float, mark: Mark) -> None:
    """The marker of a scheme, hollow if a time is unstable; a thin stroke if other work disturbed it."""
    x = row["realised_efficiency"] or 0.0
    if _is_disturbed(row):
        draw_point(axes, x, y, Mark(mark.color, "|", "-"), filled=True, markersize=9, mew=1.6)
    else:
        draw_point(axes, x, y, mark, filled=not row["efficiency_marks"], markersize=7, clip_on=False)


def _is_disturbed(row: Case) -> bool:
    return any(word in row["efficiency_marks"] for word in _DISTURBED)


def _missing(routed: Sequence[Case], schemes: Collection[str]) -> str:
    """A sentence on timed schemes without any efficiency; empty if there are none."""
    names = sorted({*map(_scheme, routed)} - {*schemes})
    return f"no dense time at or around the widths of: {', '.join(names)}" if names else ""


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
