"""IsoFLOP grids: shapes of one family, around the size that spends a budget compute-optimally."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import inf, log

from modbench.errors import UserError
from modbench.model.config import ModelConfig

#: Reads a shape: nominal training FLOPs per token (convention ``model``), active parameters.
Read = Callable[[ModelConfig], tuple[float, int]]
#: Largest ratio of active parameters between neighbours of a grid, and of its ends to its centre.
WIDEST_STEP, WIDEST_REACH = 2.0, 4.0
#: Number of widths that are searched.
_WIDEST = 1024


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

    def shape(self, base: ModelConfig, number: int) -> ModelConfig:
        """The ``number``-th narrowest shape, from 1, with the ratios of ``base``."""
        width = number * self.width_step
        heads = base.heads if self.head_width is None else max(1, width // self.head_width)
        layers = base.layers
        if self.aspect is not None:
            layers = self.layer_step * max(1, round(width / self.aspect / self.layer_step))
        try:
            return replace(
                base,
                width=width,
                layers=layers,
                heads=heads,
                kv_heads=max(1, heads * base.key_heads // base.heads),
                mlp_width=max(1, round(width * base.hidden / base.width)),
            )
        except UserError as error:
            raise UserError(
                f"{error}; widths are multiples of width_step, which is {self.width_step}"
            ) from error


def isoflop_grid(family: Family, base: ModelConfig, budget: int, read: Read) -> list[ModelConfig]:
    """The shapes of an isoFLOP curve in ascending order of size.

    The centre is the shape whose compute-optimal training (``tokens_per_parameter`` tokens per active
    parameter) costs closest to ``budget`` FLOPs. The others have ``spacing`` times as many or as few
    active parameters, rounded to widths of the family. Raises UserError: the budget is too small for a
    centred grid, or the family too coarse for its spacing."""

    @cache
    def at(number: int) -> tuple[float, int]:
        return read(family.shape(base, number))

    def cost(number: int) -> float:
        flops, active = at(number)
        return flops * active * family.tokens_per_parameter

    def nearest(value: Callable[[int], float], target: float) -> int:
        below = max(1, bisect_right(range(1, _WIDEST), target, key=value))
        if below == _WIDEST - 1:
            raise UserError(
                f"budget {budget:g} needs widths above {below * family.width_step}, {below} times "
                f"width_step {family.width_step}; raise width_step"
            )
        return min((below, below + 1), key=lambda n: abs(log(value(n) / target)))

    def active(number: int) -> float:
        return float(at(number)[1])

    centre = nearest(cost, float(budget))
    smaller, larger = [centre], [centre]
    for step in range(1, family.sizes // 2 + 1):
        number = min(smaller[-1] - 1, nearest(active, active(centre) / family.spacing**step))
        while number + 1 < smaller[-1] and active(smaller[-1]) > WIDEST_STEP * active(number):
            number += 1
        if number < 1:
            raise UserError(
                f"budget {budget:g} is too small for {family.sizes} sizes around its centre, width "
                f"{centre * family.width_step}; raise the budget, or lower width_step"
            )
        smaller.append(number)
        number = max(larger[-1] + 1, nearest(active, active(centre) * family.spacing**step))
        while number - 1 > larger[-1] and active(number) > WIDEST_STEP * active(larger[-1]):
            number -= 1
        larger.append(number)
    numbers = [*smaller[:0:-1], *larger]
    sizes = [active(number) for number in numbers]
    ratio = max(large / small for small, large in pairwise(sizes))
    reach = max(active(centre) / sizes[0], sizes[-1] / active(centre))
    if ratio > WIDEST_STEP or reach > WIDEST_REACH:
        widths = [number * family.width_step for number in numbers]
        raise UserError(
            f"budget {budget:g} gives the widths {widths}, whose sizes are up to {ratio:.2f} times "
            f"apart and {reach:.2f} times from the centre; lower width_step or spacing (at most "
            f"{WIDEST_STEP:g} and {WIDEST_REACH:g})"
        )
    return [family.shape(base, number) for number in numbers]
