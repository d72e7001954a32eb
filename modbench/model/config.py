"""The shape of a decoder, without routing. Imports no torch."""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_type_hints

from modbench.errors import UserError
from modbench.typed import check_type


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the decoder, common to all schemes. Raise a `UserError` for a field out of range."""

    vocabulary: int = 2048
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None  #: None: as many as heads; fewer: grouped-query attention
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    mlp_width: int | None = None  #: None: 3 * width for SwiGLU, 4 * width for GELU
    tied_head: bool = True
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            check_type(f"model {name}", getattr(self, name), hint)
        for name in ("vocabulary", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"model {name} is {getattr(self, name)}; it must be 1 or more")
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.mlp_width is None:
            object.__setattr__(self, "mlp_width", (3 if self.mlp == "swiglu" else 4) * self.width)
        if self.width % self.heads or self.head_width % 2:
            raise UserError(
                f"model width {self.width} with {self.heads} heads: heads must divide the width, and "
                "the head width must be even (rotary embedding needs pairs)"
            )
        if not 1 <= self.key_heads <= self.heads or self.heads % self.key_heads:
            raise UserError(
                f"model kv_heads is {self.kv_heads} with {self.heads} heads; it must divide heads"
            )
        if self.hidden < 1:
            raise UserError(f"model mlp_width is {self.mlp_width}; it must be 1 or more")
        if not (0 < self.rope_base < inf and 0 < self.norm_epsilon < inf):
            raise UserError(
                f"model rope_base is {self.rope_base} and norm_epsilon {self.norm_epsilon}; "
                "both must be finite and above 0"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """``kv_heads``, resolved."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden(self) -> int:
        """``mlp_width``, resolved."""
        return 0 if self.mlp_width is None else self.mlp_width
