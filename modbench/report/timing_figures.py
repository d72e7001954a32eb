"""Two figures per size: realised efficiency by case, and measured against predicted memory."""

import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.report.plot_style import (
    DOTTED,
    DOUBTED,
    GREY,
    REFERENCE,
    Mark,
    blank,
    draw_point,
    files,
    handle,
    legend_below,
    look,
    marks,
    plain,
    plains,
    say_nothing_to_show,
    written_out,
)
from modbench.report.timing_table import Group, TimingTable

#: File names of the figures, whatever the sizes.
NAMED = re.compile(r"(realised_efficiency|memory_predicted)(_[A-Za-z0-9.-]+)?\.(png|svg)")


def timing_figures(table: TimingTable) -> dict[str, bytes]:
    """All figures of ``table``, by file name."""
    contents: dict[str, bytes] = {}
    for number, (title, group) in enumerate(zip(table.titles, table.groups, strict=True), start=1):
        suffix = f"_{_safe(title) or number}" if title else ""
        if f"memory_predicted{suffix}.png" in contents:
            suffix += f"-{number}"
        look_of = marks([row.label for row in group.cases])
        for name, draw in (("realised_efficiency", _efficiency), ("memory_predicted", _memory)):
            with look():
                figure, axes = blank()
                draw(group, look_of, figure, axes)
                contents.update(files(name + suffix, figure))
    return contents


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def _efficiency(group: Group, look_of: dict[str, Mark], figure: Figure, axes: Axes) -> None:
    rows = [
        row for row in group.cases if row.realised_efficiency is not None and row.router != "vanilla"
    ]
    if not rows:
        say_nothing_to_show(axes, "no routed scheme and vanilla were both timed")
        return
    cases = list(dict.fromkeys(row.case for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    for row in rows:
        # Side by side, so that no marker hides another.
        shift = 0.6 * ((labels.index(row.label) + 0.5) / len(labels) - 0.5)
        place = cases.index(row.case) + shift
        style: dict[str, Any] = {"filled": not row.efficiency_marks, "markersize": 6.5, "clip_on": False}
        draw_point(axes, place, row.realised_efficiency or 0, look_of[row.label], **style)
    handles = [handle(look_of[label]) for label in labels]
    names = list(plains(labels).values())
    if any(row.efficiency_marks for row in rows):
        handles.append(handle(GREY, filled=False))
        names.append(DOUBTED)
    axes.axhline(1.0, color=REFERENCE, **DOTTED)
    handles.append(Line2D([], [], color=REFERENCE, **DOTTED))
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(cases)), [plain(case) for case in cases], rotation=60, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("speed-up achieved / promised")
    legend_below(figure, handles, [*names, "as promised"])


def _memory(group: Group, look_of: dict[str, Mark], figure: Figure, axes: Axes) -> None:
    rows = [
        (row, row.predicted, row.measured)
        for row in group.memory
        # Values may be missing, or not above 0 for a model smaller than a page of memory.
        if row.part == "peak" and row.predicted and row.measured and min(row.predicted, row.measured) > 0
    ]
    if not rows:
        say_nothing_to_show(axes, "no memory was measured")
        return
    for row, predicted, measured in rows:
        mark = look_of.get(row.label, GREY)
        draw_point(axes, predicted, measured, mark, filled=row.phase == "training", markersize=7)
    texts = plains(list(dict.fromkeys(row.label for row, _, _ in rows)))
    handles = [handle(look_of.get(label, GREY)) for label in texts]
    handles += [handle(GREY), handle(GREY, filled=False)]
    values = [value for _, *pair in rows for value in pair]
    low, high = min(values) / 1.3, max(values) * 1.3
    axes.plot([low, high], [low, high], color=REFERENCE, **DOTTED)
    handles.append(Line2D([], [], color=REFERENCE, **DOTTED))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set(xlabel="peak predicted", ylabel="peak measured")
    for axis in (axes.xaxis, axes.yaxis):
        written_out(axis, low, high, "B")
    legend_below(figure, handles, [*texts.values(), "training", "inference", "as predicted"])
