"""Fits of isoFLOP points of any source: optima of each curve, surfaces, and exponents of the optimum."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from modbench.analysis.curve import LEAST_SIZES
from modbench.analysis.curves import points_of, runs_of, surfaces_of
from modbench.analysis.frames import FIT_COLUMNS, RUN_COLUMNS, frame_of
from modbench.analysis.isoflop import DRAWS, FITS, analyse
from modbench.analysis.surface import fit_surface
from modbench.errors import UserError

#: In ascending order of FLOPs, a new curve starts where they rise by more than this factor. In public
#: sets, points of one curve follow each other within 1.16, and the nearest budgets are 1.238 apart.
STEP = 1.2
#: Ratio of the FLOPs of a curve's ends above which the points form no curve. In public sets it is
#: at most 1.44.
WIDEST = 2.0
#: Sizes of a curve within this factor are one size: Akima interpolation between sizes that differ by
#: rounding only has no meaning. Sizes read off a published figure differ by up to 2e-6.
SAME_SIZE = 1.001
#: Budgets are medians of FLOPs, which need not be whole numbers.
_TYPES = {"budget": "Float64"}


@dataclass(frozen=True, kw_only=True)
class PointFits:
    """The fits of points, whose groups are schemes in the frames; see `modbench.analysis.curves.Curves`.

    Exponents are those of N_opt ~ C^size_exponent and D_opt ~ C^tokens_exponent: of a line through the
    logarithms of the interior optima of ``budgets`` budgets, or those of a surface. They are missing,
    with the reason, where there are too few."""

    points: pd.DataFrame  #: repeated points without a seed are one
    optima: pd.DataFrame
    surfaces: pd.DataFrame  #: fitted to all points of a group
    exponents: pd.DataFrame


def fit_points(frame: pd.DataFrame, fits: Sequence[str] = FITS) -> PointFits:
    """Fit the curves of equal FLOPs of each group. Columns of ``frame``, a row for each point: size in
    parameters, tokens, FLOPs, loss in nats per token, and, if there are any, group and seed; points
    without a seed that repeat a size are averaged. Raises UserError: points that form no curves, no
    curve with three sizes, or the same point twice."""
    frame = pd.DataFrame({"group": "all", "seed": pd.NA}, index=frame.index).assign(
        **dict(frame.items())
    )
    groups = dict([*frame.groupby("group", sort=False)])
    curves = [curve for points in groups.values() for curve in _curves(points)]
    runs = frame_of((run for curve in curves for run in _runs(curve)), RUN_COLUMNS, _TYPES)
    points = points_of(runs, _TYPES)
    sizes = points.groupby(["scheme", "budget"], sort=False).size()
    if (most := sizes.max()) < LEAST_SIZES:
        raise UserError(
            f"the points have no curve of three sizes: the most is {most}, at {sizes.idxmax()[1]:.3g} "
            "FLOPs; add sizes at equal FLOPs"
        )
    isoflop = analyse(runs_of(runs), draws=DRAWS if len(runs) > len(points) else 1, fits=fits)
    optima = [
        isoflop.optimum(group, budget, fit).row() | {"sizes": sizes[group, budget]}
        for group in groups
        for budget in sorted(sizes[group].index)
        for fit in fits
    ]
    optima_frame = frame_of(optima, FIT_COLUMNS, _TYPES)
    surfaces = surfaces_of(isoflop).set_index("scheme", drop=False)
    for group in surfaces.index:  # that of the analysis is fitted to the means of repeated points
        if len(of := groups[group]) > sizes[group].sum():
            for name, value in vars(fit_surface(of["size"], of["tokens"], of["loss"])).items():
                surfaces.loc[group, name] = value
    return PointFits(
        points=points,
        optima=optima_frame,
        surfaces=surfaces.reset_index(drop=True),
        exponents=_exponents([*groups], fits, optima_frame, surfaces),
    )


def _curves(points: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for curve in _in_steps(points, "FLOPs", STEP):
        low, high = curve["FLOPs"].min(), curve["FLOPs"].max()
        if high > WIDEST * low:
            raise UserError(
                f"the points of group '{curve['group'].iloc[0]}' form no curves of equal FLOPs: they "
                f"spread from {low:.3g} to {high:.3g} without a gap of {STEP - 1:.0%}; give points at "
                "budgets that lie further apart"
            )
        yield curve


def _in_steps(points: pd.DataFrame, column: str, step: float) -> Iterator[pd.DataFrame]:
    """``points`` in ascending order of ``column``, cut where it rises by more than a factor ``step``."""
    ordered = points.sort_values(column, kind="stable")
    number = (ordered[column] > step * ordered[column].shift()).cumsum()
    return (part for _, part in ordered.groupby(number))


def _runs(curve: pd.DataFrame) -> Iterator[Mapping[str, Any]]:
    """The runs of a curve: one for each size and seed."""
    for size in _in_steps(curve, "size", SAME_SIZE):
        for seed, repeats in size.sort_index().groupby("seed", dropna=False):
            if len(repeats) > 1 and not pd.isna(seed):
                first, second, *_ = repeats.index
                raise UserError(
                    f"point {second} repeats group, FLOPs, size and seed of point {first}; "
                    "remove one of them or correct its seed"
                )
            yield {
                "scheme": curve["group"].iloc[0],
                "budget": float(curve["FLOPs"].median()),
                "active_parameters": size["size"].mean(),
                "train_tokens": repeats["tokens"].mean(),
                "loss": repeats["loss"].mean(),
                "seed": 0 if pd.isna(seed) else seed,
                "status": "ok",
            }


def _exponents(
    groups: Sequence[str], fits: Sequence[str], optima: pd.DataFrame, surfaces: pd.DataFrame
) -> pd.DataFrame:
    rows = []
    for group, fit in product(groups, fits):
        of_fit = optima[(optima["scheme"] == group) & (optima["fit"] == fit)]
        interior = of_fit.dropna(subset="loss")
        row = {"scheme": group, "fit": fit, "budgets": len(of_fit if fit == "surface" else interior)}
        if fit == "surface" and group in surfaces.index:
            # Where C is proportional to N D (Hoffmann et al. 2022, equation 4).
            alpha, beta = surfaces.loc[group, ["alpha", "beta"]]
            row |= {"size_exponent": beta / (alpha + beta), "tokens_exponent": alpha / (alpha + beta)}
        elif fit == "surface":
            row["missing_because"] = "fewer than two budgets or six points"
        elif len(interior) < 2:
            row["missing_because"] = "fewer than two interior optima"
        else:
            names = ["budget", "active_parameters", "train_tokens"]
            flops, sizes, tokens = np.log(interior[names].to_numpy(float)).T
            away = flops - flops.mean()
            slope = away / (away**2).sum()
            row |= {"size_exponent": slope @ sizes, "tokens_exponent": slope @ tokens}
        rows.append(row)
    columns = ("scheme", "fit", "size_exponent", "tokens_exponent", "budgets", "missing_because")
    return frame_of(rows, columns, {"budgets": "Int64", "missing_because": "string"})
