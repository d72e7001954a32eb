"""Fits of anyone's isoFLOP points as a page, a CSV table, a JSON document and a figure."""

import json
from collections import Counter
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.analysis.frames import rows_of
from modbench.analysis.points import PointFits
from modbench.report.isoflop.figures import draw_curve, draw_optimum
from modbench.report.isoflop.tables import fits_table, surface_table
from modbench.report.markdown import Page, page
from modbench.report.plot_style import (
    GREY,
    REFERENCE,
    WIDTH,
    handle,
    legend_below,
    panels,
    written_out,
)
from modbench.report.table import Table, rounded

_NAMES = {"scheme": "group", "active_parameters": "size", "train_tokens": "tokens"}
_NAMES |= {"active_parameters_low": "size_low", "active_parameters_high": "size_high"}
_OPTIMA = ["scheme", "budget", "fit", "sizes", "minimum", "active_parameters", "active_parameters_low"]
_OPTIMA += ["active_parameters_high", "train_tokens", "loss", "loss_low", "loss_high", "curvature"]
_OPTIMA += ["interior_share", "interval_missing_because"]
_MARKERS = {"parabola": "*", "akima": "^", "surface": "D"}


def points_page(fits: PointFits) -> Page:
    """Optima, surfaces, exponents, and notes on how the points were read. The words are in
    ``pages/fit.md.j2``."""
    optima, surfaces, exponents = map(rows_of, (fits.optima, fits.surfaces, fits.exponents))
    reasons = Counter(of.interval_missing_because for of in optima if of.interval_missing_because)
    edges, known = {of.scheme for of in surfaces if of.at_edge}, {*fits.surfaces["scheme"]}
    return page(
        "fit",
        file=fits.file,
        optima=Table.of(fits_table(optima, "group"), left=(0, 3, 4)),
        no_interval=[*reasons.items()],
        has_surfaces="surface" in fits.fits,
        surfaces=surface_table(surfaces, "group"),
        untrusted=[of.scheme for of in surfaces if of.at_edge],
        without=[group for group in dict.fromkeys(fits.optima["scheme"]) if group not in known],
        exponents=Table.of([_exponent_cells(row) for row in exponents], left=(0, 1)),
        missing=[
            of for of in exponents if of.missing_because or (of.fit == "surface" and of.scheme in edges)
        ],
        notes=fits.notes,
    )


def points_table(fits: PointFits) -> pd.DataFrame:
    """One row per group, budget and fit, with the exponents of the fit. Rows of the surface have its
    parameters."""
    optima, surfaces, exponents = _frames(fits)
    of_fit = exponents[["group", "fit", "size_exponent", "tokens_exponent"]]
    of_surface = surfaces.drop(columns="points").assign(fit="surface")
    return optima.merge(of_fit, how="left").merge(of_surface, on=["group", "fit"], how="left")


def points_json(fits: PointFits) -> str:
    """One JSON document on one line."""
    names = ("optima", "surfaces", "exponents")
    frames = ([row._asdict() for row in rows_of(frame)] for frame in _frames(fits))
    document = {"file": fits.file, **dict(zip(names, frames, strict=True))}
    return json.dumps(document | {"notes": [*fits.notes]}, allow_nan=False)


def _frames(fits: PointFits) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The frames of optima, surfaces and exponents, with the names of the files."""
    surfaces = fits.surfaces.assign(huber_1e6=1e6 * fits.surfaces["huber"])
    surfaces = surfaces[["scheme", "points", "E", "A", "B", "alpha", "beta", "huber_1e6", "at_edge"]]
    frames = (fits.optima[_OPTIMA], surfaces, fits.exponents)
    optima, surfaces, exponents = (rounded(frame.rename(columns=_NAMES)) for frame in frames)
    return optima, surfaces, exponents


def _exponent_cells(row: Any) -> dict[str, object]:
    exponents = {"a": row.size_exponent, "b": row.tokens_exponent}
    return {
        "group": row.scheme,
        "fit": row.fit,
        **{name: None if of is None else f"{of:.4f}" for name, of in exponents.items()},
        "budgets": row.budgets,
    }


def points_figure(fits: PointFits) -> Figure:
    """Means and ranges of seeds by size, the parabola of each curve where it is interior, and the
    optimum by each fit. Curves without an interior optimum by the first fit have hollow markers."""
    groups = [*dict.fromkeys(fits.optima["scheme"])]
    figure, every = panels(len(groups), *([0.6 * WIDTH] if len(groups) == 1 else []))
    budgets = sorted(fits.points["budget"].unique())
    colors: Colormap = sns.color_palette("crest", as_cmap=True)
    scale = LogNorm(budgets[0], budgets[-1])
    points = rows_of(fits.points.sort_values("active_parameters"))
    optima = rows_of(fits.optima)
    for axes, group in zip(every, groups, strict=True):
        for budget in budgets:
            curve = [point for point in points if (point.scheme, point.budget) == (group, budget)]
            of_fit = [row for row in optima if (row.scheme, row.budget) == (group, budget)]
            if not curve:
                continue
            color = colors(scale(budget))
            draw_curve(axes, curve, of_fit[0], color, marker="o", markersize=4)
            for row in of_fit:
                if row.loss is not None:
                    ends = (row.loss_low, row.loss_high)
                    draw_optimum(axes, row, ends, **_style(row.fit, color), elinewidth=1)
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        if len(groups) > 1:
            axes.set_title(group)
    figure.supxlabel("size", fontsize="medium")
    figure.supylabel("loss", fontsize="medium")
    if len(budgets) > 1:
        rows = -(-len(groups) // 2)
        bar = figure.colorbar(ScalarMappable(scale, colors), ax=every, aspect=25 * rows, pad=0.02)
        bar.set_label("training FLOPs")
        ticks = budgets[:: -(-len(budgets) // 10)]  # ten at most
        bar.set_ticks(ticks, labels=[f"{budget:.3g}" for budget in ticks])
        bar.minorticks_off()
        bar.outline.set_visible(False)
    else:
        figure.suptitle(f"{budgets[0]:.3g} training FLOPs", fontsize="medium")
    repeated = bool((fits.points["seeds"] > 1).any())
    handles: dict[str, Any] = {"mean and range of seeds" if repeated else "point": handle(GREY)}
    if "parabola" in fits.fits:
        handles["parabola"] = Line2D([], [], color=REFERENCE, linewidth=1.2)
    for fit in fits.fits:
        handles[f"optimum, {fit}"] = Line2D([], [], linestyle="none", **_style(fit, REFERENCE))
    if any(row.loss is None for row in optima if row.fit == fits.fits[0]):
        handles["no interior optimum"] = handle(GREY, filled=False)
    legend_below(figure, handles)
    return figure


def _style(fit: str, color: Any) -> dict[str, Any]:
    """The marker of an optimum: a star on top of hollow ones, so that fits that agree stay visible."""
    if fit == "parabola":
        marker: dict[str, Any] = {"markersize": 12, "markeredgecolor": "white", "zorder": 5}
    else:
        marker = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.2, "zorder": 4}
    return {"marker": _MARKERS[fit], "color": color, **marker}
