"""ExpertRouter: the base of schemes that replace every block's MLP by experts."""

from dataclasses import dataclass

from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.expert_hooks import ExpertHooks
from modbench.routing.expert_layer import RoutedExperts


@dataclass(frozen=True, kw_only=True)
class ExpertRouter(ExpertHooks):
    """Every block's MLP is a bank of experts. Override what differs:

    `scorer(model)`: the module from (N, D) to logits (N, E).
    `scores(logits_NE)`: the scores; by default their softmax.
    `choose(logits_NE, tokens)`: each token's experts and gates, both (N, K); or
    `assign(logits_NE, tokens)`: gates (N, E), 0 where an expert does not process a token, together with
    `nominal_experts_per_token()`.
    `losses(logits_NE, expert_ids_NK)`: auxiliary losses by name.
    `update(scorer, logits_NE, chosen, tokens)`: moves the buffers of the scorer.

    All else is done by `modbench.routing.expert_layer.RoutedExperts`.
    """

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer, self.feed_forward(model, layer))

    def feed_forward(self, model: ModelConfig, layer: int) -> FeedForward:
        """Build the experts of the block at depth ``layer``."""
        return RoutedExperts(self, model, layer)
