"""Named shapes and the shape options of the command line. Imports no torch.

The name of a shape is the approximate parameter count of its dense decoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from modbench.errors import UserError, known_names
from modbench.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Size:
    """A decoder's shape and its sequence length."""

    model: ModelConfig
    sequence: int


def _llama_like(layers: int, width: int, heads: int, kv_heads: int, mlp_width: int) -> ModelConfig:
    return ModelConfig(
        vocabulary=32_000,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=mlp_width,
        tied_head=False,
    )


SIZES: Mapping[str, Size] = {
    "1M": Size(model=ModelConfig(), sequence=256),
    "124M": Size(model=_llama_like(12, 768, 12, 4, 2048), sequence=1024),
    "350M": Size(model=_llama_like(24, 1024, 16, 8, 2816), sequence=1024),
    "1.3B": Size(model=_llama_like(24, 2048, 16, 8, 5632), sequence=2048),
    "7B": Size(model=_llama_like(32, 4096, 32, 8, 14_336), sequence=4096),
    "70B": Size(model=_llama_like(80, 8192, 64, 8, 28_672), sequence=4096),
}


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """A named size and the fields that replace its own. A given width keeps the size's head width;
    key/value heads and MLP width then take the defaults of `ModelConfig` unless they are given too."""

    #: named shape: 1M, 124M, 350M, 1.3B, 7B or 70B; the options below replace its values
    size: str = "1M"
    vocabulary: int | None = None  #: entries of the vocabulary
    width: int | None = None  #: width of the residual stream
    layers: int | None = None  #: number of blocks
    heads: int | None = None  #: attention heads
    kv_heads: int | None = None  #: key/value heads; fewer than heads: grouped-query attention
    mlp: Literal["swiglu", "gelu"] | None = None  #: kind of MLP
    mlp_width: int | None = None  #: hidden width of the dense MLP
    tied_head: bool | None = None  #: share the weights of the embedding and the output head
    sequence: int | None = None  #: tokens per sequence

    def resolved(self) -> Size:
        """Return the resolved size. Raise a `UserError` for an unknown size or an invalid shape."""
        if self.size not in SIZES:
            raise UserError(f"size '{self.size}' is not known; {known_names(self.size, SIZES)}")
        size = SIZES[self.size]
        given = {
            field.name: value
            for field in fields(ModelConfig)
            if (value := getattr(self, field.name, None)) is not None
        }
        if "width" in given:
            each = size.model.head_width
            if "heads" not in given and given["width"] % each:
                raise UserError(
                    f"model width {self.width} is not a multiple of the head width {each} of size "
                    f"'{self.size}'; give heads too"
                )
            given = {"heads": given["width"] // each, "kv_heads": None, "mlp_width": None} | given
        if "heads" in given:
            given = {"kv_heads": None} | given
        if "mlp" in given:
            given = {"mlp_width": None} | given
        sequence = size.sequence if self.sequence is None else self.sequence
        if sequence < 1:
            raise UserError(f"sequence is {sequence}; it must be 1 or more")
        return Size(model=replace(size.model, **given), sequence=sequence)
