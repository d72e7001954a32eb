"""Search for the largest integer that satisfies a monotone condition."""

from collections.abc import Callable


def largest(holds: Callable[[int], bool], guess: int) -> int:
    """The largest n >= 1 for which ``holds(n)``, or 0. ``holds`` must be true up to some n and false
    above it. The search starts at ``guess``, since ``holds`` may be slow."""
    low, high, step = 0, max(1, guess), 1
    if holds(high):
        while holds(high + step):
            high, step = high + step, step * 2
        low, high = high, high + step
    else:
        while high > step and not holds(high - step):
            high, step = high - step, step * 2
        low = max(0, high - step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
