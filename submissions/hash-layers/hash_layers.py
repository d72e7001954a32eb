"""Hash layers (Roller et al. 2021): a token's id decides its expert. Nothing is learned."""

from dataclasses import dataclass

from modbench import ExpertRouter, register_router


@register_router("hash_layers")
@dataclass(frozen=True, kw_only=True)
class HashLayers(ExpertRouter):
    top_k: int = 1
    balance: float = 0.0

    def scorer(self, model):
        return None

    def choose(self, logits_NE, tokens):
        hashed_N = (tokens.ids + 31 * tokens.layer) * 2654435761 >> 7
        return (hashed_N % self.experts)[:, None], logits_NE[:, :1] + 1  # gate 1
