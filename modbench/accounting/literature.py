"""What papers count for a transformer: `Reading`, their formulas, and the sources of all conventions.

The papers know no token that skips anything: each is charged for every block, and for all the experts
it may be sent to. They know two phases, a forward pass and a training step of three times that;
prefill and decode are charged as forward passes, one row of logits to each token. Padding is charged
where the load counts it, activation checkpointing never. Matrices are read at their true size, so that
grouped keys and gated MLPs, which most of the papers do not have, are no error of theirs. All integers;
no formula here divides.

Letters: T tokens, L layers, d width, a = heads * head width, V vocabulary, N parameters, P query-key
pairs, which for whole sequences of S tokens is the sum of their S * S. Pure Python, no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modbench.errors import UserError, known_names
from modbench.ledger import CONVENTIONS, Workload

if TYPE_CHECKING:
    from modbench.model.layer import Layer
    from modbench.routing.build import RoutedDecoder


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the papers' formulas read off a model. Matrices only: vectors (norms, biases) multiply no
    matrix."""

    layers: int
    width: int
    heads: int
    attention_width: int  #: heads * head width, of one layer
    key_value_width: int  #: key heads * head width, of one layer
    attention_parameters: int  #: matrices of attention, all layers
    feed_forward_parameters: int  #: matrices of the MLPs or experts that a token meets, all layers
    router_parameters: int  #: matrices of routers and predictors that a token meets, all layers
    vocabulary: int
    embedding_parameters: int  #: the look-up table
    parameters: int  #: all, vectors included, a tied head once
    active_parameters: int  #: those of them that a token meets
    tied: bool  #: whether the head is the look-up table

    @property
    def matrices(self) -> int:
        """Elements of all matrices that a token meets between embedding and head: Kaplan's N."""
        return self.attention_parameters + self.feed_forward_parameters + self.router_parameters

    @property
    def head(self) -> int:
        """Elements of the matrix behind the logits, tied or not."""
        return self.vocabulary * self.width


def reading(decoder: "RoutedDecoder") -> Reading:
    """What a decoder with any router shows of itself: attention's matrices follow from its config, the
    routers' from the ledger of a single token, which enters everything; what else it meets in matrices
    is the feed-forward part."""
    config = decoder.config
    layers: list[Layer] = list(decoder.layers)  # type: ignore[arg-type]
    attention_width = config.heads * config.head_width
    key_value_width = config.key_heads * config.head_width
    vectors = sum(p.numel() for layer in layers for p in layer.parameters() if p.dim() < 2)
    matrices = sum(decoder.active_by_layer()) - vectors
    of_one_token = decoder.ledger(Workload.uniform(1, 1)).by_component("full")
    per_layer = 2 * config.width * (attention_width + key_value_width)
    # A plugin may have dropped attention, or score with more than it holds: the parts sum up even so.
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


def _kaplan(model: Reading, workload: Workload) -> int:
    """Kaplan et al. 2020, equation 2.2 and Table 1: 2 N T + 2 L a P."""
    return 2 * model.matrices * workload.slots + 2 * model.layers * model.attention_width * _pairs(
        workload
    )


def _six_n(model: Reading, workload: Workload) -> int:
    """Kaplan et al. 2020, section 2.1: C = 6 N D, a third of it forward: 2 N T."""
    return 2 * model.matrices * workload.slots


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


def literature_flops(convention: str, reading: Reading, workload: Workload) -> int:
    """FLOPs of ``workload`` by the formula of ``convention``; training is three forward passes to all of
    its authors.

    Raises:
        UserError: ``convention`` is none of `LITERATURE`.
    """
    if convention not in LITERATURE:
        check_known(convention)
        raise UserError(
            f"convention '{convention}' is read off a ledger, not off a shape; "
            f"{known_names(convention, LITERATURE)}"
        )
    return _FORWARD[convention](reading, workload) * (3 if workload.phase == "train" else 1)


def convention_flops(decoder: "RoutedDecoder", workload: Workload, convention: str) -> int:
    """FLOPs of ``decoder`` on ``workload`` under any convention: its ledger's or a paper's.

    Raises:
        UserError: unknown convention.
    """
    check_known(convention)
    if convention in CONVENTIONS:
        return decoder.ledger(workload).total(convention)
    return literature_flops(convention, reading(decoder), workload)


