"""Frames of isoFLOP curves: their columns; and rows of any frame."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from modbench.analysis.pairs import typed

#: A row of a frame as a dictionary, None for what is missing.
Row = Mapping[str, Any]
#: The dense model, with which all schemes are compared.
DENSE = "vanilla"
#: Marks of the rows that may be the best one: of a table, or of a budget's curves.
BEST, NOT_SEPARABLE = "best", "not separable"
#: Metric on the axis of the curves.
SIZE = "active_parameters"
#: Metrics of which points have the mean.
MEANS = ("train_tokens", "train_steps", "train_flops", "forward_flops_per_token")
#: Columns of a curve's optimum by one fit. Ends of intervals hold 95 %; those of ``best_loss`` contain
#: what the choice of the best depth hides. The parabola is ``loss + curvature * log(size /
#: active_parameters)**2``. Shares are of the draws of noise; ``noise_used`` and ``scatter`` are standard
#: deviations of one run, the latter around the parabola.
FIT_COLUMNS = (
    *("budget", "fit", "scheme", "depth", "best", "minimum", "loss", "loss_low", "loss_high"),
    *("best_loss_low", "best_loss_high", SIZE, f"{SIZE}_low", f"{SIZE}_high", "train_tokens"),
    *("curvature", "interior_share", "interval_missing_because", "depth_share", "depths_compared"),
    *("noise_used", "noise_used_freedom", "scatter", "scatter_freedom", "sizes"),
)
#: Columns of `Curves.optima`. ``position`` is that in the order of the losses, of schemes that may be
#: ranked. ``noise`` is pooled over all schemes, the ``noise_floor`` two standard deviations of one run
#: of the scheme. An end of a speed-up is 0 or infinite where it lies beyond the dense model's budgets.
OPTIMA_COLUMNS = (
    *FIT_COLUMNS,
    *("position", "group", "bits_per_byte", "forward_flops_per_token", "runs"),
    *("sizes_planned", "sizes_lost", "curve_missing_because", "noise", "noise_floor", "processor"),
    *("speed_up", "speed_up_low", "speed_up_high", "speed_up_bound", "learning_rate_minimum"),
    "learning_rate_law_loses",
)
#: Columns of the results that the curves are made of.
RUN_COLUMNS = (
    *("scheme", "depth", "budget", "width", "layers", SIZE, "learning_rate", "seed", "status", "loss"),
    *("key", "processor", "settings", *MEANS),
)
#: Columns of `Curves.points`: means over the ``seeds`` with a loss; ``lost`` are those without one.
POINT_COLUMNS = (
    *("scheme", "depth", "budget", "width", "layers", SIZE, "learning_rate", "seeds", "loss"),
    *("loss_min", "loss_max", *MEANS, "lost", "lost_as"),
)
#: Columns of `Curves.rates` and `Curves.laws`. The minimum over the rates is interior, edge (of
#: those tried) or open. The law for other widths has the ``exponent``, after its check; ``loses`` are
#: the nats per token that the loss of its rate is higher. A law that isn't ``valid`` was refined.
RATE_COLUMNS = (
    *("scheme", "depth", "width", "budget", "learning_rate", "loss", "status", "chosen", "minimum"),
    *("exponent", "exponent_stated"),
)
LAW_COLUMNS = (
    *("scheme", "depth", "budget", "width", "exponent", "valid", "learning_rate"),
    *("best_learning_rate", "loses"),
)
#: Columns of `Curves.scatter`: of one run around the parabolas of all schemes, with the F test that it
#: is as large as the noise between seeds.
SCATTER_COLUMNS = ("budget", "depth", "scatter", "degrees_of_freedom", "p", "misfit")
#: Columns of `Curves.surfaces`: L(N, D) = E + A / N^alpha + B / D^beta.
SURFACE_COLUMNS = (*("scheme", "depth", "points", "E", "A", "B", "alpha", "beta", "huber", "at_edge"),)
#: Types of the columns that are no decimal numbers.
_TYPES = {
    "boolean": ("best", "chosen", "valid", "misfit", "at_edge"),
    "Int64": (
        *("budget", "depth", "width", "layers", "position", "runs", "sizes", "sizes_planned", "seeds"),
        *("points", "seed", "lost", "noise_used_freedom", "scatter_freedom", "degrees_of_freedom"),
    ),
    "string": (
        *("fit", "scheme", "minimum", "group", "status", "processor", "speed_up_bound", "lost_as"),
        *("depths_compared", "sizes_lost", "learning_rate_minimum", "interval_missing_because"),
        *("curve_missing_because", "key", "settings"),
    ),
}
TYPES = {name: kind for kind, names in _TYPES.items() for name in names}


def frame_of(
    rows: pd.DataFrame | Iterable[Mapping[str, Any]],
    columns: Iterable[str],
    types: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """``rows`` as a frame of ``columns``, each of its type; ``types``: others than `TYPES`."""
    kinds = TYPES | dict(types or {})
    if not isinstance(rows, pd.DataFrame):
        rows = pd.DataFrame([*rows], columns=[*columns], dtype=object)
    frame = rows.reindex(columns=[*columns])
    return typed(frame, {name: kinds.get(name, "Float64") for name in columns})


_KINDS = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}


def rows_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A frame of ``rows`` with nullable types; of integers beyond 64 bits, and of mixed types, objects.
    A row may lack columns that another one has."""
    columns = dict.fromkeys(name for row in rows for name in row)
    series = {name: _series([row.get(name) for row in rows]) for name in columns}
    return pd.DataFrame(series, columns=[*columns])


def _series(values: list[Any]) -> "pd.Series[Any]":
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        kinds = {float}
    kind = kinds.pop() if len(kinds) == 1 else object
    if kind is int and any(abs(value or 0) >= 2**63 for value in values):
        kind = object
    if kind is object and all(value is None for value in values):
        return pd.Series(values, dtype="Float64")
    if kind is not int:
        return pd.Series(values, dtype=_KINDS.get(kind, "object"))
    # With None among them, pandas would pass integers through floats.
    whole = pd.Series([0 if value is None else value for value in values], dtype="Int64")
    return whole.mask(pd.Series([value is None for value in values]))


def plain(column: "pd.Series[Any]") -> list[Any]:
    """The values of ``column`` as Python's, None for those that are missing."""
    return [None if value is pd.NA else value for value in column.astype(object).tolist()]


def plain_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of ``frame`` as dictionaries, None for what is missing."""
    columns = {str(name): plain(frame[name]) for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def tuples_of(frame: pd.DataFrame) -> list[Any]:
    """The rows of ``frame`` as named tuples, with None for what is missing."""
    known = frame.astype(object).where(frame.notna(), None)
    return list(known.itertuples(index=False, name="Row"))


def with_ends(
    name: str, value: float | None, interval: tuple[float, float] | None
) -> dict[str, float | None]:
    """The columns of ``value`` and of the ends of its interval."""
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
