"""Shapes whose depth, heads and MLP follow the width. Loads no torch."""

from dataclasses import dataclass, replace
from math import inf

from modbench.errors import UserError
from modbench.model.config import ModelConfig

#: Largest ratio of active parameters between the ends of a grid and its centre: up to it the bias of the
#: parabola is known (docs/isoflop.md); and between neighbours: five sizes reach as far.
WIDEST_REACH, WIDEST_STEP = 4.0, 2.0
#: With an aspect, all depths are multiples of it.
LAYER_STEP = 2


@dataclass(frozen=True, kw_only=True)
class Family:
    """Shapes whose depth follows the width, and the sizes of a grid. Raises UserError: a field is out of
    range, or the grid is too coarse or too wide."""

    width_step: int = 8  #: all widths are multiples of it
    #: width of a head, so that heads follow the width; None: as many heads as in [model], at every width
    head_width: int | None = None
    aspect: float | None = None  #: width per layer; None: as many layers as in [model], at every width
    sizes: int = 5  #: sizes per scheme and budget, odd, 5 or more: as many below the centre as above
    spacing: float = 1.8  #: ratio of active parameters between neighbours, at most 2
    tokens_per_parameter: float = 20.0  #: training tokens per active parameter at the centre

    def __post_init__(self) -> None:
        if self.width_step < 1:
            raise UserError(f"width_step is {self.width_step}; it must be 1 or more")
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
        return LAYER_STEP * max(1, round(number * self.width_step / self.aspect / LAYER_STEP))

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
