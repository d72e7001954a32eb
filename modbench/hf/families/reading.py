"""`Reading`: the sizes of a model that the formulas of papers use. Pure Python, no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Sizes of a model that the papers' formulas use. Vectors (norms, biases) are no operand of a
    matmul, and stand apart from the matrices."""

    layers: int
    heads: int
    attention_width: int  #: heads * head width, of one layer
    attention_parameters: int  #: matrices of attention, all layers
    feed_forward_parameters: int  #: matrices of a token's MLPs or experts, all layers
    router_parameters: int  #: matrices of a token's routers and predictors, all layers
    head_parameters: int  #: the matrix behind the logits, tied or not
    vector_parameters: int  #: norms and biases, all layers and before the head
    parameters: int  #: all, vectors included, a tied head once
    active_parameters: int  #: those that process a token routed everywhere