def check_known(convention: str) -> None:
    """
    Raises:
        UserError: unknown convention.
    """
    if convention not in ALL_CONVENTIONS:
        raise UserError(
            f"convention '{convention}' is not known; {known_names(convention, ALL_CONVENTIONS)}"
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a convention comes from, and what it counts."""

    convention: str
    where: str
    equation: str
    counts: str
    leaves_out: str

    def __str__(self) -> str:
        return f"{self.where}. {self.equation}. Counts {self.counts}. Leaves out {self.leaves_out}."


_SKIPPED = "what tokens skip: each is charged for every block and for all the experts it may be sent to"

SOURCES: Mapping[str, Source] = {
    source.convention: source
    for source in (
        Source(
            convention="model",
            where="The ledger of this package, `modbench.ledger`",
            equation="2 per multiply-accumulate; S (S + 1) / 2 pairs to a sequence; in training dX "
            "and dW of each matmul, each where a gradient is needed",
            counts="what the model needs: projections, causal attention, the MLPs or experts that are "
            "run, routers, predictors, logits",
            leaves_out="the embedding look-up, softmax, norms, activations, recomputation",
        ),
        Source(
            convention="full",
            where="The same ledger",
            equation="As `model`, but each of the S tokens of a sequence that reach a block is paired "
            "with all S of them: S * S pairs. In decode there is no later key to pair with: each token "
            "is charged the cached ones and itself, past + 1 keys",
            counts="the whole square of attention, as most papers and counters do",
            leaves_out="what `model` leaves out, and that attention is causal",
        ),
        Source(
            convention="executed",
            where="The same ledger",
            equation="As `full`, with the pairs that a CPU's kernels compute, our own or PyTorch's",
            counts="causal attention by whole blocks of keys, its scores once more in the backward "
            "pass, the second forward pass of activation checkpointing",
            leaves_out="the embedding look-up, softmax, norms, activations",
        ),
        Source(
            convention="kaplan",
            where="Kaplan et al. 2020, arXiv 2001.08361, equation 2.2 and Table 1",
            equation="C_forward = 2 N + 2 n_layer n_ctx d_attn per token, three times that in "
            "training; N holds no embedding",
            counts="every matrix between embedding and head, routers included, and one of "
            "attention's two products over the whole context",
            leaves_out="the logits, half of the square (so its attention is close to the triangle's "
            f"two products), and {_SKIPPED}",
        ),
        Source(
            convention="chinchilla_text",
            where="Hoffmann et al. 2022, arXiv 2203.15556, appendix F",
            equation="Embedding 2 S V d; in each layer the projections, 2 S S a for the scores, "
            "3 heads S S for the softmax, 2 S S a for the values, and the MLP; logits 2 S d V; backward "
            "twice the forward",
            counts="the embedding as if it were a matmul, and the softmax",
            leaves_out=f"routers, that attention is causal, and {_SKIPPED}",
        ),
        Source(
            convention="chinchilla_a4",
            where="Hoffmann et al. 2022, Table A4",
            equation="Appendix F without its embedding and logits: only so do the ratios to 6 N D come "
            "out that the table prints (1.03 1.10 1.08 1.04 1.03 0.99), with N = 13 L d^2 + V d, "
            "relative positions being a matrix of their own",
            counts="the layers alone, softmax included",
            leaves_out=f"the logits, routers, that attention is causal, and {_SKIPPED}",
        ),
        Source(
            convention="palm",
            where="Chowdhery et al. 2022, arXiv 2204.02311, appendix B",
            equation="6 N + 12 L H Q T per token in training, a third of it forward. N: the active "
            "parameters that are multiplied, hence no vectors, and the vocabulary's matrix once. "
            "PaLM's embedding is tied; where it is not, the look-up table is left out, for 6 N is said "
            "of matmul FLOPs, and a look-up is none",
            counts="every matrix, routers and logits included, and the square of attention: for a dense "
            "model `full` exactly, forward and in training",
            leaves_out=f"that attention is causal, and {_SKIPPED}",
        ),
        Source(
            convention="megatron",
            where="Megatron-LM at the end of 2024 (core_v0.10.0), `num_floating_point_operations` in "
            "`megatron/training/training.py`, after Narayanan et al. 2021, arXiv 2104.04473, equation 3",
            equation="12 B S L h^2 ((1 + groups / heads + S / h) a / h + experts * gated * ffn / h + "
            "gated * shared / h + V / (2 L h)), a third of it forward. For heads that are not grouped "
            "and ffn = 4 h it is 72 B S L h^2 (1 + S / 6h + V / 12 L h): the paper prints 96 and "
            "V / 16 L h, for it recomputes the layers. Since March 2025 the code takes half the square. "
            "Read at the experts' own width, and at the vocabulary unpadded",
            counts="projections, the square of attention, MLPs or chosen and shared experts, logits",
            leaves_out=f"routers, that attention is causal, and {_SKIPPED}",
        ),
        Source(
            convention="six_n",
            where="Kaplan et al. 2020, section 2.1, and papers since",
            equation="C = 6 N D, a third of it forward; N active parameters without the embedding",
            counts="every matrix between embedding and head, routers included",
            leaves_out=f"attention's scores and values, the logits, and {_SKIPPED}",
        ),
    )
}
