"""The FLOP formulas of papers, and `Reading`, the sizes of a model that they use. docs/conventions.md
names the source of each.

The papers have no tokens that skip a block: each token is charged for every block and for all experts it
may be routed to. They have two phases, a forward pass and a training step of three times that; prefill
and decode are charged as forward passes with one row of logits per token. Padding is charged where the
workload counts it, activation checkpointing never. Matrices are read at their true size, so grouped keys
and gated MLPs, which most papers lack, cause no error. All formulas give integers; none divides.

Letters: T tokens, L layers, d width, a = heads * head width, V vocabulary, N parameters, P query-key
pairs, which for whole sequences of S tokens is the sum of their S * S. Pure Python, no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modbench.errors import UserError, known_names
from modbench.ledger import CONVENTIONS, PHASES, Ledger, Workload

if TYPE_CHECKING:
    from modbench.model.layer import Layer
    from modbench.routing.build import RoutedDecoder


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Sizes of a model that the papers' formulas use. Matrices only: vectors (norms, biases) are no
    operand of a matmul."""

    layers: int
    width: int
    heads: int
    attention_width: int  #: heads * head width, of one layer
    key_value_width: int  #: key heads * head width, of one layer
    attention_parameters: int  #: matrices of attention, all layers
    feed_forward_parameters: int  #: matrices of a token's MLPs or experts, all layers
    router_parameters: int  #: matrices of a token's routers and predictors, all layers
    vocabulary: int
    embedding_parameters: int  #: the look-up table
    parameters: int  #: all, vectors included, a tied head once
    active_parameters: int  #: those that process a token routed everywhere
    tied: bool  #: the head is the look-up table

    @property
    def matrices(self) -> int:
        """Elements of a token's matrices between embedding and head: Kaplan's N."""
        return self.attention_parameters + self.feed_forward_parameters + self.router_parameters

    @property
    def head(self) -> int:
        """Elements of the matrix behind the logits, tied or not."""
        return self.vocabulary * self.width


def reading(decoder: "RoutedDecoder") -> Reading:
    """Read the sizes of a decoder with any router: attention's matrices follow from its config, the
    routers' from the ledger of a single token, which is routed everywhere; the other matrices are
    feed-forward."""
    config = decoder.config
    layers: list[Layer] = list(decoder.layers)  # type: ignore[arg-type]
    attention_width = config.heads * config.head_width
    key_value_width = config.key_heads * config.head_width
    vectors = sum(p.numel() for layer in layers for p in layer.parameters() if p.dim() < 2)
    matrices = sum(decoder.active_by_layer()) - vectors
    of_one_token = decoder.ledger(Workload.uniform(1, 1)).by_component("full")
    per_layer = 2 * config.width * (attention_width + key_value_width)
    # A plugin may have no attention, or a scorer larger than its parameters: the parts still add up.
    attention = min(len(layers) * per_layer, matrices)
    routers = (of_one_token.get("router", 0) + of_one_token.get("predictor", 0)) // 2
    routers = min(routers, matrices - attention)
    return Reading(
        layers=len(layers),
        width=config.width,
        heads=config.heads,
        attention_width=attention_width,
        key_value_width=key_value_width,
        attention_parameters=attention,
        feed_forward_parameters=matrices - attention - routers,
        router_parameters=routers,
        vocabulary=config.vocabulary,
        embedding_parameters=decoder.embedding.weight.numel(),
        parameters=decoder.parameter_count("total"),
        active_parameters=decoder.parameter_count("active"),
        tied=config.tied_head,
    )


def _six_n(model: Reading, workload: Workload) -> int:
    """Kaplan et al. 2020, section 2.1: C = 6 N D, a third of it forward: 2 N T."""
    return 2 * model.matrices * workload.slots


def _kaplan(model: Reading, workload: Workload) -> int:
    """Kaplan et al. 2020, equation 2.2 and Table 1: 2 N T + 2 L a P."""
    return _six_n(model, workload) + 2 * model.layers * model.attention_width * _pairs(workload)


def _chinchilla_a4(model: Reading, workload: Workload) -> int:
    """Hoffmann et al. 2022, appendix F, its attention and dense blocks alone: 2 T (attention + MLP) +
    L (2 a P + 3 heads P + 2 a P)."""
    matrices = model.attention_parameters + model.feed_forward_parameters
    per_pair = 4 * model.attention_width + 3 * model.heads
    return 2 * matrices * workload.slots + model.layers * per_pair * _pairs(workload)


def _chinchilla_text(model: Reading, workload: Workload) -> int:
    """Hoffmann et al. 2022, appendix F, whole: 2 T V d to embed, the blocks, 2 T d V for the logits."""
    return _chinchilla_a4(model, workload) + 2 * 2 * workload.slots * model.head


def _palm(model: Reading, workload: Workload) -> int:
    """Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T per token, a third of it forward: 2 N T +
    4 L a P. N: all active parameters that are multiplied, the matrix behind the logits once."""
    parameters = model.matrices + model.head
    return 2 * parameters * workload.slots + 4 * model.layers * model.attention_width * _pairs(workload)


def _megatron(model: Reading, workload: Workload) -> int:
    """Megatron-LM core_v0.10.0, a third of 12 B S L h^2 ((1 + groups / heads + S / h) a / h + experts *
    gated * ffn / h + gated * shared / h + V / (2 L h))."""
    attention = model.width * (model.attention_width + model.key_value_width) * workload.slots
    attention += model.attention_width * _pairs(workload)
    matrices = model.feed_forward_parameters + model.head
    return 4 * model.layers * attention + 2 * matrices * workload.slots


def _pairs(workload: Workload) -> int:
    return workload.pairs().full


_FORWARD: Mapping[str, Callable[[Reading, Workload], int]] = {
    "kaplan": _kaplan,
    "chinchilla_text": _chinchilla_text,
    "chinchilla_a4": _chinchilla_a4,
    "palm": _palm,
    "megatron": _megatron,
    "six_n": _six_n,
}
LITERATURE: tuple[str, ...] = tuple(_FORWARD)
ALL_CONVENTIONS: tuple[str, ...] = (*CONVENTIONS, *LITERATURE)


def flops_under(convention: str, ledger: Ledger, reading: Reading, workload: Workload) -> int:
    """Compute the FLOPs of ``workload`` under any convention, given the model's ledger on it and its
    sizes. In papers, training is three forward passes. Raise a `UserError` for an unknown convention."""
    check_known(convention)
    if convention in CONVENTIONS:
        return ledger.total(convention)
    return _FORWARD[convention](reading, workload) * (3 if workload.phase == "train" else 1)


def convention_flops(decoder: "RoutedDecoder", workload: Workload, convention: str) -> int:
    """Compute the FLOPs of ``decoder`` on ``workload`` under any convention. Raise a `UserError` for an
    unknown convention."""
    ledger = decoder.ledger(workload)
    if convention in CONVENTIONS:
        return ledger.total(convention)
    return flops_under(convention, ledger, reading(decoder), workload)


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
