"""The shape of a decoder, without routing. Imports no torch."""

from dataclasses import dataclass
from typing import Literal, get_type_hints

from modbench.errors import UserError
from modbench.typed import Count, Positive, check_type


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the decoder, common to all schemes. Raise a `UserError` for a field out of range."""

    vocabulary: Count = 2048  #: number of token ids; in a suite [data] sets it, and the two must agree
    width: Count = 128  #: size of the residual stream
    layers: Count = 4  #: number of blocks
    heads: Count = 4  #: attention heads; must divide the width
    kv_heads: Count | None = None  #: None: as many as heads; fewer: grouped-query attention
    mlp: Literal["swiglu", "gelu"] = "swiglu"  #: kind of MLP, and of each expert
    mlp_width: Count | None = None  #: None: 3 * width for SwiGLU, 4 * width for GELU
    tied_head: bool = True  #: the head shares its matrix with the embedding
    rope_base: Positive = 10_000.0  #: base of the rotary embedding's frequencies
    norm_epsilon: Positive = 1e-5  #: added to the mean square in RMSNorm
    #: RMSNorm on queries and keys, per head, before the rotary embedding (Dehghani et al. 2023,
    #: arXiv:2302.05442, section 2); no part of a run's key unless it is true
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            check_type(f"model {name}", getattr(self, name), hint)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.mlp_width is None:
            object.__setattr__(self, "mlp_width", (3 if self.mlp == "swiglu" else 4) * self.width)
        if self.width % self.heads or self.head_width % 2:
            raise UserError(
                f"model width {self.width} with {self.heads} heads: heads must divide the width, and "
                "the head width must be even (rotary embedding needs pairs)"
            )
        if self.heads % self.key_heads:
            raise UserError(
                f"model kv_heads is {self.kv_heads} with {self.heads} heads; it must divide heads"
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
