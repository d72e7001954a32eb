"""The equal-FLOP solver: the shape of a scheme that spends a given budget.

Shapes follow a base: its width per layer, head width, ratio of MLP to model width, ratio of query to
key/value heads, vocabulary and sequence length. Nothing is allocated.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from math import ceil, inf, log
from typing import Any

from modbench.accounting.literature import convention_flops
from modbench.accounting.statement import meta_decoder
from modbench.errors import UserError, several
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.sizes import Size
from modbench.routing.registry import build_router, preset_options

#: A shape that uses a smaller share of the budget is not accepted, if there is another.
USED = 0.99
#: Number of MLP widths tried to find the step a router accepts.
_STEPS = 512


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
    family, sequence = _Family(router, options, base, convention), base.sequence

    def cost(model: ModelConfig) -> int:
        flops, active = family.read(model)
        if tokens is not None:
            return spent_on(tokens, flops, sequence)
        return max(flops, ceil(flops * active * Fraction(tokens_per_parameter) / sequence))

    each = f"{tokens_per_parameter:g} tokens for each active parameter"
    model = _search(family, cost, budget, each if tokens is None else f"{tokens:,} tokens")
    flops, _ = family.read(model)
    seen = budget // flops * sequence if tokens is None else tokens
    return Solution(Size(model=model, sequence=sequence), seen, spent_on(seen, flops, sequence))


class _Family:
    """Shapes of one scheme with the proportions of ``base``, and their FLOPs per sequence."""

    def __init__(self, router: str, options: Mapping[str, Any], base: Size, convention: str) -> None:
        self.router, self.options, self.base = router, options, base
        self.load, self.convention = Workload.uniform(1, base.sequence, "train"), convention
        model = base.model
        self.aspect = model.width / model.layers
        self.ratio = model.hidden / model.width
        self.group = model.heads // model.key_heads
        self.read = cache(self._read)
        plain, preset = preset_options(router)
        # Whole groups of layers, so that the share of routed layers is the nominal one.
        every = getattr(build_router(plain, {**preset, **options}), "every", 1)
        self.period = every if isinstance(every, int) and every > 0 else 1
        # Whole groups, two layers or more.
        least = self.period * -(-2 // self.period)
        depths = range(least, max(least, model.layers) + 1, self.period)
        self.fewest = self._accepted(replace(model, layers=layers) for layers in depths).layers
        #: The smallest MLP width, which divides all others.
        self.step = self._accepted(self.shape(1, self.fewest, n) for n in range(1, _STEPS + 1)).hidden

    def _accepted(self, models: Iterable[ModelConfig]) -> ModelConfig:
        """The first of ``models`` that the router accepts."""
        refused: list[UserError] = []
        for model in models:
            try:
                meta_decoder(self.router, self.options, model)
            except UserError as error:
                refused.append(error)
            else:
                return model
        raise refused[0]

    def _read(self, model: ModelConfig) -> tuple[int, int]:
        """FLOPs of one sequence, active parameters."""
        decoder = meta_decoder(self.router, self.options, model)
        flops = convention_flops(decoder, self.load, self.convention)
        return flops, decoder.parameter_count("active")

    def shape(self, heads: int, layers: int, mlp_width: int) -> ModelConfig:
        model = self.base.model
        return replace(
            model,
            width=heads * model.head_width,
            layers=layers,
            heads=heads,
            kv_heads=max(1, heads // self.group),
            mlp_width=mlp_width,
        )

    def heads(self, number: int) -> int:
        """The ``number``-th valid number of heads, from 1: whole key/value groups, or part of one."""
        return number if number <= self.group else (number - self.group + 1) * self.group

    def layers(self, heads: int) -> int:
        """The depth that follows the base's aspect ratio, in whole groups."""
        groups = round(heads * self.base.model.head_width / self.aspect / self.period)
        return max(self.fewest, groups * self.period)

    def mlp_steps(self, heads: int) -> int:
        """Number of steps of the MLP width that follows the base's ratio."""
        width = heads * self.base.model.head_width
        return max(1, round(width * self.ratio / self.step))

    def like_base(self, number: int) -> ModelConfig:
        heads = self.heads(number)
        return self.shape(heads, self.layers(heads), self.mlp_steps(heads) * self.step)

    def drift(self, model: ModelConfig) -> float:
        """Distance of ``model`` from the base's proportions."""
        aspect, ratio = model.width / model.layers, model.hidden / model.width
        return abs(log(aspect / self.aspect)) + abs(log(ratio / self.ratio))


Cost = Callable[[ModelConfig], int]


def _search(family: _Family, cost: Cost, limit: int, what: str) -> ModelConfig:
    """The shape closest to the base's proportions whose cost is just below ``limit``."""
    least = family.shape(1, family.fewest, family.step)
    if cost(least) > limit:
        up = 10 ** max(0, len(str(cost(least))) - 4)  # to four digits, so that what is printed suffices
        raise UserError(
            f"the budget is too small for '{family.router}' on {what}: the smallest shape is "
            f"{several(least.layers, 'layer')}, width {least.width}, MLP width {least.hidden}, and "
            f"takes {-(-cost(least) // up) * up:.3e} FLOPs; raise the budget, or take fewer tokens or a "
            "base with narrower heads, a shorter sequence or a smaller vocabulary"
        )
    number = max(1, _largest(lambda n: cost(family.like_base(n)), limit, 1))
    found = [least]
    for groups in (0, -1, 1):
        for heads in (family.heads(number), family.heads(number + 1)):
            layers = family.layers(heads) + groups * family.period
            if layers >= family.fewest:
                found += _widest(family, cost, heads, layers, limit)
        used = [model for model in found if cost(model) >= USED * limit]
        if used:
            return min(used, key=family.drift)
    return max(found, key=cost)


def _widest(family: _Family, cost: Cost, heads: int, layers: int, limit: int) -> Iterator[ModelConfig]:
    """The shape of ``heads`` and ``layers`` with the widest MLP that ``limit`` allows, if any."""

    def at(steps: int) -> int:
        return cost(family.shape(heads, layers, steps * family.step))

    usual = family.mlp_steps(heads)
    fixed = at(1) == at(1 + usual)  # experts of a width of their own
    steps = usual if fixed else _largest(at, limit, 2 * usual)
    if steps and at(steps) <= limit:
        yield family.shape(heads, layers, steps * family.step)


def _largest(cost: Callable[[int], int], limit: int, guess: int) -> int:
    """The largest n >= 1 whose cost, which grows with n, is at most ``limit``; 0 if there is none."""
    while cost(guess) <= limit:
        guess *= 2
    return bisect_right(range(1, guess), limit, key=cost)
