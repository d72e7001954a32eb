"""The dense decoder: no routing. The baseline of every scheme.

Its parts are in `modbench.model.block` and `modbench.model.decoder`, and follow, by equation number:

pre-norm       x + Attention(norm(x)), then x + MLP(norm(x)), and a norm before the head (Xiong et al.
               2020, figure 1, b).
RMSNorm        x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019, equation 4).
attention      softmax(Q K^T / sqrt(P)) V, causal (Vaswani et al. 2017, equation 1), queries in groups
               that share keys and values (Ainslie et al. 2023, section 2.2).
positions      RoPE on queries and keys (Su et al. 2021, equation 34).
MLP            SwiGLU (Shazeer 2020, equation 6) or GELU (Hendrycks and Gimpel 2016), without biases.
head           the embedding (Press and Wolf 2017), or a matrix of its own.

Together that is Llama (Touvron et al. 2023). Differences: RoPE rotates the pairs (i, i + P/2), as in
Hugging Face's Llama, not neighbours as in equation 34, which is a permutation of the columns of Q and K;
one matmul gives q, k and v, another gate and up; the SwiGLU MLP is 3 times as wide as the model by
default, not 8/3 rounded up; the head is tied by default; angles are float32 whatever the model's dtype;
initial weights are those of `modbench.model.init`.
"""

from dataclasses import dataclass

from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.layer import Layer
from modbench.routing.registry import register_router
from modbench.routing.router import Router


@register_router("vanilla")
@dataclass(frozen=True, kw_only=True)
class Vanilla(Router):
    """Every block processes every token."""

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer)
