"""Expert choice: each expert takes the tokens that score highest for it (Zhou et al. 2022, section 3).

Equation 1: k = n c / E tokens for each expert, out of the n of a pool. Equation 2: S = softmax(X W) over
the experts; each expert takes the top k of its column of S. A token's output is the sum over the experts
that took it of its score times what the expert makes of it: gates are the scores as they are, not
renormalised, and a token without an expert gets no update. No balance loss.

That choice compares a token with later ones, so it may not be used to predict. The causal rule here
is a score threshold per expert: an exponential average over training of the lowest score the expert took
(Sun et al. 2026, Expert Threshold routing, who also train by it); an expert then takes every token at or
above its own.

Where this reads the paper differently: k is rounded up; the pool is one sequence by default (the
paper's is the batch), so that a sequence's training does not depend on other sequences; every block has
experts, not every other; experts are MLPs of the dense block's kind. Its variant that bounds the experts
of a token is left out.

B sequences, T tokens, D model width, E experts, K tokens an expert takes, N rows in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Counts, Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.dispatch import from_experts, to_experts
from modbench.routing.ema import EMA
from modbench.routing.expert_bank import ExpertBank, expert_width
from modbench.routing.force_balance import even_pool, even_tokens
from modbench.routing.option_checks import check_types, reject_unused
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, Router
from modbench.routing.topk import (
    capacity_tokens,
    counts_to_host,
    highest,
    nonzero_indices,
    pack_tokens,
    score,
)


@register_router("expert_choice")
@dataclass(frozen=True, kw_only=True)
class ExpertChoice(Router):
    """Every block's MLP is a bank of experts, each of which takes its share of a pool of tokens."""

    presets: ClassVar[Presets] = {
        "batch_pool": {"pool": "batch"},
        "one_expert": {"capacity": 1.0},
    }

    experts: int = 8
    capacity: float = 2.0  #: c, experts per token on average
    expert_width: int | None = None  #: None: the dense MLP's width / capacity, for equal active FLOPs
    pool: Literal["sequence", "batch"] = "sequence"  #: tokens that an expert compares in training
    threshold_decay: float = 0.95  #: of the exponential average behind the causal rule

    def __post_init__(self) -> None:
        check_types(self)
        if self.experts < 1:
            raise UserError(f"experts is {self.experts}; it must be 1 or more")
        if not 0 < self.capacity <= self.experts:
            raise UserError(
                f"capacity is {self.capacity:g} with {self.experts} experts; it must lie above 0 and "
                "be no more than experts"
            )
        if self.expert_width is not None and self.expert_width < 1:
            raise UserError(f"expert_width is {self.expert_width}; it must be 1 or more")
        if not 0 <= self.threshold_decay < 1:
            raise UserError(f"threshold_decay is {self.threshold_decay}; it must lie in [0, 1)")
        reject_unused(
            self,
            ("pool", self.experts == 1, "experts"),
            ("threshold_decay", self.experts == 1, "experts"),
        )

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer, ExpertChoiceExperts(self, model, layer))


