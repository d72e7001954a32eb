"""Anyone's isoFLOP points: read from a CSV file with named columns, and fitted: optima of each curve,
surfaces, and exponents of the optimum."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modbench.analysis.curve import LEAST_SIZES
from modbench.analysis.curves import points_of, runs_of, surfaces_of
from modbench.analysis.frames import FIT_COLUMNS, RUN_COLUMNS, frame_of
from modbench.analysis.isoflop import DRAWS, FITS, analyse
from modbench.analysis.surface import fit_surface
from modbench.errors import UserError, is_file, printable

#: Accepted names of each column, in lower case with underscores.
COLUMNS: dict[str, tuple[str, ...]] = {
    "size": ("size", "n", "params", "parameters", "n_params", "num_params", "model_size"),
    "tokens": ("tokens", "d", "n_tokens", "num_tokens", "train_tokens", "training_tokens"),
    "FLOPs": ("flops", "c", "compute", "budget", "train_flops", "training_flops"),
    "loss": ("loss", "val_loss", "validation_loss", "eval_loss", "test_loss", "heldout_loss"),
    "seed": ("seed",),
    "group": ("group", "scheme", "experiment", "router"),
}
#: Name of the group in a file without a column of groups.
ALL = "all"
#: In ascending order of FLOPs, a new curve starts where they rise by more than this factor. In public
#: sets, points of one curve follow each other within 1.16, and the nearest budgets are 1.238 apart.
STEP = 1.2
#: Ratio of the FLOPs of a curve's ends above which the points form no curve. In public sets it is
#: at most 1.44.
WIDEST = 2.0
#: Sizes of a curve within this factor are one size: Akima interpolation between sizes that differ by
#: rounding only has no meaning. Sizes read off a published figure differ by up to 2e-6.
SAME_SIZE = 1.001
#: Ratio of the FLOPs of a curve's ends above which a note states it.
_NAMED = 1.01
#: Budgets are medians of FLOPs, which need not be whole numbers.
_TYPES = {"budget": "Float64"}


@dataclass(frozen=True)
class Points:
    """The points of ``file``, and sentences on how they were read. Columns of ``frame``: group, size,
    tokens, FLOPs, loss, and seed, which is missing in a file without seeds; its index is the number of
    the line."""

    file: Path
    frame: pd.DataFrame
    notes: Sequence[str]


def read_points(file: Path) -> Points:
    """Read the points of ``file``. Missing tokens, or missing FLOPs, follow from C = 6 N D. Blank lines
    and lines that start with ``#`` are skipped. Raises UserError: the file does not exist, is not CSV,
    lacks a column, or holds a cell that is not a positive number."""
    (_, headings), *lines = [*_lines(file)] or [(0, [])]
    if not headings:
        raise UserError(f"{file} is empty; it needs a line of column names and a line for each point")
    places = _places(file, headings)
    for number, cells in lines:
        if len(cells) != len(headings):
            raise UserError(
                f"{file}, line {number}: it has {len(cells)} cells, and the first line names "
                f"{len(headings)} columns; quote cells that hold a separator"
            )
    if not lines:
        raise UserError(f"{file} holds column names and no points; add a line for each point")
    text = pd.DataFrame([cells for _, cells in lines], index=[number for number, _ in lines], dtype=str)
    points = {"group": ALL, "seed": pd.NA}
    for meaning, place in places.items():
        cells = text[place]
        points[meaning] = cells if meaning == "group" else pd.to_numeric(cells, errors="coerce")
        if meaning == "group":
            continue
        wanted, is_good = "a positive number", np.isfinite(points[meaning]) & (points[meaning] > 0)
        if meaning == "seed":
            wanted, is_good = "an integer", cells.str.fullmatch(r"[+-]?\d+")
        for number, cell in cells[~is_good].items():
            raise UserError(
                f"{file}, line {number}, column '{headings[place]}': '{cell}' is not {wanted}; correct "
                "it or remove the line"
            )
    names = (f"{meaning} from '{headings[place]}'" for meaning, place in places.items())
    notes = [f"Columns read: {', '.join(names)}."]
    frame = pd.DataFrame(points, index=text.index)
    for missing, given in (("tokens", "FLOPs"), ("FLOPs", "tokens")):
        if missing not in places:
            flops = 6 * frame["size"]
            frame[missing] = frame[given] / flops if missing == "tokens" else frame[given] * flops
            notes.append(
                f"The file has no column of {missing}: they follow from size and {given} by the "
                "convention C = 6 N D."
            )
    return Points(file, frame.astype({"seed": "Int64"}), notes)


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    if not is_file(file):
        raise UserError(f"{file}: no such file; name a CSV file of points")
    try:
        text = printable(file.read_text(encoding="utf-8-sig"))
        first = next((line for line in text.splitlines() if line and not line.startswith("#")), "")
        reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count), strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells) and not cells[0].startswith("#"):
                yield reader.line_num, [cell.strip() for cell in cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8 ({error}); export it as one") from None


def _places(file: Path, headings: Sequence[str]) -> dict[str, int]:
    """The column of each meaning that ``headings`` name."""
    plain = [heading.lower().replace(" ", "_").replace("-", "_") for heading in headings]
    places: dict[str, int] = {}
    for meaning, names in COLUMNS.items():
        columns = [column for column, name in enumerate(plain) if name in names]
        if len(columns) > 1:
            both = " and ".join(f"'{headings[column]}'" for column in columns)
            raise UserError(f"{file}: columns {both} both mean {meaning}; rename all but one of them")
        if columns:
            places[meaning] = columns[0]
    either = "tokens" if "FLOPs" in places else "FLOPs"  # one follows from the other
    missing = [name for name in ("size", "tokens", "FLOPs", "loss") if name not in {*places, either}]
    if missing:
        accepted = "; ".join(
            f"{name}: {', '.join(COLUMNS[name] + COLUMNS['FLOPs'] * (name == 'tokens'))}"
            for name in missing
        )
        raise UserError(
            f"{file} has no column of {' or of '.join(missing)}; it has the columns "
            f"{', '.join(headings)}, and accepted names are {accepted}"
        )
    return places


@dataclass(frozen=True, kw_only=True)
class PointFits:
    """The fits of the points of a file, whose groups are schemes in the frames; see
    `modbench.analysis.curves.Curves`.

    Exponents are those of N_opt ~ C^size_exponent and D_opt ~ C^tokens_exponent: of a line through the
    logarithms of the interior optima of ``budgets`` budgets, or those of a surface. They are missing,
    with the reason, where there are too few."""

    file: str
    fits: Sequence[str]
    points: pd.DataFrame  #: repeated points without a seed are one
    optima: pd.DataFrame
    surfaces: pd.DataFrame  #: fitted to all points of a group
    exponents: pd.DataFrame
    notes: Sequence[str]


def fit_points(read: Points, fits: Sequence[str] = FITS) -> PointFits:
    """Fit the curves of equal FLOPs of each group. Raises UserError: points that form no curves, no
    curve with three sizes, or the same point twice."""
    groups = dict([*read.frame.groupby("group", sort=False)])
    curves = [curve for points in groups.values() for curve in _curves(points)]
    notes = [*read.notes]
    widest = max(curve["FLOPs"].max() / curve["FLOPs"].min() for curve in curves)
    if widest > _NAMED:
        notes.append(
            f"FLOPs within a curve differ by up to {widest - 1:.0%}; its budget is their median."
        )
    runs = frame_of((run for curve in curves for run in _runs(curve)), RUN_COLUMNS, _TYPES)
    total = len(read.frame)
    if read.frame["seed"].isna().all() and (repeats := total - len(runs)):
        notes.append(
            f"{repeats} of {total} points repeat the size of another point of their curve. "
            "Curves are fitted to the mean of such points, since the file has no column of seeds."
        )
    points = points_of(runs, _TYPES)
    sizes = points.groupby(["scheme", "budget"], sort=False).size()
    if (most := sizes.max()) < LEAST_SIZES:
        raise UserError(
            f"{read.file} has no curve of three sizes: the most is {most}, at {sizes.idxmax()[1]:.3g} "
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
        file=read.file.name,
        fits=fits,
        points=points,
        optima=optima_frame,
        surfaces=surfaces.reset_index(drop=True),
        exponents=_exponents([*groups], fits, optima_frame, surfaces),
        notes=notes,
    )


def _curves(points: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for curve in _in_steps(points, "FLOPs", STEP):
        low, high = curve["FLOPs"].min(), curve["FLOPs"].max()
        if high > WIDEST * low:
            raise UserError(
                f"the points of group '{curve['group'].iloc[0]}' form no curves of equal FLOPs: from "
                f"{low:.3g} to {high:.3g} FLOPs, each has at most {STEP - 1:.0%} more than the one "
                "before; give points at budgets that lie further apart"
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
                    f"line {second} repeats group, FLOPs, size and seed of line {first}; "
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
                "shares_trunk": False,
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
