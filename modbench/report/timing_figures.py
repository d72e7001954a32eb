"""The figure of timings: realised efficiency by case, one panel per size."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from modbench.report.plot_style import (
    DOTTED,
    DOUBTED,
    GREY,
    HEIGHT,
    REFERENCE,
    WIDTH,
    Mark,
    draw_point,
    files,
    handle,
    legend_below,
    look,
    marks,
    plain,
    plains,
    say_nothing_to_show,
    sheet,
)
from modbench.report.timing_table import CaseRow, TimingTable


def timing_figures(table: TimingTable) -> dict[str, bytes]:
    """The figure as PNG and SVG, by file name."""
    shown = [[row for row in group.cases if _is_drawn(row)] for group in table.groups]
    labels = list(dict.fromkeys(row.label for rows in shown for row in rows))
    look_of = marks(labels)
    with look():
        figure = sheet(WIDTH, HEIGHT * len(table.groups))
        panels = figure.subplots(len(table.groups), 1, squeeze=False).flat
        for axes, title, rows in zip(panels, table.titles, shown, strict=True):
            draw_efficiency(rows, look_of, axes)
            axes.set_title(plain(title))
        if labels:
            names = plains(labels)
            handles: dict[str, Any] = {names[label]: handle(look_of[label]) for label in labels}
            handles["as promised"] = Line2D([], [], color=REFERENCE, **DOTTED)
            if any(row.efficiency_marks for rows in shown for row in rows):
                handles[DOUBTED] = handle(GREY, filled=False)
            legend_below(figure, handles)
        return files("realised_efficiency", figure)


def _is_drawn(row: CaseRow) -> bool:
    return row.realised_efficiency is not None and row.router != "vanilla"


def draw_efficiency(rows: list[CaseRow], look_of: dict[str, Mark], axes: Axes) -> None:
    """Draw the efficiencies of the routed schemes, hollow where a time is doubtful."""
    if not rows:
        say_nothing_to_show(axes, "no routed scheme and vanilla were both timed")
        return
    cases = list(dict.fromkeys(row.case for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    for row in rows:
        # Next to each other, so that no marker hides another.
        place = cases.index(row.case) + 0.6 * ((labels.index(row.label) + 0.5) / len(labels) - 0.5)
        style: dict[str, Any] = {"filled": not row.efficiency_marks, "markersize": 6.5, "clip_on": False}
        draw_point(axes, place, row.realised_efficiency or 0, look_of[row.label], **style)
    axes.axhline(1.0, color=REFERENCE, **DOTTED)
    axes.set_ylim(0, 1.1 * max(1.0, *(row.realised_efficiency or 0 for row in rows)))
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.set_xticks(range(len(cases)), [plain(case) for case in cases], rotation=60, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("speed-up achieved / promised")
