"""Wording of what a routed layer adds to the residual stream, and the bound below which that is next to
nothing, as where training drove its gate to 0."""

#: A layer adds next to nothing if the norm of its update is below this share of the residual stream's
#: norm, on average over the tokens that it selects: it turns the stream by 1 degree at most. Of the
#: built-in schemes at width 128 and 1.6e12 FLOPs, the layer that adds least adds three times as much.
LEAST_ADDED = 0.02


def layer_line(layer: int, added: float | None = None, gate_scale: float | None = None) -> str:
    """Format what ``layer`` adds, relative to the norm of the residual stream, and its mean gate, as one
    line that says if the layer adds next to nothing."""
    parts = [] if added is None else [f"adds {added:.2g} of the norm of the residual stream"]
    parts += [] if gate_scale is None else [f"mean gate {gate_scale:.2g}"]
    least = f"; below {LEAST_ADDED:g} is next to nothing" if is_idle(added) else ""
    return f"layer {layer} {', '.join(parts)}{least}"


def is_idle(added: float | None) -> bool:
    """Return True if a layer that adds ``added`` of the residual stream's norm adds next to nothing."""
    return added is not None and added < LEAST_ADDED
