"""Token choice: each token goes to the k experts that score it highest.

Shazeer et al. 2017 (top-k gating), Fedus et al. 2021 (Switch; balance loss, equations 4 to 6), Zoph et
al. 2022 (z-loss, equation 5), Jiang et al. 2024 (Mixtral; renormalised gates). Dropless: an expert takes
whatever comes. Where this reads them differently: the balance loss counts assignments, not tokens, and
so is 1 at uniform load whatever k.

B sequences, T tokens, N tokens that are no padding, D model width, E experts, K chosen.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.flops.component import component
from modbench.flops.ledger import Ledger, Load, matmul, stretch
from modbench.model.block import Block, FeedForward
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.experts import ExpertBank, expert_width
from modbench.model.initial import normal_
from modbench.model.registry import register_router
from modbench.model.router import Layer, Presets, Router
from modbench.model.scores import evenly, known, score


@dataclass(frozen=True, kw_only=True)
class TokenChoiceOptions(Router):
    """The options of every scheme in which tokens choose experts."""

    experts: int = 8
    top_k: int = 2  #: experts per token
    expert_width: int | None = None  #: None: the dense MLP's width / top_k, for equal active FLOPs
    renormalise: bool = True  #: gates of the chosen experts sum to 1
    balance: float = 0.01  #: weight of the balance loss
    z_loss: float = 0.0  #: weight of the mean squared log-sum-exp of the router's logits

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise UserError(f"experts is {self.experts}; it must be 1 or more")
        if not 1 <= self.top_k <= self.experts:
            raise UserError(
                f"top_k is {self.top_k} of {self.experts} experts; it must lie between 1 and experts"
            )
        if self.top_k == 1 and self.renormalise:
            raise UserError(
                "top_k 1 with renormalise true makes every gate 1 and leaves the router without "
                "a gradient; set renormalise = false"
            )
        if self.expert_width is not None and self.expert_width < 1:
            raise UserError(f"expert_width is {self.expert_width}; it must be 1 or more")
        for name in ("balance", "z_loss"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@register_router("token_choice")
@dataclass(frozen=True, kw_only=True)
class TokenChoice(TokenChoiceOptions):
    """Every block's MLP is a bank of experts of which each token chooses ``top_k``."""

    presets: ClassVar[Presets] = {
        "one_expert": {"top_k": 1, "renormalise": False},
        "fine_grained": {"experts": 64, "top_k": 8},
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
        width = expert_width(model, options.expert_width, options.top_k)
        self.bank = ExpertBank(model, layer, experts=options.experts, width=width)
        self.router = nn.Parameter(torch.empty(options.experts + no_ops, model.width))

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"layers.{self.layer}.router")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_SD = x_BTD.flatten(0, 1)
        real_BT = context.real(x_BTD)
        # Padding enters no router: it is left out here and comes back as zeros.
        slots_N = None if real_BT is None else real_BT.flatten().nonzero().squeeze(1)
        x_ND = x_SD if slots_N is None else x_SD.index_select(0, slots_N)

        with component("router", self.layer):
            logits_NE = score(x_ND, self.router)
        probabilities_NE = logits_NE.softmax(dim=-1)
        experts_NK = logits_NE.argsort(dim=-1, descending=True, stable=True)[:, : self.options.top_k]
        gates_NK = probabilities_NE.gather(1, experts_NK)
        if self.options.renormalise:
            gates_NK = gates_NK / gates_NK.sum(dim=-1, keepdim=True)
        self._report(context, logits_NE, probabilities_NE, experts_NK)

        order = experts_NK.flatten().argsort(stable=True)
        load_E = F.one_hot(experts_NK.flatten(), self.router.shape[0]).sum(0)
        nominal = self._nominal(len(x_ND), sum(context.before(x_BTD)))
        counts = known(load_E[: self.options.experts], evenly(nominal, self.options.experts))
        order = order[: sum(counts)]  # the no-op experts come last and are not computed
        rows_N = order // self.options.top_k
        y_ND = self.bank(x_ND.index_select(0, rows_N), counts)
        weighted_ND = y_ND * gates_NK.flatten().index_select(0, order)[:, None]
        if slots_N is not None:
            rows_N = slots_N.index_select(0, rows_N)
        out_SD = torch.zeros_like(x_SD, dtype=weighted_ND.dtype).index_add(0, rows_N, weighted_ND)
        return out_SD.to(x_BTD.dtype).view_as(x_BTD)

    def ledger(self, load: Load) -> Ledger:
        router = matmul(
            load,
            self.layer,
            "router",
            rows=load.tokens,
            inner=self.model.width,
            columns=self.options.experts + self.no_ops,
            weight_gradient=self.router.requires_grad,
        )
        nominal = self._nominal(load.tokens, sum(load.past))
        (assignments,) = load.counts.get((self.layer, "experts"), (nominal,))
        return router + self.bank.ledger(load, assignments)

    def _nominal(self, tokens: int, past: int) -> int:
        """Assignments to experts that compute, of ``tokens`` new tokens that spread evenly."""
        real, everyone = self.options.experts, self.options.experts + self.no_ops
        (new,), _ = stretch(lambda n: n * self.options.top_k * real // everyone, [tokens], [past])
        return new

    def active_parameters(self) -> int:
        return self.router.numel() + self.bank.parameters_of(self.options.top_k)

    def _report(
        self, context: Context, logits_NE: Tensor, probabilities_NE: Tensor, experts_NK: Tensor
    ) -> None:
        everyone = self.router.shape[0]
        load_E = F.one_hot(experts_NK.flatten(), everyone).sum(0)
        context.trace.show(self.layer, "load", load_E)
        context.trace.count(self.layer, "experts", load_E[: self.options.experts].sum())
        if self.options.balance:
            share_E = load_E / load_E.sum().clamp(min=1)
            balance = everyone * (share_E * probabilities_NE.mean(0)).sum()
            context.trace.loss(self.layer, "balance", self.options.balance * balance)
        if self.options.z_loss:
            z_loss = logits_NE.logsumexp(dim=-1).square().mean()
            context.trace.loss(self.layer, "z_loss", self.options.z_loss * z_loss)
