"""The search for shapes by what they cost: the shape of a scheme that spends a budget, and the grid of
an isoFLOP curve around the size that spends it compute-optimally. Nothing is allocated."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import ceil, inf, log
from typing import Any

from modbench.errors import UserError, several
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.sizes import Size
from modbench.plan.family import WIDEST_REACH, WIDEST_STEP, Family
from modbench.routing.build import outline
from modbench.routing.registry import build_router, preset_options
from modbench.routing.router import Router

#: Share of the budget that suffices. With an MLP width to adjust, 54 shapes used 0.9975 or more.
USED = 0.99
#: Largest step of the MLP width; routers divide it among the experts of a token.
_STEPS = 512

Cost = Callable[[ModelConfig], int]
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


def compute_optimal(flops: int, tokens: int, active: int, per_parameter: float) -> int:
    """FLOPs of training on ``per_parameter`` tokens per active parameter, where ``tokens`` take
    ``flops``."""
    return ceil(flops * active * Fraction(per_parameter) / tokens)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A shape of a scheme that spends ``flops`` on ``tokens``."""

    scheme: str
    model: ModelConfig
    parameters: int
    active_parameters: int
    tokens: int
    flops: int


def solve(
    router: str,
    options: Mapping[str, Any],
    base: Size,
    *,
    budget: int,
    tokens_per_parameter: float = 20.0,
) -> Solution:
    """The shape of ``router`` (``NAME`` or ``NAME:PRESET``) that spends ``budget`` training FLOPs,
    convention ``model``, on ``tokens_per_parameter`` tokens per active parameter (with the embedding).
    It follows ``base``: width per layer, head width, ratio of MLP to model width, ratio of query to
    key/value heads, vocabulary and sequence length.

    It is the shape closest to the base's proportions that uses at least 99 % of the budget, with the
    widest MLP that fits; if there is none, the shape that uses most. Then as many whole sequences as the
    budget allows. Raise a `UserError` for a budget or ratio that is not positive, a budget too small for
    any shape, or an unknown router, preset or option."""
    if budget < 1:
        raise UserError(f"budget is {budget}; it must be 1 FLOP or more")
    if not 0 < tokens_per_parameter < inf:
        raise UserError(f"tokens_per_parameter is {tokens_per_parameter}; it must be above 0 and finite")
    plain, preset = preset_options(router)
    shapes = _Shapes(build_router(plain, {**preset, **options}), base.model)
    sequence = base.sequence
    workload = Workload.uniform(1, sequence, "train")

    @cache
    def read(model: ModelConfig) -> tuple[int, int]:
        """FLOPs of one sequence, active parameters."""
        decoder = outline(model, shapes.router)
        return decoder.ledger(workload).total("model"), decoder.parameter_count("active")

    def search(read: Read) -> list[ModelConfig]:
        def cost(model: ModelConfig) -> int:
            flops, active = read(model)
            return max(flops, compute_optimal(flops, sequence, active, tokens_per_parameter))

        what = f"'{router}' on {tokens_per_parameter:g} tokens for each active parameter"
        return [_closest(shapes, cost, budget, what)]

    [model], _ = solved(search, read, shapes.fewest, shapes.period)
    flops, active = read(model)
    sequences = budget // flops
    return Solution(
        scheme=router,
        model=model,
        parameters=outline(model, shapes.router).parameter_count("total"),
        active_parameters=active,
        tokens=sequences * sequence,
        flops=sequences * flops,
    )


