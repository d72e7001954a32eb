"""Two figures per size: realised efficiency by case, and measured against predicted memory."""

import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.report.plot_style import (
    REFERENCE,
    Mark,
    blank,
    files,
    legend_below,
    look,
    marks,
    plain,
    plains,
    say_nothing_to_show,
    written_out,
)
from modbench.report.timing_table import Group, TimingTable

_DOTTED: dict[str, Any] = {"linestyle": (0, (1, 1)), "linewidth": 1.4}

#: File names of the figures, whatever the sizes.
NAMED = re.compile(r"(realised_efficiency|memory_predicted)(_[A-Za-z0-9.-]+)?\.(png|svg)")


def timing_figures(table: TimingTable) -> dict[str, bytes]:
    """All figures of ``table``, by file name."""
    contents = {}
    suffixes: list[str] = []
    for number, (title, group) in enumerate(zip(table.titles, table.groups, strict=True), start=1):
        named = suffix = f"_{_safe(title) or number}" if title else ""
        further = number
        while suffix in suffixes:
            suffix, further = f"{named}-{further}", further + 1
        suffixes.append(suffix)
        look_of = marks([row.label for row in group.cases])
        for name, draw in (("realised_efficiency", _efficiency), ("memory_predicted", _memory)):
            with look():
                figure, axes = blank()
                draw(group, look_of, figure, axes)
                for ending, content in files(figure).items():
                    contents[f"{name}{suffix}.{ending}"] = content
    return contents


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def _efficiency(group: Group, look_of: dict[str, Mark], figure: Figure, axes: Axes) -> None:
    rows = [
        (row, row.realised_efficiency)
        for row in group.cases
        if row.realised_efficiency is not None and row.router != "vanilla"
    ]
    if not rows:
        say_nothing_to_show(axes, "no routed scheme was timed beside a vanilla one")
        return
    cases = list(dict.fromkeys(row.case for row, _ in rows))
    labels = list(dict.fromkeys(row.label for row, _ in rows))
    handles = []
    for number, label in enumerate(labels):
        mark = look_of[label]
        # Side by side, so that no marker hides another.
        shift = 0.6 * ((number + 0.5) / len(labels) - 0.5)
        for row, value in rows:
            if row.label == label:
                face = "none" if row.doubts_of_both else mark.color
                place = cases.index(row.case) + shift
                axes.plot(
                    [place],
                    [value],
                    color=mark.color,
                    marker=mark.marker,
                    markerfacecolor=face,
                    linestyle="none",
                    markersize=6.5,
                    clip_on=False,
                )
        handles.append(Line2D([], [], color=mark.color, marker=mark.marker, linestyle="none"))
    names = list(plains(labels).values())
    if any(row.doubts_of_both for row, _ in rows):
        handles.append(
            Line2D([], [], color=REFERENCE, marker="o", markerfacecolor="none", linestyle="none")
        )
        names.append("unstable or loaded")
    axes.axhline(1.0, color=REFERENCE, **_DOTTED)
    handles.append(Line2D([], [], color=REFERENCE, **_DOTTED))
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
    handles, labels = [], []
    texts = plains(list(dict.fromkeys(row.label for row, _, _ in rows)))
    for label in texts:
        mark = look_of.get(label, Mark(REFERENCE, "o", "-"))
        for row, predicted, measured in rows:
            if row.label == label:
                face = mark.color if row.phase == "training" else "none"
                axes.plot(
                    [predicted],
                    [measured],
                    color=mark.color,
                    marker=mark.marker,
                    markerfacecolor=face,
                    linestyle="none",
                    markersize=7,
                )
        handles.append(Line2D([], [], color=mark.color, marker=mark.marker, linestyle="none"))
        labels.append(texts[label])
    for face, words in ((REFERENCE, "training"), ("none", "inference")):
        handles.append(
            Line2D([], [], color=REFERENCE, marker="o", markerfacecolor=face, linestyle="none")
        )
        labels.append(words)
    values = [value for _, *pair in rows for value in pair]
    low, high = min(values) / 1.3, max(values) * 1.3
    axes.plot([low, high], [low, high], color=REFERENCE, **_DOTTED)
    handles.append(Line2D([], [], color=REFERENCE, **_DOTTED))
    labels.append("as predicted")
    for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        set_scale("log")
        written_out(axis, low, high, "B")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("peak predicted")
    axes.set_ylabel("peak measured")
    legend_below(figure, handles, labels)
