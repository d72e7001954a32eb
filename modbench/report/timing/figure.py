"""Figure of timings: realised efficiency of the routed schemes."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.report.leaderboard.scheme import split_label
from modbench.report.plot_style import (
    DOTTED,
    GREY,
    HEIGHT,
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
from modbench.report.timing.table import CaseRow, TimingTable

#: Largest number of shapes with a panel each; of more, the main cases have a panel with all shapes.
_PANELS = 4
_MAIN = ("forward", "train")


def timing_figures(table: TimingTable, look_of: Mapping[str, Mark] | None = None) -> dict[str, bytes]:
    """Realised efficiency by case and shape, by file name; nothing without a routed scheme that can be
    compared with vanilla. ``look_of``: the marks of all schemes."""
    rows = [row for row in table.cases if row.realised_efficiency and row.router != "vanilla"]
    look_of = look_of or marks(_scheme(row) for row in table.cases)
    return drawn_files({"realised_efficiency": partial(drawn, rows, look_of)})


def drawn(rows: Sequence[CaseRow], look_of: Mapping[str, Mark]) -> Figure | None:
    """The figure of ``rows``: a panel per shape with all cases, or a panel per case with all shapes."""
    rows = sorted(rows, key=_size)  # stable: the cases of a shape keep their order
    by_shape = len({_shape(row) for row in rows}) <= _PANELS
    if not by_shape:
        rows = [row for row in rows if row.phase in _MAIN]
    if not rows:
        return None
    panel, place = (_shape, _case) if by_shape else (_case, _shape)
    titles, places = (list(dict.fromkeys(map(one, rows))) for one in (panel, place))
    figure = sheet(WIDTH, HEIGHT + 0.6 * HEIGHT * (len(titles) - 1))
    panels = list(figure.subplots(len(titles), 1, squeeze=False, sharey=True, sharex=True).flat)
    schemes = list(dict.fromkeys(map(_scheme, rows)))
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        for row in (row for row in rows if panel(row) == title):
            # Next to each other, so that no marker hides another.
            offset = 0.8 * ((schemes.index(_scheme(row)) + 0.5) / len(schemes) - 0.5)
            style: dict[str, Any] = {"filled": not row.efficiency_marks, "markersize": 6.5}
            at = places.index(place(row)) + offset
            height = row.realised_efficiency or 0
            draw_point(axes, at, height, look_of[_scheme(row)], clip_on=False, **style)
        axes.axhline(1.0, color=REFERENCE, **DOTTED)
        axes.grid(visible=False, axis="x")
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_xticks(range(len(places)), places, rotation=60, ha="right")
    panels[0].set_ylim(0, 1.1 * max(1.0, *(row.realised_efficiency or 0 for row in rows)))
    figure.supylabel("speed-up achieved / expected", fontsize=11)
    handles: dict[str, Any] = {folded(scheme): handle(look_of[scheme]) for scheme in sorted(schemes)}
    handles["as expected"] = Line2D([], [], color=REFERENCE, **DOTTED)
    if any(row.efficiency_marks for row in rows):
        handles["doubtful time"] = handle(GREY, filled=False)
    legend_below(figure, handles)
    return figure


def _scheme(row: CaseRow) -> str:
    return split_label(row.label)[0]


def _shape(row: CaseRow) -> str:
    return split_label(row.label)[1]


def _size(row: CaseRow) -> int:
    """Order of shapes: about the parameters of their blocks."""
    model = json.loads(row.model)
    return int(model.get("layers") or 1) * int(model.get("width") or 1) ** 2


def _case(row: CaseRow) -> str:
    return row.case
