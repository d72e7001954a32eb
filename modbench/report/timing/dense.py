"""Dense case that a routed one is compared with: of its shape, or interpolated between two widths."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from typing import Any, Protocol

#: Largest relative difference of MLP width over width between shapes of one family: widths are rounded.
_ROUNDED = 0.05


class TimedCase(Protocol):
    """The fields of a `modbench.report.timing.table.CaseRow` that a comparison needs."""

    @property
    def model(self) -> str: ...
    @property
    def train(self) -> str: ...
    @property
    def case(self) -> str: ...
    @property
    def seconds_median(self) -> float | None: ...
    @property
    def flops_realised(self) -> int | None: ...
    @property
    def stable(self) -> bool | None: ...
    @property
    def loaded(self) -> bool | None: ...
    @property
    def throttled(self) -> bool | None: ...


@dataclass(frozen=True)
class Dense:
    """Time and realised FLOPs of a dense case. ``rows``: those that it rests on, one of the same shape
    or two of neighbouring widths."""

    seconds: float
    flops: float
    rows: Sequence[TimedCase]

    @property
    def is_interpolated(self) -> bool:
        return len(self.rows) > 1


def dense_case(row: TimedCase, dense: Sequence[TimedCase]) -> Dense | None:
    """The dense case that ``row`` is compared with, from the timed ``dense`` rows; of several of one
    shape the first counts.

    Without one of the same shape, time and FLOPs are interpolated linearly in logarithms between the two
    next widths of dense models with otherwise equal shape and settings. None outside the timed widths.
    """
    shape = _shape(row.model)
    family: dict[float, TimedCase] = {}
    for other in dense:
        if (other.case, other.train) == (row.case, row.train) and other.flops_realised:
            if other.model == row.model:
                return Dense(other.seconds_median or 0.0, other.flops_realised, [other])
            if _same_family(shape, _shape(other.model)):
                family.setdefault(_shape(other.model)["width"], other)
    if not shape.get("width"):
        return None
    below = max((width for width in family if width < shape["width"]), default=None)
    above = min((width for width in family if width > shape["width"]), default=None)
    if below is None or above is None:
        return None
    part = log(shape["width"] / below) / log(above / below)
    ends = family[below], family[above]

    def between(low: float, high: float) -> float:
        return exp((1 - part) * log(low) + part * log(high))

    seconds = between(*(end.seconds_median or 0.0 for end in ends))
    return Dense(seconds, between(*(float(end.flops_realised or 0) for end in ends)), ends)


@cache
def _shape(model: str) -> dict[str, Any]:
    return dict(json.loads(model))


def _same_family(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Return True if two shapes differ in their width only, and in the MLP's in proportion to it."""
    widths = ("width", "mlp_width")
    if any(ours.get(name) != theirs.get(name) for name in {*ours, *theirs} - {*widths}):
        return False
    if not ours.get("mlp_width") or not theirs.get("mlp_width"):
        return ours.get("mlp_width") == theirs.get("mlp_width")
    ratio = ours["mlp_width"] / ours["width"] / (theirs["mlp_width"] / theirs["width"])
    return bool(abs(ratio - 1) < _ROUNDED)
