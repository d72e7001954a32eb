"""Wording of what a routed layer adds to the residual stream, and the bound below which that is next to
nothing, as where training drove its gate to 0; and of gates that hardly vary, so that the scores decide
nothing but the selection."""

from collections.abc import Sequence
from itertools import accumulate

#: A layer adds next to nothing if the norm of its update is below this share of the residual stream's
#: norm, on average over the tokens that it selects: it turns the stream by 1 degree at most. Of the
#: built-in schemes at width 128 and 1.6e12 FLOPs, the layer that adds least adds three times as much.
LEAST_ADDED = 0.02
#: Gates hardly vary if their 1st and 99th percentiles are closer than this: a twentieth of those of
#: sigmoid. Of the 488 layers with a trained gate in the published results, the narrowest has 0.67.
LEAST_VARIED = 0.05


def layer_line(layer: int, added: float | None = None, gate_scale: float | None = None) -> str:
    """Format what ``layer`` adds, relative to the norm of the residual stream, and its mean gate, as one
    line that says if the layer adds next to nothing, or selects no token."""
    if added == 0 and gate_scale is None:
        return f"layer {layer} selects no validation token under the causal rule"
    parts = [] if added is None else [f"adds {added:.2g} of the norm of the residual stream"]
    parts += [] if gate_scale is None else [f"mean gate {gate_scale:.2g}"]
    least = f"; below {LEAST_ADDED:g} is next to nothing" if is_idle(added) else ""
    return f"layer {layer} {', '.join(parts)}{least}"


def gate_range(exponent: int, first: int, counts: Sequence[int]) -> tuple[float, float]:
    """Return the 1st and the 99th percentile of gates, each interpolated in its bin: ``counts`` of bins
    that begin at ``(first + i) * 2**exponent``."""
    ends = [0, *accumulate(counts)]
    low, high = (_quantile(ends, share * ends[-1]) for share in (0.01, 0.99))
    return (first + low) * 2.0**exponent, (first + high) * 2.0**exponent


def _quantile(ends: Sequence[int], rank: float) -> float:
    """Return the place of ``rank`` in bins, the cumulated counts of which are ``ends``."""
    last = next(i for i, end in enumerate(ends) if end >= rank and end > 0)
    return last - (ends[last] - rank) / (ends[last] - ends[last - 1])


def gates_line(layer: int, low: float, high: float) -> str:
    """Format gates of ``layer`` that hardly vary as one line."""
    if low == high:
        return f"gates of layer {layer} do not vary: their magnitude is {low:.3g}"
    return f"gates of layer {layer} hardly vary: 98 % lie from {low:.3g} to {high:.3g}"


def is_idle(added: float | None) -> bool:
    """Return True if a layer that adds ``added`` of the residual stream's norm adds next to nothing."""
    return added is not None and added < LEAST_ADDED
