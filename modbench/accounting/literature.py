"""The FLOP formulas of papers, and `Reading`, the sizes of a model that they use. docs/conventions.md
names the source of each.

The papers have no tokens that skip a block: each token is charged for every block and for all experts it
may be routed to. They have two phases, a forward pass and a training step of three times that; prefill
and decode are charged as forward passes with one row of logits per token. Padding is charged where the
workload counts it, activation checkpointing never. Matrices are read at their true size, so grouped keys
and gated MLPs, which most papers lack, cause no error. Pure Python, no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modbench.errors import UserError, known_names
from modbench.hf.families.config import Reading
from modbench.ledger import CONVENTIONS, PHASES, Ledger, Workload

if TYPE_CHECKING:
    from modbench.routing.build import RoutedDecoder


def reading(decoder: "RoutedDecoder") -> Reading:
    """Read the sizes of a decoder with any router: attention's matrices follow from its config, the
    routers' from the ledger of a single token, which is routed everywhere; the other matrices are
    feed-forward."""
    config = decoder.config
    layers = list(decoder.layers)
    attention_width = config.heads * config.head_width
    vectors = sum(p.numel() for layer in layers for p in layer.parameters() if p.dim() < 2)
    matrices = sum(decoder.active_by_layer()) - vectors
    of_one_token = decoder.ledger(Workload.uniform(1, 1)).by_component("full")
    per_layer = 2 * config.width * (attention_width + config.key_heads * config.head_width)
    # A plugin may have no attention, or a scorer larger than its parameters: the parts still add up.
    attention = min(len(layers) * per_layer, matrices)
    routers = (of_one_token.get("router", 0) + of_one_token.get("predictor", 0)) // 2
    routers = min(routers, matrices - attention)
    return Reading(
        layers=len(layers),
        heads=config.heads,
        attention_width=attention_width,
        attention_parameters=attention,
        feed_forward_parameters=matrices - attention - routers,
        router_parameters=routers,
        head_parameters=config.vocabulary * config.width,
        vector_parameters=vectors + decoder.norm.weight.numel(),
        parameters=decoder.parameter_count("total"),
        active_parameters=decoder.parameter_count("active"),
    )


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A paper's forward pass. Each token costs 2 FLOPs per element of its matrices: attention and
    feed-forward, those of ``routers`` if True, and the head ``head`` times; and 2 per element of its
    ``vectors`` if True. Each query-key pair of the full square costs, in each layer, ``width`` FLOPs per
    element of the attention width and ``softmax`` per head."""

    routers: bool = False
    head: int = 0
    width: int = 0
    softmax: int = 0
    vectors: bool = False

    def flops(self, model: Reading, workload: Workload) -> int:
        matrices = model.attention_parameters + model.feed_forward_parameters
        matrices += self.routers * model.router_parameters + self.head * model.head_parameters
        matrices += self.vectors * model.vector_parameters
        per_pair = self.width * model.attention_width + self.softmax * model.heads
        forward = 2 * matrices * workload.slots + model.layers * per_pair * workload.pairs().full
        return forward * (3 if workload.phase == "train" else 1)


FORMULAS: Mapping[str, Formula] = {
    # Kaplan et al. 2020, equation 2.2 and Table 1.
    "kaplan": Formula(routers=True, width=2),
    # Hoffmann et al. 2022, appendix F, with a matmul to embed; and its attention and dense blocks alone.
    "chinchilla_text": Formula(head=2, width=4, softmax=3),
    "chinchilla_a4": Formula(width=4, softmax=3),
    # Chowdhery et al. 2022, appendix B.
    "palm": Formula(routers=True, head=1, width=4),
    # Megatron-LM core_v0.10.0.
    "megatron": Formula(head=1, width=4),
    # Kaplan et al. 2020, section 2.1: C = 6 N D, a third of it forward.
    "six_n": Formula(routers=True),
    # torchtitan, pull request 4300.
    "torchtitan": Formula(routers=True, head=1, width=4, vectors=True),
}
ALL_CONVENTIONS: tuple[str, ...] = (*CONVENTIONS, *FORMULAS)


def flops_under(convention: str, ledger: Ledger, reading: Reading, workload: Workload) -> int:
    """Compute the FLOPs of ``workload`` under any convention, given the model's ledger on it and its
    sizes. Raise a `UserError` for an unknown convention."""
    check_known(convention)
    if convention in CONVENTIONS:
        return ledger.total(convention)
    return FORMULAS[convention].flops(reading, workload)


def check_known(convention: str) -> None:
    """Raise a `UserError` if ``convention`` is unknown."""
    if convention not in ALL_CONVENTIONS:
        raise UserError(
            f"convention '{convention}' is not known; {known_names(convention, ALL_CONVENTIONS)}"
        )


def uniform_workload(sequences: int, length: int, phase: str, past: int) -> Workload:
    """Return `Workload.uniform`. Raise a `UserError` if the phase is unknown or a size impossible."""
    if phase not in PHASES:
        raise UserError(f"phase '{phase}' is not known; {known_names(phase, PHASES)}")
    try:
        return Workload.uniform(sequences, length, phase, past)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error
