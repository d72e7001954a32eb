"""Shapes whose depth, heads and MLP follow the width, the search for them by what they cost, and isoFLOP
grids around the size that spends a budget compute-optimally."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
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


def solved(
    search: Callable[[Read], list[ModelConfig]], read: Read, fewest: int, period: int
) -> tuple[list[ModelConfig], Read]:
    """Return the shapes that ``search`` finds, and what reads them. It builds few layers, which take
    long: models whose layers repeat after ``period`` are extrapolated from two of ``fewest`` layers or
    more. It is ``read`` if that differs for the deepest shape, as where layers do not repeat."""

    @cache
    def shallow(model: ModelConfig) -> tuple[int, ...]:
        periods, rest = divmod(model.layers - fewest, period)
        if periods < 2:
            return read(model)
        few = read(replace(model, layers=fewest + rest))
        more = read(replace(model, layers=fewest + rest + period))
        return tuple(a + periods * (b - a) for a, b in zip(few, more, strict=True))

    try:
        shapes = search(shallow)
        deepest = max(shapes, key=lambda shape: shape.layers)
        if shallow(deepest) == read(deepest):
            return shapes, shallow
    except UserError:  # raised again if it holds for whole models
        pass
    return search(read), read


#: Largest ratio of active parameters between the ends of a grid and its centre: up to it the bias of the
#: parabola is known (docs/isoflop.md); and between neighbours: five sizes reach as far.
WIDEST_REACH, WIDEST_STEP = 4.0, 2.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """Shapes whose depth follows the width, and the sizes of a grid. Raises UserError: a field is out of
    range, or the grid is too coarse or too wide."""

    width_step: int = 8  #: all widths are multiples of it
    #: width of a head, so that heads follow the width; None: as many heads as in [model], at every width
    head_width: int | None = None
    aspect: float | None = None  #: width per layer; None: as many layers as in [model], at every width
    layer_step: int = 2  #: with an aspect, all depths are multiples of it
    sizes: int = 5  #: sizes per scheme and budget, odd, 5 or more: as many below the centre as above
    spacing: float = 1.8  #: ratio of active parameters between neighbours, at most 2
    tokens_per_parameter: float = 20.0  #: training tokens per active parameter at the centre

    def __post_init__(self) -> None:
        for name in ("width_step", "layer_step"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("aspect", "tokens_per_parameter"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise UserError(f"{name} is {value}; it must be above 0")
        if self.sizes < 5 or self.sizes % 2 == 0:
            raise UserError(f"sizes is {self.sizes}; it must be an odd number, 5 or more")
        if not 1 < self.spacing <= WIDEST_STEP:
            raise UserError(f"spacing is {self.spacing}; it must be above 1 and at most {WIDEST_STEP:g}")
        reach = self.spacing ** (self.sizes // 2)
        if reach > WIDEST_REACH + 1e-9:
            raise UserError(
                f"spacing {self.spacing} with {self.sizes} sizes reaches {reach:.1f} times the "
                f"centre; take a smaller one: at most {WIDEST_REACH:g} times"
            )

    def depth(self, base: ModelConfig, number: int) -> int:
        """The depth of the ``number``-th narrowest shape."""
        if self.aspect is None:
            return base.layers
        return self.layer_step * max(1, round(number * self.width_step / self.aspect / self.layer_step))

    def shape(
        self, base: ModelConfig, number: int, layers: int | None = None, mlp_width: int | None = None
    ) -> ModelConfig:
        """The ``number``-th narrowest shape, from 1, with the ratios of ``base`` where none is given."""
        width = number * self.width_step
        heads = base.heads if self.head_width is None else max(1, width // self.head_width)
        try:
            return replace(
                base,
                width=width,
                layers=layers or self.depth(base, number),
                heads=heads,
                kv_heads=max(1, heads * base.key_heads // base.heads),
                mlp_width=mlp_width or max(1, round(width * base.hidden / base.width)),
            )
        except UserError as error:
            raise UserError(
                f"{error}; widths are multiples of width_step, which is {self.width_step}"
            ) from error


def isoflop_grid(
    family: Family, base: ModelConfig, budget: int, read: Read, step_tokens: int
) -> list[ModelConfig]:
    """The shapes of an isoFLOP curve in ascending order of size. ``read`` gives the FLOPs of a training
    step of ``step_tokens`` tokens.

    The centre is the shape whose compute-optimal training (``tokens_per_parameter`` tokens per active
    parameter) costs closest to ``budget`` FLOPs. The others have ``spacing`` times as many or as few
    active parameters, rounded to widths of the family. Raises UserError: the budget is too small for a
    centred grid, or the family too coarse for its spacing."""

    @cache
    def at(number: int) -> tuple[int, ...]:
        return read(family.shape(base, number))

    def cost(number: int) -> float:
        flops, parameters = at(number)
        return flops / step_tokens * parameters * family.tokens_per_parameter

    def active(number: int) -> float:
        return float(at(number)[1])

    def nearest(value: Callable[[int], float], target: float) -> int:
        below = max(1, largest(value, target))
        return min((below, below + 1), key=lambda number: abs(log(value(number) / target)))

    centre = nearest(cost, budget)
    numbers = [centre]
    for step in range(1, family.sizes // 2 + 1):
        ratio = family.spacing**step
        number = min(numbers[0] - 1, nearest(active, active(centre) / ratio))
        while number + 1 < numbers[0] and active(numbers[0]) > WIDEST_STEP * active(number):
            number += 1
        if number < 1:
            raise UserError(
                f"budget {budget:g} is too small for {family.sizes} sizes around its centre, width "
                f"{centre * family.width_step}; raise the budget, or lower width_step"
            )
        numbers.insert(0, number)
        number = max(numbers[-1] + 1, nearest(active, active(centre) * ratio))
        while number - 1 > numbers[-1] and active(number) > WIDEST_STEP * active(numbers[-1]):
            number -= 1
        numbers.append(number)
    sizes = [active(number) for number in numbers]
    apart = max(large / small for small, large in pairwise(sizes))
    reach = max(active(centre) / sizes[0], sizes[-1] / active(centre))
    if apart > WIDEST_STEP or reach > WIDEST_REACH:
        widths = [number * family.width_step for number in numbers]
        raise UserError(
            f"budget {budget:g} gives the widths {widths}, whose sizes are up to {apart:.2f} times "
            f"apart and {reach:.2f} times from the centre; lower width_step or spacing (at most "
            f"{WIDEST_STEP:g} and {WIDEST_REACH:g})"
        )
    return [family.shape(base, number) for number in numbers]
