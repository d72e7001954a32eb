"""The search for shapes by what they cost, which is read from few layers where layers repeat."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from modbench.errors import UserError
from modbench.model.config import ModelConfig

#: Reads whole numbers off a shape; for a search its training FLOPs and active parameters.
Read = Callable[[ModelConfig], tuple[int, ...]]


def largest(cost: Callable[[int], float], limit: float, guess: int = 1) -> int:
    """Return the largest number from 1 whose cost, which grows with it, is at most ``limit``; 0 if there
    is none. The search goes outwards from ``guess``."""
    below, above, step = guess - 1, guess, 1
    while cost(above) <= limit:
        below, above, step = above, above + step, 2 * step
    while 0 < below < guess and cost(below) > limit:
        below, above, step = max(0, below - step), below, 2 * step
    return below + bisect_right(range(below + 1, above), limit, key=cost)


def period_of(router: object) -> int:
    """Return the number of layers after which those of ``router`` repeat, as far as its options say."""
    every = getattr(router, "every", 1)
    return every if isinstance(every, int) and every > 0 else 1


def extrapolated(read: Read, fewest: int, period: int) -> Read:
    """Return a ``read`` that builds few layers, which take long: models whose layers repeat after
    ``period`` are extrapolated from two with ``fewest`` layers and more."""

    @cache
    def at(model: ModelConfig) -> tuple[int, ...]:
        periods, rest = divmod(model.layers - fewest, period)
        if periods < 2:
            return read(model)
        shallow = read(replace(model, layers=fewest + rest))
        deeper = read(replace(model, layers=fewest + rest + period))
        return tuple(a + periods * (b - a) for a, b in zip(shallow, deeper, strict=True))

    return at


def solved(
    search: Callable[[Read], list[ModelConfig]], read: Read, fewest: int, period: int
) -> tuple[list[ModelConfig], Read]:
    """Return the shapes that ``search`` finds, and what reads them: `extrapolated`, or ``read`` if it
    differs for the deepest shape found, as where layers do not repeat."""
    shallow = extrapolated(read, fewest, period)
    try:
        shapes = search(shallow)
        deepest = max(shapes, key=lambda shape: shape.layers)
        if shallow(deepest) == read(deepest):
            return shapes, shallow
    except UserError:  # raised again if it holds for whole models
        pass
    return search(read), read