class ExpertChoiceExperts(FeedForward):
    """Experts that choose tokens."""

    def __init__(self, options: ExpertChoice, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.options, self.model, self.layer = options, model, layer
        width = expert_width(model, options.expert_width, options.capacity)
        self.bank = ExpertBank(model, layer, experts=options.experts, width=width)
        self.router = nn.Parameter(torch.empty(options.experts, model.width))
        # Before training an even softmax is all that is known of the scores.
        start_E = torch.full((options.experts,), 1 / options.experts)
        self.threshold = EMA(start_E, options.threshold_decay)

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"layers.{self.layer}.router")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", self.layer):
            scores_BTE = score(x_BTD, self.router).softmax(dim=-1)
        if context.selection == "causal":
            return self._above_threshold(x_BTD, scores_BTE, context)
        return self._highest(x_BTD, scores_BTE, context)

    def ledger(self, workload: Workload) -> Ledger:
        router = matmul(
            workload,
            self.layer,
            "router",
            rows=workload.slots,
            inner=self.model.width,
            columns=self.options.experts,
            weight_gradient=self.router.requires_grad,
        )
        taken = self._nominal(workload.lengths, workload.past)
        computed = max(taken) * len(taken) if workload.padding else sum(taken)
        counts = workload.counts.get((self.layer, "experts"), (computed * self.options.experts,))
        return router + self.bank.ledger(workload, counts[0])

    def nominal_counts(self, workload: Workload) -> Counts:
        taken = sum(self._nominal(workload.lengths, workload.past))
        return {(self.layer, "load"): (taken,) * self.options.experts}

    def active_parameters(self) -> int:
        # A token meets `capacity` experts on average.
        return self.router.numel() + self.bank.parameters_of(self.options.capacity)

    def _nominal(self, lengths: Sequence[int], past: Sequence[int]) -> list[int]:
        """New tokens that each expert takes out of each pool."""
        if self.options.pool == "batch":
            lengths, past = [sum(lengths)], [sum(past)]
        new, _ = incremental_counts(self._taken, lengths, past)
        return list(new)

    def _taken(self, tokens: int) -> int:
        return capacity_tokens(self.options.capacity, tokens, among=self.options.experts)

    def _highest(self, x_BTD: Tensor, scores_BTE: Tensor, context: Context) -> Tensor:
        sequences, tokens, width = x_BTD.shape
        real_BT = context.real(x_BTD)
        taken = self._nominal(context.lengths(x_BTD), [0] * sequences)
        if self.options.pool == "batch":
            scores_BTE = scores_BTE.reshape(1, sequences * tokens, -1)
            real_BT = None if real_BT is None else real_BT.reshape(1, -1)
        pools, in_pool, experts = scores_BTE.shape
        real_PT = None if real_BT is None else real_BT.repeat_interleave(experts, 0)
        scores_PT = scores_BTE.transpose(1, 2).reshape(pools * experts, in_pool)
        per_row = [k for k in taken for _ in range(experts)]
        selected_PT = highest(scores_PT, per_row, real_PT)
        index_PK = pack_tokens(selected_PT, max(taken), full=min(taken) == max(taken))
        within_PK = selected_PT.gather(1, index_PK)
        gates_PK = scores_PT.gather(1, index_PK) * within_PK

        first_P = torch.arange(pools, device=x_BTD.device).repeat_interleave(experts) * in_pool
        rows_PEK = (index_PK + first_P[:, None]).view(pools, experts, -1)
        rows_N = rows_PEK.transpose(0, 1).flatten()  # sorted by expert, the pools side by side
        gates_N = gates_PK.view(pools, experts, -1).transpose(0, 1).flatten()
        x_SD = x_BTD.reshape(-1, width)
        y_ND = self.bank(to_experts(x_SD, rows_N, self.bank.dtype(x_SD)), None)
        out_SD = from_experts(y_ND, gates_N, rows_N, len(x_SD))

        lowest_PE = scores_PT.detach().masked_fill(~selected_PT, torch.inf).amin(1).view(pools, experts)
        if self.training and not context.trace.repeated:
            self.threshold.update(lowest_PE.mean(0))
        chosen_PET = selected_PT.view(pools, experts, -1)
        context.trace.show(self.layer, "load", chosen_PET.sum((0, 2)))
        chosen_BTE = chosen_PET.transpose(1, 2)
        if context.trace.detailed:
            context.trace.show(self.layer, "taken", chosen_BTE.sum(-1).flatten())
        context.trace.show_choice(self.layer, scores_BTE, chosen_BTE, real_BT, scores_BTE)
        return out_SD.to(x_BTD.dtype).view_as(x_BTD)

    def _above_threshold(self, x_BTD: Tensor, scores_BTE: Tensor, context: Context) -> Tensor:
        x_SD = x_BTD.flatten(0, 1)
        options, scores_ES = self.options, scores_BTE.flatten(0, 1).T
        chosen_BTE = scores_BTE >= self.threshold.value.to(scores_BTE.dtype)
        even = even_pool if options.pool == "batch" else even_tokens
        chosen_BTE = even(chosen_BTE, context, options.capacity, among=options.experts)
        chosen_ES = chosen_BTE.flatten(0, 1).T
        real_BT = context.real(x_BTD)
        if real_BT is not None:
            chosen_ES = chosen_ES & real_BT.flatten()
        nominal = sum(self._nominal(context.lengths(x_BTD), context.before(x_BTD)))
        counts = counts_to_host(chosen_ES.sum(1), [nominal] * self.options.experts)
        # Sorted by expert.
        chosen_N = nonzero_indices(chosen_ES, sum(counts))
        rows_N = chosen_N % len(x_SD)
        y_ND = self.bank(to_experts(x_SD, rows_N, self.bank.dtype(x_SD)), counts)
        gates_N = scores_ES.flatten().index_select(0, chosen_N)
        out_SD = from_experts(y_ND, gates_N, rows_N, len(x_SD))
        context.trace.show(self.layer, "load", torch.tensor(counts))
        context.trace.show(self.layer, "taken", chosen_ES.sum(0))
        context.trace.show_choice(self.layer, scores_BTE, chosen_BTE, real_BT, scores_BTE)
        context.trace.count(self.layer, "experts", [sum(counts)])
        return out_SD.to(x_BTD.dtype).view_as(x_BTD)
