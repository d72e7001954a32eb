"""Mixture-of-Recursions (Bae et al. 2025, arXiv 2507.10524): blocks that are applied again and again, to
fewer and fewer tokens. Middle-cycle sharing: the first and the last block are the model's own, the n
between them are applied ``recursions`` times, so layers = 2 + recursions * n. Recursion-wise caching: a
recursion's tokens attend to each other only, and leave keys in a cache of that recursion.

``depth = "expert_choice"`` (section 2.2): before recursion r, from 0, a router scores the tokens that
took part in the last one, g = sigmoid(theta_r^T x); the best of them, (recursions - r) / recursions of a
sequence, go on and become x + g * f(x) (equation 2.1), the others keep x and are done. Top-k looks at
later tokens; the causal rule is g >= 1/2, taught by binary cross-entropy on the router's own score (the
auxiliary loss). ``depth = "token_choice"``: one router says at the start how many recursions a token
takes, i = argmax of g = softmax(theta^T x); it then becomes x + g_i * f^i(x): causal by construction,
with a balance loss that is 1 where every depth is chosen equally often.

As in the authors' configurations the routers are linear and the balance loss weighs 0.1. There f is a
block's whole output, residual included, expert choice's g is multiplied by 0.1 and its auxiliary loss by
0.001: the preset ``published``. By default f is what blocks add, as in `modbench.routers.mod`; under
gates of full size the auxiliary loss has to weigh more, or the causal rule lets too few in.

Where else this reads the paper differently: k is rounded up; the first recursion takes every token under
both rules, gated, and teaches no causal rule; no z-loss; in token choice the gate is applied once, where
a token leaves, as in the authors' code (the paper's equation has one in every recursion).

B sequences, T tokens, K that take part, R sequences that send any, D model width, N recursions.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Counts, Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer, trains, with_upstream_grad
from modbench.routing.force_balance import even_tokens
from modbench.routing.gathered_tokens import GatheredTokens, group_equal_sizes
from modbench.routing.option_checks import check_types, reject_unused
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, Router
from modbench.routing.topk import capacity_tokens, counts_to_host, highest, score


@register_router("mixture_of_recursions")
@dataclass(frozen=True, kw_only=True)
class MixtureOfRecursions(Router):
    """Shared blocks between a first and a last one, applied as often as a token needs."""

    presets: ClassVar[Presets] = {
        "token_choice": {"depth": "token_choice"},
        "published": {"residual": "full", "gate_scale": 0.1, "auxiliary": 0.001},
    }

    recursions: int = 2  #: times that the shared blocks are applied at most
    depth: Literal["expert_choice", "token_choice"] = "expert_choice"
    residual: Literal["delta", "full"] = "delta"  #: f: what blocks add, or all that they give
    gate_scale: float = 1.0  #: all gates are multiplied by it
    auxiliary: float = 0.1  #: expert choice: weight of the causal rule's cross-entropy
    balance: float = 0.1  #: token choice: weight of the balance loss

    def __post_init__(self) -> None:
        check_types(self)
        if self.recursions < 2:
            raise UserError(f"recursions is {self.recursions}; it must be 2 or more")
        for name in ("gate_scale", "auxiliary"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name):g}; it must be above 0")
        if self.balance < 0:
            raise UserError(f"balance is {self.balance:g}; it must be 0 or more")
        reject_unused(
            self,
            ("auxiliary", self.depth == "token_choice", "depth"),
            ("balance", self.depth == "expert_choice", "depth"),
        )

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        shared = model.layers - 2
        if shared < self.recursions or shared % self.recursions:
            fitting = 2 + self.recursions * max(1, round(shared / self.recursions))
            raise UserError(
                f"layers is {model.layers} with {self.recursions} recursions: what lies between the "
                f"first and the last must be a multiple of recursions; set layers to {fitting}, or "
                "recursions to a divisor of layers - 2"
            )
        if layer in (0, model.layers - 1):
            return Block(model, layer)
        return Recursions(self, model) if layer == 1 else Passed()


class Passed(Layer):
    """A depth whose work is done elsewhere."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return x_BTD

    def ledger(self, workload: Workload) -> Ledger:
        return Ledger()


