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
from modbench.report.timing_table import Group, TimingTable


def timing_figures(table: TimingTable) -> dict[str, bytes]:
    """The figure as PNG and SVG, by file name."""
    labels = list(dict.fromkeys(row.label for group in table.groups for row in group.cases))
    look_of = marks(labels)
    with look():
        figure = sheet(WIDTH, HEIGHT * len(table.groups))
        panels = figure.subplots(len(table.groups), 1, squeeze=False).flat
        drawn: set[str] = set()
        for axes, title, group in zip(panels, table.titles, table.groups, strict=True):
            drawn |= draw_efficiency(group, look_of, axes)
            axes.set_title(plain(title))
        if drawn:
            names = plains([label for label in labels if label in drawn])
            handles: list[Any] = [handle(look_of[label]) for label in names]
            entries = [*names.values(), "as promised"]
            handles.append(Line2D([], [], color=REFERENCE, **DOTTED))
            if any(row.efficiency_marks for group in table.groups for row in group.cases):
                handles.append(handle(GREY, filled=False))
                entries.append(DOUBTED)
            legend_below(figure, handles, entries)
        return files("realised_efficiency", figure)


def draw_efficiency(group: Group, look_of: dict[str, Mark], axes: Axes) -> set[str]:
    """Draw the routed schemes of ``group``, hollow where a time is doubtful; return their labels."""
    rows = [
        row for row in group.cases if row.realised_efficiency is not None and row.router != "vanilla"
    ]
    if not rows:
        say_nothing_to_show(axes, "no routed scheme and vanilla were both timed")
        return set()
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
    return set(labels)