class _Shapes:
    """Shapes of one scheme with the proportions of ``base``."""

    def __init__(self, router: Router, base: ModelConfig) -> None:
        self.router, self.base = router, base
        self.group = base.heads // base.key_heads
        # Whole groups of layers, so that the share of routed layers is the nominal one.
        every = getattr(router, "every", 1)
        self.period = every if isinstance(every, int) and every > 0 else 1
        self.family = Family(width_step=base.head_width, head_width=base.head_width)
        # Whole groups, two layers or more.
        least = self.period * -(-2 // self.period)
        depths = range(least, max(least, base.layers) + 1, self.period)
        self.fewest = self._accepted(replace(base, layers=layers) for layers in depths).layers
        narrow = (self.family.shape(base, 1, self.fewest, width) for width in range(1, _STEPS + 1))
        #: The smallest MLP width, which divides all others.
        self.step = self._accepted(narrow).hidden

    def _accepted(self, models: Iterable[ModelConfig]) -> ModelConfig:
        """The first of ``models`` that the router accepts."""
        refused: list[UserError] = []
        for model in models:
            try:
                outline(model, self.router)
            except UserError as error:
                refused.append(error)
            else:
                return model
        raise refused[0]

    def shape(self, heads: int, layers: int, steps: int) -> ModelConfig:
        """``steps`` are those of the MLP width."""
        return self.family.shape(self.base, heads, layers, steps * self.step)

    def heads(self, number: int) -> int:
        """The ``number``-th valid number of heads, from 1: whole key/value groups, or part of one."""
        return number if number <= self.group else (number - self.group + 1) * self.group

    def layers(self, heads: int) -> int:
        """The depth that follows the base's aspect ratio, in whole groups."""
        aspect = self.base.width / self.base.layers
        groups = heads * self.base.head_width / aspect / self.period
        return max(self.fewest, self.period * round(groups))

    def steps(self, heads: int) -> int:
        """Number of steps of the MLP width that follows the base's ratio."""
        width = heads * self.base.head_width
        return max(1, round(width * (self.base.hidden / self.base.width) / self.step))

    def like_base(self, number: int) -> ModelConfig:
        heads = self.heads(number)
        return self.shape(heads, self.layers(heads), self.steps(heads))

    def drift(self, model: ModelConfig) -> float:
        """Distance of ``model`` from the base's proportions."""
        aspect, ratio = model.width / model.layers, model.hidden / model.width
        base_aspect, base_ratio = self.base.width / self.base.layers, self.base.hidden / self.base.width
        return abs(log(aspect / base_aspect)) + abs(log(ratio / base_ratio))


def _closest(shapes: _Shapes, cost: Cost, limit: int, what: str) -> ModelConfig:
    """The shape closest to the base's proportions whose cost is just below ``limit``."""
    smallest = shapes.shape(1, shapes.fewest, 1)
    needed = cost(smallest)
    if needed > limit:
        digits = 10 ** max(0, len(str(needed)) - 4)  # to four digits, so that what is printed suffices
        raise UserError(
            f"the budget is too small for {what}; the smallest shape is "
            f"{several(smallest.layers, 'layer')}, width {smallest.width}, MLP width {smallest.hidden}, "
            f"with {-(-needed // digits) * digits:.3e} FLOPs; raise it, or take a "
            "shorter sequence or fewer tokens"
        )
    number = max(1, largest(lambda number: cost(shapes.like_base(number)), limit))
    candidates = [smallest]
    for groups in (0, -1, 1):
        for heads in (shapes.heads(number), shapes.heads(number + 1)):
            layers = shapes.layers(heads) + groups * shapes.period
            if layers >= shapes.fewest:
                candidates += _widest(shapes, cost, heads, layers, limit)
        used = [model for model in candidates if cost(model) >= USED * limit]
        if used:
            return min(used, key=shapes.drift)
    return max(candidates, key=cost)


def _widest(shapes: _Shapes, cost: Cost, heads: int, layers: int, limit: int) -> Iterator[ModelConfig]:
    """The shape of ``heads`` and ``layers`` with the widest MLP that ``limit`` allows, if any."""

    def at(steps: int) -> int:
        return cost(shapes.shape(heads, layers, steps))

    steps = shapes.steps(heads)
    each = (at(1 + steps) - at(1)) / steps
    if each:  # else experts have a width of their own
        steps = largest(at, limit, max(1, int((limit - at(1)) / each)))
    if steps and at(steps) <= limit:
        yield shapes.shape(heads, layers, steps)


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
        return compute_optimal(flops, step_tokens, parameters, family.tokens_per_parameter)

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
