"""Token choice: each token goes to the k experts that score it highest, y = sum_i g_i E_i(x) over them
(Shazeer et al. 2017, equation 1).

The presets follow, by equation number:

``switch``       Fedus et al. 2021: softmax scores, one expert, its score the gate (1, 2); an expert
                 takes tokens / experts * capacity factor of a batch, what comes later is dropped (3);
                 balance loss (4 to 6).
``mixtral``      Jiang et al. 2024, section 2.1: a softmax over the two highest logits, which is the one
                 over all, renormalised.
``olmoe``        Muennighoff et al. 2024: 8 of 64 experts, gates not renormalised (1), balance loss (3),
                 z-loss (section 4.1.7; Zoph et al. 2022, equation 5).
``deepseek_v3``  DeepSeek-AI 2024: sigmoid scores (15), renormalised (13), one shared expert (12), a bias
                 in the choice alone (16), a small balance loss of each sequence (17 to 20), experts of 4
                 out of 8 groups (section 2.1.2), gates scaled by 2.5 (its released configuration). A
                 group counts by its best top_k / top_groups experts, here 2; the released code and
                 Hugging Face's take 2 whatever these are, and so does ``group_best = 2``.

Where this reads them differently: all experts that a token meets are together as wide as the dense MLP,
so that active FLOPs equal its own (each of Mixtral's two is as wide). The balance loss counts
assignments, not tokens, and so is 1 at an even load whatever k (OLMoE's is k). Capacity is rounded up,
and empty places aren't computed. The causal rule drops nothing: which tokens are dropped
depends on the rest of the batch and on the number of later tokens.

B sequences, T tokens, S slots, padding included, N tokens that are no padding, A assignments, D model
width, E experts, K chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from modbench.ledger import Counts, Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer
from modbench.model.mlp import MLP, FeedForward
from modbench.routers.token_choice_options import TokenChoiceOptions
from modbench.routing.balance import SelectionBias, balance_loss, load_of
from modbench.routing.dispatch import from_experts, to_experts
from modbench.routing.expert_bank import ExpertBank, expert_widths
from modbench.routing.force_balance import even_experts
from modbench.routing.registry import register_router
from modbench.routing.router import Presets
from modbench.routing.topk import (
    apply_capacity,
    best_experts,
    capacity_tokens,
    counts_to_host,
    evenly,
    score,
)


@register_router("token_choice")
@dataclass(frozen=True, kw_only=True)
class TokenChoice(TokenChoiceOptions):
    """Every block's MLP is a bank of experts of which each token chooses ``top_k``."""

    presets: ClassVar[Presets] = {
        "one_expert": {"top_k": 1, "renormalise": False},
        "fine_grained": {"experts": 64, "top_k": 8},
        "switch": {"top_k": 1, "renormalise": False, "capacity_factor": 1.25},
        "mixtral": {"experts": 8, "top_k": 2},
        "olmoe": {"experts": 64, "top_k": 8, "renormalise": False, "z_loss": 0.001},
        "deepseek_v3": {
            "experts": 256,
            "top_k": 8,
            "affinity": "sigmoid",
            "scaling": 2.5,
            "groups": 8,
            "top_groups": 4,
            "shared_experts": 1,
            "balance": 0.0001,
            "balance_scope": "sequence",
            "bias_step": 0.001,
        },
    }

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer, TokenChoiceExperts(self, model, layer))


