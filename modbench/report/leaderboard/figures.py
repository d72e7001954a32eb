"""Figures of the leaderboard: loss against training FLOPs, loss against forward FLOPs per token, and
those of `modbench.report.routing.figure`. All FLOPs are in convention ``model``.

Each is a set of panels by budget; learning curves also by size. A scheme has the same colour and marker
in all of them. A figure without data is not drawn. Rows beyond the first `MOST_NAMED` are drawn in grey,
without a name.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from modbench.records.record import canonical_json
from modbench.report.leaderboard.board import Entry, Leaderboard, size_of
from modbench.report.leaderboard.row import Row
from modbench.report.leaderboard.scheme import shape_name, split_label
from modbench.report.leaderboard.titles import comparison_titles
from modbench.report.plot_style import (
    DOTTED,
    HEIGHT,
    REFERENCE,
    Mark,
    draw_point,
    drawn_files,
    handle,
    legend_below,
    marks,
    sheet,
    written_out,
)
from modbench.report.routing.figure import routing_figures

_Marks = Mapping[str, Mark]
#: Inches of a panel, alone or among others.
_ALONE, _WIDTH, _HEIGHT = 6.8, 4.6, 3.2
_COLUMNS = 3
#: Largest number of rows of a panel, or schemes of a legend, that are named, in the table's order.
MOST_NAMED = 20
_UNNAMED = "0.7"  #: grey of the others


@dataclass(frozen=True)
class _Panel:
    title: str
    entries: Sequence[Entry]


def figures(board: Leaderboard, look_of: _Marks | None = None) -> dict[str, bytes]:
    """All figures of ``board`` that have data, by file name. ``look_of``: the marks of all schemes."""
    draws = {name: partial(drawn, board, name, look_of) for name in FIGURES}
    return drawn_files(draws) | routing_figures(board)


def drawn(board: Leaderboard, name: str, look_of: _Marks | None = None) -> Figure | None:
    """The figure ``name``, one of `FIGURES`; None without data."""
    look_of = look_of or marks({e.scheme: e.row.run.router.name for e in board.entries})
    return FIGURES[name](board, look_of)


def curve_points(row: Row) -> list[tuple[float, float, float, float]]:
    """(training FLOPs, mean, smallest and largest held-out loss) of the curve of ``row``, up to the
    FLOPs that all its seeds spent: those that finished, or all if none did.

    Seeds are joined by FLOPs, not by step: a scheme whose number of routed tokens varies spends the same
    FLOPs in another number of steps. A point lies at the mean FLOPs of the seeds; the loss of each is
    interpolated there, in the logarithm of FLOPs.
    """
    curves = [
        [(point.flops, point.heldout_loss) for point in record.curve if point.flops > 0]
        for record in row.ok or row.records
        if record.curve
    ]
    points = []
    for at_point in zip(*curves, strict=False):
        flops = statistics.fmean(spent for spent, _ in at_point)
        losses = [_interpolated(curve, flops) for curve in curves]
        points.append((flops, statistics.fmean(losses), min(losses), max(losses)))
    return points


def _interpolated(curve: Sequence[tuple[float, float]], flops: float) -> float:
    spent, losses = zip(*curve, strict=True)
    return float(np.interp(math.log(flops), np.log(spent), losses))


def _grid(board: Leaderboard, of: Callable[[Row], object], *, by_shape: bool) -> list[list[_Panel]]:
    """Rows of panels with the entries that ``of`` finds data for: a column per comparison and, if
    ``by_shape`` and a scheme has several shapes, a row per shape. A single row or column is wrapped."""
    columns = [[e for e in entries if of(e.row)] for entries in board.comparisons]
    columns = [entries for entries in columns if entries]
    sizes = Counter((e.comparison, e.scheme, canonical_json(e.row.model)) for c in columns for e in c)
    if not by_shape or max(Counter(key[:2] for key in sizes).values(), default=0) < 2:
        titles = comparison_titles(columns) if len(columns) > 1 else [""] * len(columns)
        return _wrapped([_Panel(*panel) for panel in zip(titles, columns, strict=True)])
    entries = sorted((entry for column in columns for entry in column), key=lambda e: size_of(e.row))
    shapes = {canonical_json(entry.row.model): entry.row for entry in reversed(entries)}
    grid = []
    for shape, row in reversed(shapes.items()):
        name = split_label(row.first.label)[1] or shape_name(row.model)
        of_shape = [[e for e in column if canonical_json(e.row.model) == shape] for column in columns]
        titles = (
            [f"{name}, {budget}" for budget in comparison_titles(columns)]
            if len(columns) > 1
            else [name]
        )
        grid.append([_Panel(*panel) for panel in zip(titles, of_shape, strict=True)])
    return _wrapped([line[0] for line in grid]) if len(columns) == 1 else grid


def _wrapped(panels: list[_Panel]) -> list[list[_Panel]]:
    return [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]


def _axes(grid: list[list[_Panel]]) -> tuple[Figure, list[tuple[Axes, _Panel]]]:
    """A figure with axes for each panel of ``grid``. Panels of one budget have a common y axis."""
    across = max(map(len, grid))
    alone = len(grid) == across == 1
    width, height = (_ALONE, HEIGHT) if alone else (_WIDTH * across, _HEIGHT * len(grid))
    figure = sheet(width, height)
    every = figure.subplots(len(grid), across, squeeze=False)
    panels: list[tuple[Axes, _Panel]] = []
    of_budget: dict[int, Axes] = {}
    for line, row in zip(grid, every, strict=True):
        for number, axes in enumerate(row):
            if number >= len(line) or not line[number].entries:
                axes.set_axis_off()
                continue
            first = of_budget.setdefault(line[number].entries[0].comparison, axes)
            if first is not axes:
                axes.sharey(first)
            axes.set_title(line[number].title)
            panels.append((axes, line[number]))
    return figure, panels


def _learning_curves(board: Leaderboard, look_of: _Marks) -> Figure | None:
    grid = _grid(board, curve_points, by_shape=True)
    if not grid:
        return None
    figure, panels = _axes(grid)
    handles: dict[str, Any] = {}
    unigram: dict[str, Any] = {}
    words = set()
    for axes, panel in panels:
        others = [curve_points(entry.row) for entry in panel.entries[MOST_NAMED:]]
        if others:
            words.add(f"grey: the rows of the table after its first {MOST_NAMED}")
            lines = [[point[:2] for point in curve] for curve in others]
            axes.add_collection(LineCollection(lines, colors=_UNNAMED, linewidths=0.6, zorder=1.5))
        for entry in panel.entries[:MOST_NAMED]:
            flops, mean, least, greatest = zip(*curve_points(entry.row), strict=True)
            mark = look_of[entry.scheme]
            style: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "markersize": 4.5}
            (line,) = axes.plot(flops, mean, linewidth=1.6, linestyle=mark.dashes, **style)
            handles.setdefault(entry.scheme + " (not ranked)" * bool(entry.unranked), line)
            if least != greatest:
                words.add("mean of seeds, band from least to greatest")
                axes.fill_between(flops, least, greatest, color=mark.color, alpha=0.18, linewidth=0)
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        values = (entry.row.value("unigram_loss") for entry in panel.entries)
        for loss in sorted({value.center for value in values if value}):
            unigram[f"unigram {loss:.2f}"] = axes.axhline(loss, color=REFERENCE, **DOTTED)
    figure.supylabel("held-out loss (nats/token),\ncausal rule", fontsize=11)
    flops_spent = "training FLOPs spent (convention model)"
    legend_below(figure, handles | unigram, "\n".join([flops_spent, *sorted(words, reverse=True)]))
    return figure


def _final_losses(board: Leaderboard, look_of: _Marks) -> Figure | None:
    grid = _grid(board, _Final.of, by_shape=False)
    if not grid:
        return None
    figure, panels = _axes(grid)
    handles: dict[str, Any] = {}
    words = set()
    every = dict.fromkeys(entry.scheme for _, panel in panels for entry in panel.entries)
    named = {*list(every)[:MOST_NAMED]}
    if len(every) > MOST_NAMED:
        words.add(f"grey: the schemes of the table after its first {MOST_NAMED}")
    for axes, panel in panels:
        unnamed = [_Final.of(entry.row) for entry in panel.entries if entry.scheme not in named]
        at = [(point.flops, point.loss) for point in unnamed if point]
        if at:
            axes.plot(*zip(*at, strict=True), color=_UNNAMED, linestyle="none", marker=".", zorder=1.5)
        schemes: dict[str, list[Entry]] = defaultdict(list)
        for entry in panel.entries:
            if entry.scheme in named:
                schemes[entry.scheme].append(entry)
        for scheme, entries in schemes.items():
            mark = look_of[scheme]
            sizes = [(_Final.of(entry.row), entry.best_size) for entry in entries]
            points = sorted((point, best) for point, best in sizes if point is not None)
            for point, best in points:
                draw_point(axes, point.flops, point.loss, mark, filled=best, markersize=8, zorder=3)
                if point.spread:
                    words.add("mean of seeds and its 95 % t-interval")
                    bar = {"ecolor": mark.color, "capsize": 4, "zorder": 2.5}
                    axes.errorbar([point.flops], [point.loss], yerr=point.spread, fmt="none", **bar)
            if len(points) > 1:
                words.add("lines: sizes of a scheme, the best filled")
                at = [(point.flops, point.loss) for point, _ in points]
                axes.plot(*zip(*at, strict=True), color=mark.color, linewidth=1)
            name = scheme + " (not ranked)" * all(entry.unranked for entry in entries)
            handles.setdefault(name, handle(mark, markersize=8))
        axes.margins(0.1)
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
    figure.supylabel("final held-out loss (nats/token),\ncausal rule", fontsize=11)
    flops = "forward FLOPs per token (realised, convention model)"
    legend_below(figure, handles, "\n".join([flops, *sorted(words, reverse=True)]))
    return figure


@dataclass(frozen=True, order=True)
class _Final:
    """Position of a row; ``spread`` is half the interval of its loss."""

    flops: float
    loss: float
    spread: float = 0.0

    @classmethod
    def of(cls, row: Row) -> "_Final | None":
        loss, flops = row.value("heldout_loss"), row.value("forward_flops_per_token_realised")
        return cls(flops.center, loss.center, loss.spread or 0.0) if loss and flops else None


FIGURES: dict[str, Callable[[Leaderboard, _Marks], Figure | None]] = {
    "loss_vs_training_flops": _learning_curves,
    "loss_vs_forward_flops": _final_losses,
}
