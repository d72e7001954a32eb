"""Names at the right edge of panels, each linked to its point by a line, in place of a legend."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from modbench.report.plot_style import lay_out

#: Points of the font; height of a line of it, in inches; characters of a line.
_FONT, _LINE, _LONGEST = 9, 0.155, 26


@dataclass(frozen=True)
class End:
    """The point (data coordinates) that ``text`` names."""

    x: float
    y: float
    text: str
    color: Any


def label_ends(figure: Figure, panels: Sequence[tuple[Axes, Sequence[End]]]) -> None:
    """Write the names of all ``panels`` and lay out the figure, once all else is drawn. The layout makes
    room for the names, so they are never cut."""
    drawn = [(axes, end, _write(axes, end)) for axes, ends in panels for end in ends]
    lay_out(figure)
    for axes, _ in panels:
        notes = [(end, note) for at, end, note in drawn if at is axes]
        inches = axes.get_window_extent().height / figure.dpi
        heights = [_LINE * len(_lines(end.text)) / inches for end, _ in notes]
        centres = spread([_fraction(axes, end) for end, _ in notes], heights)
        for (_, note), centre in zip(notes, centres, strict=True):
            note.set_y(centre)


def _write(axes: Axes, end: End) -> Annotation:
    link = {"arrowstyle": "-", "color": end.color, "linewidth": 0.8, "alpha": 0.6}
    return axes.annotate(
        "\n".join(_lines(end.text)),
        (end.x, end.y),
        (1.04, _fraction(axes, end)),
        textcoords="axes fraction",
        arrowprops=link | {"relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4},
        annotation_clip=False,
        color=end.color,
        fontsize=_FONT,
        linespacing=1.05,
        ha="left",
        va="center",
    )


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, _LONGEST) or [text]


def _fraction(axes: Axes, end: End) -> float:
    """Height of ``end`` in ``axes``, from 0 to 1."""
    pixels = axes.transData.transform((end.x, end.y))
    return float(axes.transAxes.inverted().transform(pixels)[1])


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres of intervals of ``heights`` that don't overlap and lie as near to ``wanted`` as possible
    (least squares), within 0 to 1 if they fit."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    offsets: list[float] = []
    for number, index in enumerate(order):
        before = heights[order[number - 1]] if number else 0.0
        offsets.append(offsets[-1] + (before + heights[index]) / 2 if number else 0.0)
    # Without their offsets the centres must ascend: isotonic regression by pooling neighbours.
    pools: list[tuple[float, int]] = []
    for index, offset in zip(order, offsets, strict=True):
        pools.append((wanted[index] - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, count), (other, more) = pools[-2:]
            pools[-2:] = [((mean * count + other * more) / (count + more), count + more)]
    free = [mean for mean, count in pools for _ in range(count)]
    low = heights[order[0]] / 2 if order else 0.0
    high = 1 - heights[order[-1]] / 2 - offsets[-1] if order else 1.0
    centres = [max(min(mean, high), low) + offset for mean, offset in zip(free, offsets, strict=True)]
    of_interval = dict(zip(order, centres, strict=True))
    return [of_interval[index] for index in range(len(wanted))]
