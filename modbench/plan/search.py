"""The largest number that a condition holds for."""

from collections.abc import Callable


def largest(holds: Callable[[int], bool], guess: int) -> int:
    """The largest n >= 1 that ``holds``, which must hold for all smaller ones and not for all; 0 if 1
    doesn't. Looks around ``guess`` first, for each look may be dear."""
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