class Recursions(Layer):
    """All recursions, from depth 1 on. Recursion r's blocks are the depths from 1 + r * blocks on, in
    labels, counts and caches."""

    has_data_dependent_shapes = True

    def __init__(self, options: MixtureOfRecursions, model: ModelConfig) -> None:
        super().__init__()
        self.options, self.model = options, model
        each = (model.layers - 2) // options.recursions
        self.blocks = nn.ModuleList(Block(model, 1 + number) for number in range(each))
        self.router = nn.Parameter(torch.empty(options.recursions, model.width))

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, "layers.1.depth_router")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if self.options.depth == "token_choice":
            return self._token_choice(x_BTD, context)
        return self._expert_choice(x_BTD, context)

    def ledger(self, workload: Workload) -> Ledger:
        parts, by_token = [], self.options.depth == "token_choice"
        for r in range(self.options.recursions):
            if r == 0 or not by_token:
                parts.append(
                    matmul(
                        workload,
                        self._first(r),
                        "router",
                        rows=workload.slots,
                        inner=self.model.width,
                        columns=self.options.recursions if by_token else 1,
                        weight_gradient=self.router.requires_grad,
                    )
                )
            for inner in self._loads(workload, r):
                for block in self._at(r):
                    parts.append(block.ledger(inner))
                    inner = with_upstream_grad(inner, block)
            gated = self.router.requires_grad and not by_token
            workload = workload.after(gated or trains(self.blocks))
        return Ledger.sum(parts)

    def nominal_counts(self, workload: Workload) -> Counts:
        if self.options.depth == "token_choice":
            return {}
        return {
            (number, "depth"): self._nominal(workload.lengths, workload.past, r)[0]
            for r in range(1, self.options.recursions)
            for number in self._numbers(r)
        }

    def _expert_choice(self, x_BTD: Tensor, context: Context) -> Tensor:
        active_BT = context.real(x_BTD)
        for r in range(self.options.recursions):
            with component("router", self._first(r)):
                scores_BT = score(x_BTD, self.router[r : r + 1]).squeeze(-1)
            gate_BT = scores_BT.sigmoid() * self.options.gate_scale
            context.trace.show(self._first(r), "gate", gate_BT)
            if r == 0:
                update_BTD = self._update(x_BTD, context, r) * gate_BT[..., None]
                x_BTD = x_BTD + update_BTD.to(x_BTD.dtype)
                continue
            active_BT, counts = self._kept(scores_BT, active_BT, r, context)
            before_BTD = x_BTD
            for entering, update_RKD in self._again(before_BTD, active_BT, counts, r, context):
                gate_RK = entering.gather(gate_BT)
                x_BTD = entering.add_to(x_BTD, update_RKD * gate_RK[..., None])
        return x_BTD

    def _token_choice(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", self._first(0)):
            logits_BTN = score(x_BTD, self.router)
        gates_BTN = logits_BTN.softmax(dim=-1)
        last_BT1 = logits_BTN.argsort(dim=-1, descending=True, stable=True)[..., :1]
        gate_BT1 = gates_BTN.gather(-1, last_BT1) * self.options.gate_scale
        context.trace.show(self._first(0), "gate", gate_BT1.squeeze(-1))
        real_BT = context.real(x_BTD)
        self._balance(gates_BTN, last_BT1.squeeze(-1), real_BT, context)
        added_BTD = self._delta(x_BTD, context, 0).to(x_BTD.dtype)
        for r in range(1, self.options.recursions):
            active_BT = last_BT1.squeeze(-1) >= r
            if real_BT is not None:
                active_BT = active_BT & real_BT
            active_BT = self._even(active_BT, r, context)
            nominal, _ = self._nominal(context.lengths(x_BTD), context.before(x_BTD), r)
            counts = counts_to_host(active_BT.sum(1), nominal)
            context.trace.show(self._first(r), "gate", gate_BT1.squeeze(-1))
            stream_BTD = x_BTD + added_BTD
            for entering, delta_RKD in self._again(stream_BTD, active_BT, counts, r, context):
                added_BTD = entering.add_to(added_BTD, delta_RKD)
        whole_BTD = added_BTD + x_BTD if self.options.residual == "full" else added_BTD
        return x_BTD + (whole_BTD * gate_BT1).to(x_BTD.dtype)

    def _kept(
        self, scores_BT: Tensor, active_BT: Tensor | None, r: int, context: Context
    ) -> tuple[Tensor, list[int]]:
        """Select the tokens of ``active_BT`` (None: all) that continue, and count them per sequence."""
        lengths = context.lengths(scores_BT)
        nominal, _ = self._nominal(lengths, context.before(scores_BT), r)
        predicted_BT = scores_BT >= 0
        if active_BT is not None:
            predicted_BT = predicted_BT & active_BT
        if context.selection == "causal":
            kept_BT = self._even(predicted_BT, r, context)
            return kept_BT, counts_to_host(kept_BT.sum(1), nominal)
        if active_BT is not None:
            context.trace.show(self._first(r), "candidates", active_BT)
        context.trace.show(self._first(r), "predicted", predicted_BT)
        kept_BT = self._even(highest(scores_BT.detach(), list(nominal), active_BT), r, context)
        errors_BT = F.binary_cross_entropy_with_logits(
            scores_BT, kept_BT.to(scores_BT.dtype), reduction="none"
        )
        if active_BT is not None:
            errors_BT = errors_BT.masked_fill(~active_BT, 0.0)
        asked, _ = self._nominal(lengths, [0] * len(lengths), r - 1)
        error = self.options.auxiliary * errors_BT.sum() / sum(asked)
        context.trace.loss(self._first(r), "causal_rule", error)
        return kept_BT, list(nominal)

    def _balance(
        self, gates_BTN: Tensor, last_BT: Tensor, real_BT: Tensor | None, context: Context
    ) -> None:
        chosen_BTN = F.one_hot(last_BT, self.options.recursions)
        if real_BT is not None:
            chosen_BTN = chosen_BTN * real_BT[..., None]
            gates_BTN = gates_BTN.masked_fill(~real_BT[..., None], 0.0)
        load_N = chosen_BTN.sum((0, 1))
        context.trace.show(self._first(0), "depths", load_N)
        if context.selection == "topk" and self.options.balance:
            tokens = sum(context.lengths(last_BT))
            share_N = load_N.to(gates_BTN.dtype) / tokens
            balance = self.options.recursions * (share_N * gates_BTN.sum((0, 1)) / tokens).sum()
            context.trace.loss(self._first(0), "balance", self.options.balance * balance)

    def _again(
        self, x_BTD: Tensor, active_BT: Tensor, counts: Sequence[int], r: int, context: Context
    ) -> Iterator[tuple[GatheredTokens, Tensor]]:
        """Recursion r of the ``active_BT``, one set of sequences after the other, so that nothing is
        computed for padding: who takes part, and what f makes of them (R, K, D)."""
        for number in self._numbers(r):
            context.trace.show(number, "selected", active_BT)
            context.trace.count(number, "depth", counts)
            if context.cache is not None:
                context.trace.count(number, "past", context.cache.lengths(number, context.rows))
        for some in group_equal_sizes(counts):
            entering = GatheredTokens(x_BTD, active_BT, some, context, layer=self._first(r))
            by_token = self.options.depth == "token_choice"
            recur = self._delta if by_token else self._update
            yield entering, recur(entering.x_RKD, entering.context, r)

    def _update(self, x_BTD: Tensor, context: Context, r: int) -> Tensor:
        """f of equation 2.1."""
        delta_BTD = self._delta(x_BTD, context, r)
        return delta_BTD + x_BTD if self.options.residual == "full" else delta_BTD

    def _delta(self, x_BTD: Tensor, context: Context, r: int) -> Tensor:
        """Return the update of the residual stream by recursion r's blocks."""
        added_BTD: Tensor | None = None
        for block in self._at(r):
            delta_BTD = block.delta(x_BTD if added_BTD is None else x_BTD + added_BTD, context)
            added_BTD = delta_BTD if added_BTD is None else added_BTD + delta_BTD
        assert added_BTD is not None
        return added_BTD

    def _loads(self, workload: Workload, r: int) -> list[Workload]:
        """Return the workloads of recursion r, one for each group of sequences with equal counts."""
        if r == 0:
            return [workload]
        new, past = self._nominal(workload.lengths, workload.past, r)
        lengths = workload.counts.get((self._first(r), "depth"), new)
        past = workload.counts.get((self._first(r), "past"), past)
        return [workload.routed(some, past) for some in group_equal_sizes(lengths)]

    def _nominal(
        self, lengths: Sequence[int], past: Sequence[int], r: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """New and earlier tokens of each sequence in recursion r; in token choice, if it is balanced."""
        recursions = self.options.recursions
        return incremental_counts(
            lambda n: capacity_tokens(float(recursions - r), n, among=recursions), lengths, past
        )

    def _even(self, active_BT: Tensor, r: int, context: Context) -> Tensor:
        recursions = self.options.recursions
        return even_tokens(active_BT, context, float(recursions - r), among=recursions)

    def _first(self, r: int) -> int:
        return 1 + r * len(self.blocks)

    def _numbers(self, r: int) -> range:
        """The depths of recursion r."""
        return range(self._first(r), self._first(r + 1))

    def _at(self, r: int) -> list[Block]:
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        return [
            renumbered(block, number) for block, number in zip(blocks, self._numbers(r), strict=True)
        ]


def renumbered(block: Block, layer: int) -> Block:
    """The same block at another depth: its labels and its cache are that depth's, its parameters are the
    block's own and held by it alone."""
    twin = copy.copy(block)
    twin._modules = dict(block._modules)
    for name in ("attention", "feed_forward"):
        part = copy.copy(getattr(block, name))
        part.layer = layer
        setattr(twin, name, part)
    return twin
