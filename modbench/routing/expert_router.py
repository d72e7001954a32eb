"""ExpertRouter, the base of schemes that replace every block's MLP by experts, and its layer.

B sequences, T tokens, S slots, padding included, N tokens that are not padding, A assignments, D model
width, E experts, K experts of a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.ledger import Counts, Ledger, Workload, incremental_counts
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.model.mlp import MLP, FeedForward
from modbench.routing.balance import balance_loss, load_of
from modbench.routing.dispatch import by_expert, from_experts
from modbench.routing.expert_bank import ExpertBank, dispatched, expert_widths
from modbench.routing.expert_options import ExpertOptions
from modbench.routing.feed_forward import as_feed_forward
from modbench.routing.force_balance import assigned_in_turn, even_experts
from modbench.routing.hook_checks import (
    checked_choice,
    checked_tensor,
    expect,
    expect_losses,
    has_values,
)
from modbench.routing.router import Router, overrides
from modbench.routing.scorer import (
    LinearScorer,
    has_closed_form,
    run_scorer,
    scorer_ledger,
    scorer_of,
    update_scorer,
)
from modbench.routing.tokens import Noise, Tokens, tokens_of
from modbench.routing.topk import (
    best_experts,
    capacity_tokens,
    counts_to_host,
    evenly,
    nonzero_indices,
)


class ExpertScheme(Router):
    """Every block's MLP is a bank of experts: the hooks that `RoutedExperts` calls, and the values of
    what is no option of a scheme. No method sees padding."""

    experts: int
    expert_width: int | None
    top_k: int = 1
    shared_experts: int = 0
    shared_width: int | None = None
    shared_gate: bool = False
    capacity_factor: float | None = None
    balance: float = 0.0
    z_loss: float = 0.0

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer, as_feed_forward(self, self.feed_forward(model, layer)))

    def feed_forward(self, model: ModelConfig, layer: int) -> nn.Module:
        """Return the experts of the block at depth ``layer``, or another module from (B, T, D) to
        (B, T, D)."""
        return RoutedExperts(self, model, layer)

    def no_ops(self) -> int:
        """Return the number of no-op experts: their ids follow those of the others, and their
        assignments are not computed. Only for schemes that override `choose`."""
        return 0

    def scorer(self, model: ModelConfig) -> nn.Module | None:
        """Return the module that gives each token its logits, (N, D) to (N, E); its FLOPs are counted.
        State of the scheme is a buffer of it. None: no scores, and logits are zeros."""
        return LinearScorer(model.width, self.experts + self.no_ops())

    def scores(self, logits_NE: Tensor) -> Tensor:
        """Return the scores of `choose`, the balance loss and the trace, (N, E)."""
        return logits_NE.softmax(dim=-1)

    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return the ids of each token's ``top_k`` experts and their gates, both (N, K)."""
        scores_NE = self.scores(logits_NE)
        expert_ids_NK = best_experts(scores_NE, self.top_k)
        gates_NK = scores_NE.gather(1, expert_ids_NK)
        if self.top_k > 1:
            gates_NK = gates_NK / gates_NK.sum(dim=-1, keepdim=True)
        return expert_ids_NK, gates_NK

    def assign(self, logits_NE: Tensor, tokens: Tokens) -> Tensor:
        """Return each expert's gate for each token, (N, E); 0: not processed. Override it in place of
        `choose` where experts choose tokens or the number of experts of a token varies, together with
        `nominal_experts_per_token`."""
        expert_ids_NK, gates_NK = self.choose(logits_NE, tokens)
        return torch.zeros_like(logits_NE).scatter(1, expert_ids_NK, gates_NK.to(logits_NE.dtype))

    def nominal_experts_per_token(self) -> float:
        """Return the mean number of experts per token that the options state, for a scheme that
        overrides `assign`."""
        return self.top_k

    def losses(self, logits_NE: Tensor, expert_ids_NK: Tensor) -> dict[str, Tensor]:
        """Return auxiliary losses by name, multiplied by their weights. A scheme that overrides `assign`
        has none by default, and is given gates (N, E) in place of ids."""
        losses: dict[str, Tensor] = {}
        if self.balance:
            shares_NE = self.shares(self.scores(logits_NE))
            losses["balance"] = self.balance * balance_loss(expert_ids_NK, shares_NE)
        if self.z_loss:
            losses["z_loss"] = self.z_loss * logits_NE.logsumexp(dim=-1).square().mean()
        return losses

    def auxiliary_losses(self, logits_NE: Tensor, chosen: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """Return what `losses` does; override this one where a loss depends on ``tokens``. ``chosen``:
        ids (N, K), or of a scheme that overrides `assign`, gates (N, E)."""
        if self.assigns and type(self).losses is ExpertScheme.losses:
            return {}
        return self.losses(logits_NE, chosen)

    def update(self, scorer: nn.Module, logits_NE: Tensor, chosen: Tensor, tokens: Tokens) -> None:
        """Change the buffers of ``scorer`` after a training pass, without gradient."""

    @property
    def assigns(self) -> bool:
        """True if the scheme overrides `assign`."""
        return type(self).assign is not ExpertScheme.assign

    def shares(self, scores_NE: Tensor) -> Tensor:
        """Return each expert's share of a token's scores for the balance loss; they sum to 1."""
        if type(self).scores is ExpertScheme.scores:
            return scores_NE
        return F.normalize(scores_NE, p=1, dim=-1)

    # Overridden by schemes of this package whose nominal counts are more exact than the default.

    def exact_load(self, lengths: Sequence[int], past: Sequence[int]) -> int | None:
        """Return the new tokens that `assign` gives each expert under the training rule if the sizes
        tell, so that shapes are static and the host need not wait; None: they don't."""
        return None

    def nominal_assignments(self, lengths: Sequence[int], past: Sequence[int]) -> int:
        """Return the nominal number of computed assignments of sequences of ``lengths`` new tokens."""
        each = Fraction(repr(self.nominal_experts_per_token()))
        each = each * self.experts / (self.experts + self.no_ops())
        (new,), _ = incremental_counts(lambda n: int(n * each), [int(sum(lengths))], [int(sum(past))])
        return new

    def even_assignments(
        self, lengths: Sequence[int], past: Sequence[int], device: torch.device
    ) -> Tensor:
        """Return the assignments (N, E) bool of `assign` under forced balance, as many as
        `nominal_assignments`."""
        each = self.nominal_experts_per_token()
        return assigned_in_turn(each, sum(past), sum(lengths), self.experts, device)


@dataclass(frozen=True, kw_only=True)
class ExpertRouter(ExpertOptions, ExpertScheme):
    """Every block's MLP is a bank of experts. Override what differs; no method sees padding."""


class RoutedExperts(FeedForward):
    """A bank of experts, the scorer ``router`` and shared experts, which process every token."""

    def __init__(self, options: ExpertScheme, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.options = options
        self.model = model
        self.layer = layer
        self.active = options.nominal_experts_per_token()
        right = isinstance(self.active, int | float) and 0 < self.active <= options.experts
        expected = f"a number above 0 and at most experts, {options.experts}"
        expect(options, "nominal_experts_per_token", right, repr(self.active), expected)
        width, shared_width = expert_widths(
            model,
            active=self.active,
            width=options.expert_width,
            shared=options.shared_experts,
            shared_width=options.shared_width,
        )
        self.bank = ExpertBank(model, layer, experts=options.experts, width=width)
        self.router = scorer_of(options, model, layer)
        # All shared experts together are one wider MLP.
        self.shared = MLP(replace(model, mlp_width=shared_width), layer) if shared_width else None
        self.shared_gate = None
        if options.shared_gate:
            self.shared_gate = LinearScorer(model.width, 1, stream="shared_gate")
            self.shared_gate.layer = layer
        self.noise = Noise(layer, "experts")

    @property
    def has_data_dependent_shapes(self) -> bool:  # type: ignore[override]
        """True where the number of tokens per expert is read from the device."""
        if self.options.assigns:
            return self.options.exact_load((1,), (0,)) is None
        return not self.bank.fits_grouped_mm()

    @property
    def has_closed_form(self) -> bool:
        return has_closed_form(self.router)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_SD = x_BTD.flatten(0, 1)
        real_BT = context.real(x_BTD)
        # Padding is left out here and comes back as zeros.
        slots_N = None
        if real_BT is not None:
            slots_N = nonzero_indices(real_BT, sum(context.lengths(x_BTD)))
        x_ND = x_SD if slots_N is None else x_SD.index_select(0, slots_N)
        tokens = tokens_of(x_BTD, context, self.noise, slots_N=slots_N, flat=True, scorer=self.router)
        logits_NE = self._logits(x_ND, tokens.state if context.trace.repeated else None)
        route = self._assign if self.options.assigns else self._choose
        out_SD, chosen = route(x_ND, logits_NE, tokens, context)
        if context.selection == "topk":  # training never uses the causal rule
            self._learn(logits_NE, chosen, tokens, context)
        if slots_N is not None:
            out_SD = out_SD.new_zeros(len(x_SD), out_SD.shape[1]).index_copy(0, slots_N, out_SD)
        if self.shared is not None:
            shared_BTD: Tensor = self.shared(x_BTD, context)
            if self.shared_gate is not None:
                gate_BT1 = run_scorer(self.shared_gate, x_BTD, self.layer).sigmoid()
                shared_BTD = shared_BTD * gate_BT1
            out_SD = out_SD + shared_BTD.flatten(0, 1)
        return out_SD.to(x_BTD.dtype).view_as(x_BTD)

    def ledger(self, workload: Workload) -> Ledger:
        width = self.model.width
        total = scorer_ledger(self.router, workload, self.layer, width, flat=True)
        key = self.layer, "experts"
        (assignments,) = workload.counts.get(key, self.expected_counts(workload)[key])
        total += self.bank.ledger(workload, assignments)
        if self.shared is not None:
            total += self.shared.ledger(workload)
        return total + scorer_ledger(self.shared_gate, workload, self.layer, width)

    def nominal_counts(self, workload: Workload) -> Counts:
        options = self.options
        lengths = workload.lengths
        past = workload.past
        if options.assigns:
            load = options.exact_load(lengths, past)
            return {} if load is None else {(self.layer, "load"): (load,) * options.experts}
        if options.no_ops() or options.capacity_factor is not None:
            return {}
        return self.expected_counts(workload)

    def expected_counts(self, workload: Workload) -> Counts:
        # With a capacity factor, too: an even load finds room.
        nominal = self.options.nominal_assignments(workload.lengths, workload.past)
        return {(self.layer, "experts"): (nominal,)}

    def active_parameters(self) -> int:
        total = sum(parameter.numel() for parameter in self.parameters())
        bank = self.bank
        return total - bank.parameters_of(bank.experts) + bank.parameters_of(self.active)

    def _logits(self, x_ND: Tensor, state: Mapping[str, Tensor] | None) -> Tensor:
        experts = self.options.experts + self.options.no_ops()
        if self.router is None:
            dtype = torch.promote_types(x_ND.dtype, torch.float32)
            return x_ND.new_zeros(len(x_ND), experts, dtype=dtype)
        logits_NE = run_scorer(self.router, x_ND, self.layer, state)
        shape = (len(x_ND), experts)
        gives = "a module that gives "
        return checked_tensor(self.options, "scorer", logits_NE, shape, part=gives)

    def _choose(
        self, x_ND: Tensor, logits_NE: Tensor, tokens: Tokens, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Return the output (N, D) of the experts that tokens choose, and their ids (N, K)."""
        options = self.options
        count, experts = logits_NE.shape
        choice = options.choose(logits_NE, tokens)
        grouped = self.bank.grouped(x_ND)
        known = None if grouped or not has_values(logits_NE) else experts
        expert_ids_NK, gates_NK = checked_choice(options, choice, count, options.top_k, known)
        expert_ids_NK = even_experts(
            expert_ids_NK, context, sum(tokens.past), options.experts, options.no_ops()
        )
        expert_ids_NK = context.replaced.get((self.layer, "experts"), expert_ids_NK)
        load_E = load_of(expert_ids_NK, experts)
        capacity = self._capacity(count, context)
        counts: Sequence[int] | Tensor
        order_A, counts = by_expert(expert_ids_NK, load_E, options.experts, capacity)
        if not grouped:
            nominal = options.nominal_assignments(tokens.lengths, tokens.past)
            counts = counts_to_host(counts, evenly(nominal, options.experts))
            order_A = order_A[: sum(counts)]
        tokens_A = order_A // options.top_k
        y_AD = self.bank(x_ND.index_select(0, tokens_A), counts)
        gates_A = gates_NK.flatten().index_select(0, order_A)
        self._show_load(context, load_E, capacity)
        if context.trace.detailed:
            idle_NK = expert_ids_NK >= options.experts
            shown_NK = gates_NK.masked_fill(idle_NK, 0.0).to(logits_NE.dtype)
            gates_NE = torch.zeros_like(logits_NE).scatter_(1, expert_ids_NK, shown_NK)
            chosen_NE = torch.zeros_like(logits_NE, dtype=torch.bool).scatter_(1, expert_ids_NK, 1)
            self._show_choice(context, logits_NE, chosen_NE, gates_NE)
            if options.no_ops():
                context.trace.show(self.layer, "no_op", idle_NK.sum(1))
        return from_experts(y_AD, gates_A, tokens_A, count), expert_ids_NK

    def _assign(
        self, x_ND: Tensor, logits_NE: Tensor, tokens: Tokens, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Return the output (N, D) of the experts that tokens are assigned to, and the gates (N, E)."""
        options = self.options
        trace = context.trace
        load = None
        gates_NE = options.assign(logits_NE, tokens)
        checked_tensor(options, "assign", gates_NE, (len(x_ND), options.experts))
        chosen_NE = gates_NE != 0
        if context.selection == "topk":
            load = options.exact_load(tokens.lengths, tokens.past)
        if context.forced_balance and load is None:
            trace.forced = True
            chosen_NE = options.even_assignments(tokens.lengths, tokens.past, x_ND.device)
            gates_NE = options.scores(logits_NE).masked_fill(~chosen_NE, 0)
        given_NE = context.replaced.get((self.layer, "experts"))
        if given_NE is not None:
            gates_NE = torch.where(chosen_NE, gates_NE, options.scores(logits_NE))
            chosen_NE, gates_NE = given_NE, gates_NE.masked_fill(~given_NE, 0)
        load_E = chosen_NE.sum(0)
        trace.show(self.layer, "load", load_E)
        if load is None:
            nominal = options.nominal_assignments(tokens.lengths, tokens.past)
            counts = counts_to_host(load_E, evenly(nominal, options.experts))
            trace.count(self.layer, "experts", [sum(counts)])
        if load is None or trace.detailed:
            trace.show(self.layer, "taken", chosen_NE.sum(1))
        if trace.detailed:
            self._show_choice(context, logits_NE, chosen_NE, gates_NE)
        y_ND = dispatched(self.bank, x_ND, gates_NE, chosen_NE, counts if load is None else load)
        return y_ND, gates_NE

    def _learn(self, logits_NE: Tensor, chosen: Tensor, tokens: Tokens, context: Context) -> None:
        """Report auxiliary losses, and move the scorer's buffers after a training pass."""
        options = self.options
        losses = options.auxiliary_losses(logits_NE, chosen, tokens)
        overridden = overrides(options, "auxiliary_losses", ExpertScheme)
        expect_losses(options, losses, "auxiliary_losses" if overridden else "losses")
        for name, loss in losses.items():
            context.trace.loss(self.layer, name, loss)
        if self.router is not None and tokens.training and not context.trace.repeated:
            update_scorer(options, self.router, logits_NE, chosen, tokens)

    def _capacity(self, tokens: int, context: Context) -> int | None:
        """Return the assignments that an expert takes of a batch of ``tokens``; None: all. The causal
        rule drops none: which are dropped depends on the batch and on later tokens."""
        options = self.options
        if options.capacity_factor is None or context.selection == "causal":
            return None
        experts = options.experts + options.no_ops()
        return capacity_tokens(options.capacity_factor, tokens * options.top_k, among=experts)

    def _show_load(self, context: Context, load_E: Tensor, capacity: int | None) -> None:
        experts = self.options.experts
        taken_E = load_E
        if capacity is not None:
            taken_E = torch.cat((load_E[:experts].clamp(max=capacity), load_E[experts:]))
            context.trace.show(self.layer, "dropped", load_E - taken_E)
        context.trace.show(self.layer, "load", taken_E)
        context.trace.count(self.layer, "experts", taken_E[:experts].sum())

    def _show_choice(
        self, context: Context, logits_NE: Tensor, chosen_NE: Tensor, gates_NE: Tensor
    ) -> None:
        """Show the scores of all experts, those chosen and the gates applied, for a detailed trace."""
        shown = {"scores": self.options.scores(logits_NE), "chosen": chosen_NE, "weights": gates_NE}
        for name, value in shown.items():
            context.trace.show(self.layer, name, value)
