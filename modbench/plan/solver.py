"""The shape of a scheme that spends a given budget.

Shapes follow a base: its width per layer, head width, ratio of MLP to model width, ratio of query to
key/value heads, vocabulary and sequence length. Nothing is allocated.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from math import ceil, inf, log
from typing import Any

from modbench.accounting.literature import convention_flops
from modbench.errors import UserError, several
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.sizes import Size
from modbench.plan.family import Family, Read, largest, period_of, solved
from modbench.routing.build import outline
from modbench.routing.registry import build_router, preset_options
from modbench.routing.router import Router

#: Share of the budget that suffices. With an MLP width to adjust, 54 shapes used 0.9975 or more.
USED = 0.99
#: Largest step of the MLP width; routers divide it among the experts of a token.
_STEPS = 512

Cost = Callable[[ModelConfig], int]


@dataclass(frozen=True)
class Solution:
    """A shape that spends ``flops`` on ``tokens``."""

    size: Size
    tokens: int
    flops: int


def spent_on(tokens: int, of_sequence: int, sequence: int) -> int:
    """FLOPs of ``tokens``, from those of one sequence, rounded up."""
    return -(-tokens * of_sequence // sequence)


def solve(
    router: str,
    options: Mapping[str, Any],
    base: Size,
    *,
    budget: int,
    tokens: int | None = None,
    tokens_per_parameter: float = 20.0,
    convention: str = "model",
) -> Solution:
    """The shape of ``router`` (``NAME`` or ``NAME:PRESET``) that spends ``budget`` training FLOPs.

    On ``tokens`` tokens: the shape closest to the base's proportions that uses at least 99 % of the
    budget, with the widest MLP that fits; if there is none, the shape that uses most. Without
    ``tokens``: the same on ``tokens_per_parameter`` tokens per active parameter (with the embedding),
    then as many whole sequences as the budget allows. Raise a `UserError` for a budget, tokens or ratio
    that is not positive, a budget too small for any shape, or an unknown router, preset, option or
    convention."""
    if budget < 1:
        raise UserError(f"budget is {budget}; it must be 1 FLOP or more")
    if tokens is not None and tokens < 1:
        raise UserError(f"tokens is {tokens}; it must be 1 or more")
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
        return convention_flops(decoder, workload, convention), decoder.parameter_count("active")

    def search(read: Read) -> list[ModelConfig]:
        def cost(model: ModelConfig) -> int:
            flops, active = read(model)
            if tokens is not None:
                return spent_on(tokens, flops, sequence)
            return max(flops, ceil(flops * active * Fraction(tokens_per_parameter) / sequence))

        each = f"{tokens_per_parameter:g} tokens for each active parameter"
        on = each if tokens is None else f"{tokens:,} tokens"
        return [_closest(shapes, cost, budget, f"'{router}' on {on}")]

    [model], _ = solved(search, read, shapes.fewest, shapes.period)
    flops, _ = read(model)
    seen = budget // flops * sequence if tokens is None else tokens
    return Solution(Size(model=model, sequence=sequence), seen, spent_on(seen, flops, sequence))


class _Shapes:
    """Shapes of one scheme with the proportions of ``base``."""

    def __init__(self, router: Router, base: ModelConfig) -> None:
        self.router, self.base = router, base
        self.group = base.heads // base.key_heads
        # Whole groups of layers, so that the share of routed layers is the nominal one.
        self.period = period_of(router)
        self.family = Family(
            width_step=base.head_width,
            head_width=base.head_width,
            aspect=base.width / base.layers,
            layer_step=self.period,
        )
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
        return max(self.fewest, self.family.depth(self.base, heads))

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
            f"the budget is too small for {what}: the smallest shape is "
            f"{several(smallest.layers, 'layer')}, width {smallest.width}, MLP width {smallest.hidden}, "
            f"and takes {-(-needed // digits) * digits:.3e} FLOPs; raise the budget, or take fewer "
            "tokens or a base with narrower heads, a shorter sequence or a smaller vocabulary"
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
