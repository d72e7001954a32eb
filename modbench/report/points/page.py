"""Fits of anyone's isoFLOP points as a page, a CSV table and a JSON document."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from modbench.analysis.isoflop import DIGITS, DIGITS_OF_SURFACES, Interval, Optimum, rounded
from modbench.analysis.point_fits import PointFits
from modbench.errors import several
from modbench.report.leaderboard.metric_cells import si
from modbench.report.markdown import Page
from modbench.report.sections import Heading, Items, Part, page_of
from modbench.report.table import Table, escaped

_Row = dict[str, Any]
_SURFACE = ("E", "A", "B", "alpha", "beta", "huber_1e6", "at_edge")


def points_page(fits: PointFits) -> Page:
    """Optima, surfaces, exponents, and notes on how the points were read."""
    optima = _optima(fits)
    parts: list[Part] = [
        Heading(f"Fits of {escaped(fits.file)}", 1),
        Heading("Optima"),
        Table.of([_optimum_cells(fits, optimum) for optimum in optima], left=(0, 3, 4)),
        *_missing_intervals(optima),
    ]
    if "surface" in fits.fits:
        parts += [Heading("Surfaces L(N, D) = E + A / N^alpha + B / D^beta"), *_surfaces(fits)]
    return page_of(
        [
            *parts,
            Heading("Exponents: N_opt grows as C^a, D_opt as C^b"),
            Table.of([_exponent_cells(row) for row in _exponent_rows(fits)], left=(0, 1)),
            *_missing_exponents(fits),
            Heading("Notes"),
            Items([*map(escaped, fits.notes), "More: `modbench docs isoflop`."]),
        ]
    )


def points_table(fits: PointFits) -> Table:
    """One row per group, budget and fit, with the exponents of the fit. Rows of the surface have its
    parameters."""
    exponents = {(row["group"], row["fit"]): row for row in _exponent_rows(fits)}
    surfaces = {(row["group"], "surface"): row for row in _surface_rows(fits)}
    rows = []
    for row in map(_optimum_row, _optima(fits)):
        key = row["group"], row["fit"]
        row |= {name: exponents[key][name] for name in ("size_exponent", "tokens_exponent")}
        rows.append(row | {name: surfaces.get(key, {}).get(name) for name in _SURFACE})
    return Table.of(rows)


def points_json(fits: PointFits) -> str:
    """One JSON document on one line."""
    document = {
        "file": fits.file,
        "optima": [_optimum_row(optimum) for optimum in _optima(fits)],
        "surfaces": _surface_rows(fits),
        "exponents": _exponent_rows(fits),
        "notes": [*fits.notes],
    }
    return json.dumps(document, allow_nan=False)


def _optima(fits: PointFits) -> list[Optimum]:
    return [
        fits.analysis.optimum(group, budget, fit)
        for group in fits.points
        for budget in fits.budgets(group)
        for fit in fits.fits
    ]


def _optimum_row(optimum: Optimum) -> _Row:
    return {
        "group": optimum.scheme,
        "budget": optimum.budget,
        "fit": optimum.fit,
        "verdict": optimum.verdict,
        **_with_ends("size", optimum.size, optimum.size_interval),
        "tokens": optimum.tokens,
        **_with_ends("loss", optimum.loss, optimum.loss_interval),
        "interior_share": optimum.interior_share,
        "interval_missing_because": optimum.void or None,
    }


def _with_ends(name: str, value: float | None, interval: Interval | None) -> _Row:
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _surface_rows(fits: PointFits) -> list[_Row]:
    return [
        {
            "group": group,
            "points": fits.points[group],
            **{
                name: rounded(float(value), DIGITS_OF_SURFACES)
                for name, value in (
                    ("E", surface.E),
                    ("A", surface.A),
                    ("B", surface.B),
                    ("alpha", surface.alpha),
                    ("beta", surface.beta),
                    ("huber_1e6", 1e6 * surface.huber),
                )
            },
            "at_edge": bool(surface.at_edge),
        }
        for group, surface in fits.surfaces.items()
    ]


def _exponent_rows(fits: PointFits) -> list[_Row]:
    return [
        {
            "group": exponents.group,
            "fit": exponents.fit,
            "size_exponent": _that_holds(exponents.size, exponents.fit),
            "tokens_exponent": _that_holds(exponents.tokens, exponents.fit),
            "budgets": exponents.budgets,
            "missing_because": exponents.void or None,
        }
        for exponents in fits.exponents
    ]


def _that_holds(value: float | None, fit: str) -> float | None:
    """``value`` with the digits that are the same on every processor."""
    digits = DIGITS_OF_SURFACES if fit == "surface" else DIGITS
    return None if value is None else rounded(value, digits)


def _optimum_cells(fits: PointFits, optimum: Optimum) -> _Row:
    verdict = str(optimum.verdict)
    if optimum.interior_share is not None and optimum.interior_share < 0.9995:
        verdict = f"interior in {100 * optimum.interior_share:.3g} % of draws"
    return {
        "group": optimum.scheme,
        "FLOPs": f"{optimum.budget:.3g}",
        "sizes": len(fits.curve(optimum.scheme, optimum.budget)),
        "fit": optimum.fit,
        "verdict": verdict,
        "N_opt (95 %)": _with_interval(optimum.size, optimum.size_interval, lambda x: si(x, 3)),
        "D_opt": None if optimum.tokens is None else si(optimum.tokens, 3),
        "loss (95 %)": _with_interval(optimum.loss, optimum.loss_interval, lambda x: f"{x:.4f}"),
    }


def _with_interval(
    value: float | None, interval: Interval | None, text: Callable[[float], str]
) -> str | None:
    if value is None:
        return None
    return text(value) + (f" ({text(interval[0])} to {text(interval[1])})" if interval else "")


def _missing_intervals(optima: Iterable[Optimum]) -> Iterable[str]:
    for reason, number in Counter(optimum.void for optimum in optima if optimum.void).items():
        yield f"No interval for {several(number, 'optimum').replace('optimums', 'optima')}: {reason}."


def _surfaces(fits: PointFits) -> Iterable[Part]:
    rows = _surface_rows(fits)
    if rows:
        yield Table.of([_surface_cells(row) for row in rows])
    if without := [group for group in fits.points if group not in fits.surfaces]:
        names = ", ".join(map(escaped, without))
        yield f"No surface for {names}: it needs two budgets and six points."
    if edges := [row["group"] for row in rows if row["at_edge"]]:
        names = ", ".join(map(escaped, edges))
        yield f"Not to be trusted: {names}. An exponent lies at the edge of its range, or A or B is 0."


def _surface_cells(row: _Row) -> _Row:
    digits = {"E": ".4f", "A": ".4g", "B": ".4g", "alpha": ".4f", "beta": ".4f"}
    cells = {name: f"{row[name]:{form}}" for name, form in digits.items()}
    huber = {"mean Huber loss (1e-6)": f"{row['huber_1e6']:.1f}"}
    return {"group": row["group"], "points": row["points"], **cells, **huber}


def _exponent_cells(row: _Row) -> _Row:
    size, tokens = row["size_exponent"], row["tokens_exponent"]
    return {
        "group": row["group"],
        "fit": row["fit"],
        "a": None if size is None else f"{size:.4f}",
        "b": None if tokens is None else f"{tokens:.4f}",
        "budgets": row["budgets"],
    }


def _missing_exponents(fits: PointFits) -> Iterable[str]:
    for exponents in fits.exponents:
        if exponents.void:
            yield f"No exponents of {escaped(exponents.group)} by {exponents.fit}: {exponents.void}."
        elif exponents.fit == "surface" and fits.surfaces[exponents.group].at_edge:
            yield f"Not to be trusted: the surface of {escaped(exponents.group)}, and so its exponents."
