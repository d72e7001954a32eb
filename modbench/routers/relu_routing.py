"""ReMoE (Wang et al. 2024, arXiv 2412.14711): gates are R(x) = ReLU(x W) (section 3.2), and a token
meets the experts whose gate is above 0, however many. No token is compared with another, so training and
inference route alike, causally, and the output is continuous in the router's weights.

How many experts a token meets is steered by an L1 loss on the gates, lambda / (L T) * sum f_e R(x_t)_e
(equations 6 and 10), whose weights f_e = E / (k T) * (tokens of expert e) also balance the load (11).
After each step lambda is multiplied by alpha^sign((1 - k/E) - S), S being the share of gates that are 0
(7 and 8). lambda starts at 1e-8 and alpha is 1.2: for about the first hundred steps more than k experts
are at work (section 3.5), and are counted.

Where this reads it differently: each layer keeps a lambda of its own, moved by its own S, where the
paper has one for all layers; here every layer comes to k on average. lambda moves after each training
forward pass.

B sequences, T tokens, S slots, padding included, D model width, E experts.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload, component, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.expert_bank import ExpertBank, dispatched, expert_width
from modbench.routing.force_balance import even_gates
from modbench.routing.option_checks import check_types
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, Router
from modbench.routing.topk import counts_to_host, evenly, score


@register_router("relu_routing")
@dataclass(frozen=True, kw_only=True)
class ReluRouting(Router):
    """Every block's MLP is a bank of experts, gated by a ReLU."""

    presets: ClassVar[Presets] = {
        "one_expert": {"active_experts": 1},
        "fine_grained": {"experts": 64, "active_experts": 8},
    }

    experts: int = 8
    active_experts: int = 2  #: k, experts per token that the loss steers to
    expert_width: int | None = None  #: None: the dense MLP's width / active_experts
    start_coefficient: float = 1e-8  #: lambda before training
    multiplier: float = 1.2  #: alpha, by which lambda grows or falls after each forward pass

    def __post_init__(self) -> None:
        check_types(self)
        if self.experts < 1:
            raise UserError(f"experts is {self.experts}; it must be 1 or more")
        if not 1 <= self.active_experts <= self.experts:
            raise UserError(
                f"active_experts is {self.active_experts} of {self.experts} experts; it must lie "
                "between 1 and experts"
            )
        if self.expert_width is not None and self.expert_width < 1:
            raise UserError(f"expert_width is {self.expert_width}; it must be 1 or more")
        if self.start_coefficient <= 0:
            raise UserError(f"start_coefficient is {self.start_coefficient}; it must be above 0")
        if self.multiplier <= 1:
            raise UserError(f"multiplier is {self.multiplier:g}; it must be above 1")

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer, ReluExperts(self, model, layer))


class ReluExperts(FeedForward):
    """Experts that are at work where their gate is above 0."""

    has_data_dependent_shapes = True
    exponent: Tensor

    def __init__(self, options: ReluRouting, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.options, self.model, self.layer = options, model, layer
        width = expert_width(model, options.expert_width, options.active_experts)
        self.bank = ExpertBank(model, layer, experts=options.experts, width=width)
        self.router = nn.Parameter(torch.empty(options.experts, model.width))
        # lambda = start * alpha^exponent: whole numbers neither underflow nor change with the dtype.
        self.register_buffer("exponent", torch.zeros((), dtype=torch.int64))

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"layers.{self.layer}.router")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", self.layer):
            gates_SE = score(x_BTD, self.router).relu().flatten(0, 1)
        real_BT = context.real(x_BTD)
        if real_BT is not None:
            gates_SE = gates_SE.masked_fill(~real_BT.flatten()[:, None], 0.0)
        before, k = sum(context.before(x_BTD)), self.options.active_experts
        active_SE = even_gates(gates_SE > 0, context, before, k)
        load_E = active_SE.sum(0)
        tokens = sum(context.lengths(x_BTD))
        counts = counts_to_host(load_E, evenly(self._nominal(tokens), self.options.experts))
        context.trace.show(self.layer, "load", load_E)
        context.trace.show(self.layer, "taken", active_SE.sum(1))
        real_S = None if real_BT is None else real_BT.flatten()
        context.trace.show_choice(self.layer, gates_SE, active_SE, real_S, gates_SE)
        context.trace.count(self.layer, "experts", [sum(counts)])
        if context.selection == "topk":
            self._steer(gates_SE, load_E, tokens, context)
        return dispatched(self.bank, x_BTD, gates_SE, active_SE, counts)

    def coefficient(self) -> Tensor:
        """lambda, as the next forward pass finds it."""
        grown = self.options.multiplier ** self.exponent.to(torch.float64)
        return (self.options.start_coefficient * grown).to(torch.float32)

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
        nominal = self._nominal(workload.tokens)
        (assignments,) = workload.counts.get((self.layer, "experts"), (nominal,))
        return router + self.bank.ledger(workload, assignments)

    def active_parameters(self) -> int:
        return self.router.numel() + self.bank.parameters_of(self.options.active_experts)

    def _nominal(self, tokens: int) -> int:
        """Return the nominal assignments of ``tokens`` tokens."""
        return tokens * self.options.active_experts

    def _steer(self, gates_SE: Tensor, load_E: Tensor, tokens: int, context: Context) -> None:
        """The loss, and what becomes of its coefficient. A pass that is run again finds the coefficient
        that it had, though it has moved in between."""
        experts, active = self.options.experts, self.options.active_experts
        if not context.trace.repeated:
            context.trace.show(self.layer, "coefficient", self.coefficient())
        coefficient = context.trace.tensors[self.layer, "coefficient"].to(gates_SE.dtype)
        frequency_E = load_E.to(gates_SE.dtype) * (experts / (active * tokens))
        loss = (frequency_E * gates_SE.sum(0)).sum() / (self.model.layers * tokens)
        context.trace.loss(self.layer, "sparsity", coefficient * loss)
        if self.training and not context.trace.repeated:
            # S is below its target where more gates are above 0 than there should be.
            self.exponent += (load_E.sum() - self._nominal(tokens)).sign()