class TokenChoiceExperts(FeedForward):
    """Experts that tokens choose. ``no_ops`` further experts do nothing and cost nothing."""

    def __init__(
        self, options: TokenChoiceOptions, model: ModelConfig, layer: int, no_ops: int = 0
    ) -> None:
        super().__init__()
        self.options, self.model, self.layer, self.no_ops = options, model, layer, no_ops
        width, shared_width = expert_widths(
            model,
            active=options.top_k,
            width=options.expert_width,
            shared=options.shared_experts,
            shared_width=options.shared_width,
        )
        self.bank = ExpertBank(model, layer, experts=options.experts, width=width)
        self.router = nn.Parameter(torch.empty(options.experts + no_ops, model.width))
        # Experts that all tokens meet are one wider MLP.
        self.shared = MLP(replace(model, mlp_width=shared_width), layer) if shared_width else None
        self.shared_gate = nn.Parameter(torch.empty(1, model.width)) if options.shared_gate else None
        self.bias = SelectionBias(len(self.router), options.bias_step) if options.bias_step else None

    @property
    def has_data_dependent_shapes(self) -> bool:  # type: ignore[override]
        """True where the number of tokens per expert is read from the device."""
        return not self.bank.fits_grouped_mm()

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"layers.{self.layer}.router")
        if self.shared_gate is not None:
            normal_(self.shared_gate, seed, f"layers.{self.layer}.shared_gate")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_SD = x_BTD.flatten(0, 1)
        real_BT = context.real(x_BTD)
        # Padding enters no router: it is left out here and comes back as zeros.
        slots_N = None if real_BT is None else real_BT.flatten().nonzero().squeeze(1)
        x_ND = x_SD if slots_N is None else x_SD.index_select(0, slots_N)

        with component("router", self.layer):
            logits_NE = score(x_ND, self.router)
        sigmoid = self.options.affinity == "sigmoid"
        scores_NE = logits_NE.sigmoid() if sigmoid else logits_NE.softmax(dim=-1)
        experts_NK = self._choose(logits_NE, scores_NE, context)
        before = sum(context.before(x_BTD))
        experts_NK = even_experts(experts_NK, context, before, self.options.experts, self.no_ops)
        load_E = load_of(experts_NK, len(self.router))
        gates_NK = scores_NE.gather(1, experts_NK)
        if self.options.renormalise:
            gates_NK = gates_NK / gates_NK.sum(dim=-1, keepdim=True)
        if self.options.scaling != 1:
            gates_NK = gates_NK * self.options.scaling

        capacity = self._capacity(len(x_ND), context)
        rows = self._rows_on_device if self.bank.grouped(x_ND) else self._rows
        order_A, counts = rows(experts_NK, load_E, capacity, self._nominal(len(x_ND), before))
        tokens_A = order_A // self.options.top_k
        y_AD = self.bank(to_experts(x_ND, tokens_A, self.bank.dtype(x_ND)), counts)
        gates_A = gates_NK.flatten().index_select(0, order_A)
        y_ND = from_experts(y_AD, gates_A, tokens_A, len(x_ND))
        self._report(context, load_E, capacity)
        if context.trace.detailed:
            self._show_choice(context, scores_NE, experts_NK, gates_NK)
        trains = self.training and context.selection == "topk"
        if self.bias is not None and trains and not context.trace.repeated:
            self.bias.update(load_E)
        if context.selection == "topk":  # training never uses the causal rule
            self._losses(context, x_BTD, slots_N, logits_NE, scores_NE, experts_NK)
        out_SD = y_ND
        if slots_N is not None:
            out_SD = y_ND.new_zeros(len(x_SD), y_ND.shape[1]).index_copy(0, slots_N, y_ND)
        if self.shared is not None:
            out_SD = out_SD + self._shared(x_BTD, context).flatten(0, 1)
        return out_SD.to(x_BTD.dtype).view_as(x_BTD)

    def ledger(self, workload: Workload) -> Ledger:
        total = matmul(
            workload,
            self.layer,
            "router",
            rows=workload.tokens,
            inner=self.model.width,
            columns=len(self.router),
            weight_gradient=self.router.requires_grad,
        )
        # With capacity, too: an even load finds room.
        nominal = self._nominal(workload.tokens, sum(workload.past))
        (assignments,) = workload.counts.get((self.layer, "experts"), (nominal,))
        total += self.bank.ledger(workload, assignments)
        if self.shared is not None:
            total += self.shared.ledger(workload)
        if self.shared_gate is not None:
            total += matmul(
                workload,
                self.layer,
                "router",
                rows=workload.slots,
                inner=self.model.width,
                columns=1,
                weight_gradient=self.shared_gate.requires_grad,
            )
        return total

    def nominal_counts(self, workload: Workload) -> Counts:
        if self.no_ops or self.options.capacity_factor is not None:
            return {}
        return {(self.layer, "experts"): (self._nominal(workload.tokens, sum(workload.past)),)}

    def active_parameters(self) -> int:
        own = sum(parameter.numel() for parameter in self.parameters())
        idle = self.options.experts - self.options.top_k
        return own - self.bank.parameters_of(idle)

    def _choose(self, logits_NE: Tensor, scores_NE: Tensor, context: Context) -> Tensor:
        options = self.options
        if self.bias is None and options.groups == 1:
            return best_experts(logits_NE, options.top_k)
        scores_NE = scores_NE.detach()
        if self.bias is not None:
            scores_NE = scores_NE + self.bias.of(self.layer, context.trace)
        return best_experts(
            scores_NE, options.top_k, options.groups, options.top_groups, options.group_best
        )

    def _rows(
        self, experts_NK: Tensor, load_E: Tensor, capacity: int | None, nominal: int
    ) -> tuple[Tensor, Sequence[int]]:
        """Which assignments are computed, sorted by expert, earlier tokens first, and how many each
        expert has."""
        order_A = experts_NK.flatten().argsort(stable=True)
        counts = counts_to_host(load_E[: self.options.experts], evenly(nominal, self.options.experts))
        order_A = order_A[: sum(counts)]  # the no-op experts come last and are not computed
        if capacity is None:
            return order_A, counts
        expert_A = experts_NK.flatten().index_select(0, order_A)
        counts = [min(count, capacity) for count in counts]
        return order_A.index_select(0, apply_capacity(expert_A, load_E, capacity, sum(counts))), counts

    def _rows_on_device(
        self, experts_NK: Tensor, load_E: Tensor, capacity: int | None, nominal: int
    ) -> tuple[Tensor, Tensor]:
        """The same, with all assignments, those that are not computed at the end: how many these are, no
        host has to know."""
        expert_A = experts_NK.flatten()
        if capacity is None:
            return expert_A.argsort(stable=True), load_E[: self.options.experts]
        order_A = expert_A.argsort(stable=True)
        sorted_A = expert_A.index_select(0, order_A)
        first_E = load_E.cumsum(0) - load_E
        place_A = torch.arange(len(sorted_A), device=sorted_A.device) - first_E.index_select(0, sorted_A)
        left_out_A = (place_A >= capacity) | (sorted_A >= self.options.experts)
        order_A = order_A.index_select(0, left_out_A.to(torch.uint8).argsort(stable=True))
        return order_A, load_E[: self.options.experts].clamp(max=capacity)

    def _nominal(self, tokens: int, past: int) -> int:
        """Assignments to experts that compute, of ``tokens`` new tokens that spread evenly."""
        real, everyone = self.options.experts, self.options.experts + self.no_ops
        (new,), _ = incremental_counts(
            lambda n: n * self.options.top_k * real // everyone, [tokens], [past]
        )
        return new

    def _capacity(self, tokens: int, context: Context) -> int | None:
        """Assignments that each expert takes of a batch of ``tokens``; None: whatever comes."""
        factor = self.options.capacity_factor
        if factor is None or context.selection == "causal":
            return None
        return capacity_tokens(factor, tokens * self.options.top_k, among=len(self.router))

    def _shared(self, x_BTD: Tensor, context: Context) -> Tensor:
        assert self.shared is not None
        y_BTD = self.shared(x_BTD, context)
        if self.shared_gate is None:
            return y_BTD  # type: ignore[no-any-return]
        with component("router", self.layer):
            gate_BT1 = score(x_BTD, self.shared_gate)
        return y_BTD * gate_BT1.sigmoid()  # type: ignore[no-any-return]

    def _report(self, context: Context, load_E: Tensor, capacity: int | None) -> None:
        taken_E = load_E
        if capacity is not None:
            taken_E = torch.cat(
                (load_E[: self.options.experts].clamp(max=capacity), load_E[self.options.experts :])
            )
            context.trace.show(self.layer, "dropped", load_E - taken_E)
        context.trace.show(self.layer, "load", taken_E)
        context.trace.count(self.layer, "experts", taken_E[: self.options.experts].sum())

    def _show_choice(
        self, context: Context, scores_NE: Tensor, experts_NK: Tensor, gates_NK: Tensor
    ) -> None:
        chosen_NE = torch.zeros_like(scores_NE, dtype=torch.bool).scatter_(1, experts_NK, 1)
        idle_NK = experts_NK >= self.options.experts
        gates_NK = gates_NK.masked_fill(idle_NK, 0.0)
        gates_NE = torch.zeros_like(scores_NE).scatter_(1, experts_NK, gates_NK)
        context.trace.show_choice(self.layer, scores_NE, chosen_NE, gates=gates_NE)
        if self.no_ops:
            context.trace.show(self.layer, "no_op", idle_NK.sum(1))

    def _losses(
        self,
        context: Context,
        x_BTD: Tensor,
        slots_N: Tensor | None,
        logits_NE: Tensor,
        scores_NE: Tensor,
        experts_NK: Tensor,
    ) -> None:
        options, trace = self.options, context.trace
        if options.balance:
            if self.bias is not None or options.groups > 1:
                # Of the scores alone, as in DeepSeek-V3's equation 18.
                experts_NK = best_experts(logits_NE, options.top_k)
            if options.affinity == "sigmoid":
                scores_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True)
            (sequences, tokens, _), sequence_N = x_BTD.shape, None
            if options.balance_scope == "sequence":
                sequence_S = torch.arange(sequences, device=x_BTD.device).repeat_interleave(tokens)
                sequence_N = sequence_S if slots_N is None else sequence_S.index_select(0, slots_N)
            balance = balance_loss(experts_NK, scores_NE, sequence_N, sequences)
            trace.loss(self.layer, "balance", options.balance * balance)
        if options.z_loss:
            z_loss = logits_NE.logsumexp(dim=-1).square().mean()
            trace.loss(self.layer, "z_loss", options.z_loss * z_loss)
