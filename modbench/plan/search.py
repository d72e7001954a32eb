"""The search for shapes by what they cost, which is read from few layers where layers repeat."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import inf, log

from modbench.errors import UserError
from modbench.model.config import ModelConfig

#: Reads whole numbers off a shape; for a search its training FLOPs and active parameters.
Read = Callable[[ModelConfig], tuple[int, ...]]


def largest(cost: Callable[[int], float], limit: float, guess: int = 1) -> int:
    """Return the largest number from 1 whose cost, which grows with it, is at most ``limit``; 0 if there
    is none. From ``guess``, the search follows the power of the number by which costs have grown."""
    below, above, number, power = 0, inf, guess, 3.0
    earlier: tuple[int, float] | None = None
    while above - below > 1:
        value = cost(number)
        if earlier is not None and value != earlier[1]:
            power = max(1.0, log(value / earlier[1]) / log(number / earlier[0]))
        earlier = number, value
        if value <= limit:
            below = number
        else:
            above = number
        aim = number * min(8.0, (limit / value) ** (1 / power))
        number = int(min(above - 1, max(below + 1, aim)))
    return below


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
