"""Mixture-of-Recursions (Bae et al. 2025, arXiv 2507.10524): shared blocks that are applied repeatedly,
to fewer and fewer tokens. Middle-cycle sharing: the first and the last block are not shared, the n
between them are applied ``recursions`` times, so layers = 2 + recursions * n. Recursion-wise caching:
the tokens of a recursion attend to each other only, and their keys are cached by recursion.

``depth = "expert_choice"`` (section 2.2): before recursion r, from 0, a router scores the tokens of the
last one, g = sigmoid(theta_r^T x); the highest (recursions - r) / recursions of a sequence become
x + g * f(x) (equation 2.1), the others keep x and stop. Top-k looks at later tokens; the causal rule is
g >= 1/2, trained by binary cross-entropy on the router's own score (the auxiliary loss).
``depth = "token_choice"``: one router chooses each token's number of recursions at the start,
i = argmax of g = softmax(theta^T x), and the token becomes x + g_i * f^i(x), which is causal. A balance
loss is 1 if all depths are chosen equally often.

As in the authors' configurations, routers are linear and the balance loss has weight 0.1. In the preset
``published``, too, f is a block's whole output, residual included, the g of expert choice is multiplied
by 0.1 and its auxiliary loss by 0.001. By default f is what blocks add, as in `modbench.routers.mod`;
with gates of full size a smaller auxiliary loss makes the causal rule select too few tokens.

Differences from the paper: k is rounded up; the first recursion processes every token in both kinds,
gated, and trains no causal rule; no z-loss; in token choice the gate is applied once, where a token
stops, as in the authors' code (the paper's equation has one in every recursion).

B sequences, T tokens, R recursions, N tokens without padding, D model width; S sequences with a selected
token, K selected tokens of a sequence.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Counts, Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer, trains, with_upstream_grad
from modbench.routing.balance import balance_loss, load_of
from modbench.routing.force_balance import even_tokens
from modbench.routing.gathered_tokens import GatheredTokens, group_equal_sizes
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, Router, check_types
from modbench.routing.topk import capacity_tokens, counts_to_host, highest, nonzero_indices, score
from modbench.typed import NotNegative, Positive


@register_router("mixture_of_recursions")
@dataclass(frozen=True, kw_only=True)
class MixtureOfRecursions(Router):
    """Shared blocks between a first and a last one, applied as often as a token needs."""

    presets: ClassVar[Presets] = {
        "token_choice": {"depth": "token_choice"},
        "published": {"residual": "full", "gate_scale": 0.1, "auxiliary": 0.001},
    }

    recursions: Annotated[int, Ge(2)] = 2  #: most times that the shared blocks are applied
    #: each recursion selects tokens, or each token chooses its number of recursions
    depth: Literal["expert_choice", "token_choice"] = "expert_choice"
    #: the gate multiplies what blocks add, or their whole output
    residual: Literal["delta", "full"] = "delta"
    gate_scale: Positive = 1.0  #: all gates are multiplied by it
    auxiliary: Positive = 0.1  #: expert choice: weight of the causal rule's cross-entropy
    balance: NotNegative = 0.1  #: token choice: weight of the balance loss

    def __post_init__(self) -> None:
        check_types(self)

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        shared = model.layers - 2
        if shared < self.recursions or shared % self.recursions:
            fitting = 2 + self.recursions * max(1, round(shared / self.recursions))
            raise UserError(
                f"layers is {model.layers} with {self.recursions} recursions, which don't divide "
                f"the layers between the first and the last; set layers to {fitting}, or recursions to "
                "a divisor of layers - 2"
            )
        if layer in (0, model.layers - 1):
            return Block(model, layer)
        return Recursions(self, model) if layer == 1 else Passed()


class Passed(Layer):
    """A depth that `Recursions` computes."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return x_BTD

    def ledger(self, workload: Workload) -> Ledger:
        return Ledger()


class Recursions(Layer):
    """All recursions, from depth 1 on. In labels, counts and caches, the blocks of recursion r are the
    depths from 1 + r * blocks on."""

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
        parts = []
        by_token = self.options.depth == "token_choice"
        for r in range(self.options.recursions):
            if r == 0 or not by_token:
                scored = matmul(
                    workload,
                    self._depths(r)[0],
                    "router",
                    rows=workload.slots,
                    inner=self.model.width,
                    columns=self.options.recursions if by_token else 1,
                    weight_gradient=self.router.requires_grad,
                )
                parts.append(scored)
            for inner in self._routed(workload, r):
                for block in self._blocks(r):
                    parts.append(block.ledger(inner))
                    inner = with_upstream_grad(inner, block)
            gated = self.router.requires_grad and not by_token
            workload = workload.after(gated or trains(self.blocks))
        return Ledger.sum(parts)

    def nominal_counts(self, workload: Workload) -> Counts:
        return {} if self.options.depth == "token_choice" else self.expected_counts(workload)

    def expected_counts(self, workload: Workload) -> Counts:
        return {
            (depth, "depth"): self._nominal(workload.lengths, workload.past, r)[0]
            for r in range(1, self.options.recursions)
            for depth in self._depths(r)
        }

    def _expert_choice(self, x_BTD: Tensor, context: Context) -> Tensor:
        real_BT = context.real(x_BTD)
        active_BT = x_BTD.new_ones(x_BTD.shape[:2], dtype=torch.bool) if real_BT is None else real_BT
        for r in range(self.options.recursions):
            with component("router", self._depths(r)[0]):
                scores_BT = score(x_BTD, self.router[r : r + 1]).squeeze(-1)
            gate_BT = scores_BT.sigmoid() * self.options.gate_scale
            context.trace.show(self._depths(r)[0], "gate", gate_BT)
            if r == 0:
                f_BTD = self._f(self._delta(x_BTD, context, r), x_BTD)
                x_BTD = x_BTD + (f_BTD * gate_BT[..., None]).to(x_BTD.dtype)
                continue
            active_BT = self._continuing(scores_BT, active_BT, r, context)
            out_BTD = x_BTD
            for gathered in self._gathered(x_BTD, active_BT, r, context):
                delta_SKD = self._delta(gathered.x_RKD, gathered.context, r)
                f_SKD = self._f(delta_SKD, gathered.x_RKD)
                out_BTD = gathered.add_to(out_BTD, f_SKD * gathered.gather(gate_BT)[..., None])
            x_BTD = out_BTD
        return x_BTD

    def _continuing(self, scores_BT: Tensor, active_BT: Tensor, r: int, context: Context) -> Tensor:
        """Select the tokens of ``active_BT`` that continue, and train the causal rule."""
        predicted_BT = (scores_BT >= 0) & active_BT
        if context.selection == "causal":
            return predicted_BT
        depth = self._depths(r)[0]
        lengths = context.lengths(scores_BT)
        candidates, kept = (self._nominal(lengths, [0] * len(lengths), n)[0] for n in (r - 1, r))
        kept_BT = highest(scores_BT.detach(), list(kept), active_BT)
        errors_BT = F.binary_cross_entropy_with_logits(
            scores_BT, kept_BT.to(scores_BT.dtype), reduction="none"
        )
        error = errors_BT.masked_fill(~active_BT, 0.0).sum() / sum(candidates)
        context.trace.loss(depth, "causal_rule", self.options.auxiliary * error)
        context.trace.show(depth, "candidates", active_BT)
        context.trace.show(depth, "predicted", predicted_BT)
        return kept_BT

    def _token_choice(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", 1):
            logits_BTR = score(x_BTD, self.router)
        gates_BTR = logits_BTR.softmax(dim=-1)
        last_BT1 = logits_BTR.argsort(dim=-1, descending=True, stable=True)[..., :1]
        self._balance(gates_BTR, last_BT1, context)
        gate_BT1 = gates_BTR.gather(-1, last_BT1) * self.options.gate_scale
        context.trace.show(1, "gate", gate_BT1.squeeze(-1))
        added_BTD = self._delta(x_BTD, context, 0)
        for r in range(1, self.options.recursions):
            active_BT = last_BT1.squeeze(-1) >= r
            context.trace.show(self._depths(r)[0], "gate", gate_BT1.squeeze(-1))
            for gathered in self._gathered(x_BTD + added_BTD, active_BT, r, context):
                delta_SKD = self._delta(gathered.x_RKD, gathered.context, r)
                added_BTD = gathered.add_to(added_BTD, delta_SKD)
        return x_BTD + (self._f(added_BTD, x_BTD) * gate_BT1).to(x_BTD.dtype)

    def _balance(self, gates_BTR: Tensor, last_BT1: Tensor, context: Context) -> None:
        gates_NR, last_N1 = gates_BTR.flatten(0, 1), last_BT1.flatten(0, 1)
        real_BT = context.real(last_BT1)
        if real_BT is not None:
            real_N = nonzero_indices(real_BT, sum(context.lengths(last_BT1)))
            gates_NR, last_N1 = (t.index_select(0, real_N) for t in (gates_NR, last_N1))
        context.trace.show(1, "depths", load_of(last_N1, self.options.recursions))
        if context.selection == "topk" and self.options.balance:
            balance = self.options.balance * balance_loss(last_N1, gates_NR)
            context.trace.loss(1, "balance", balance)

    def _gathered(
        self, x_BTD: Tensor, active_BT: Tensor, r: int, context: Context
    ) -> Iterator[GatheredTokens]:
        """Yield the tokens of recursion r by sequences of equal counts, so that nothing is computed for
        padding."""
        recursions = self.options.recursions
        real_BT = context.real(x_BTD)
        active_BT = even_tokens(active_BT, context, float(recursions - r), among=recursions)
        if real_BT is not None:
            active_BT = active_BT & real_BT
        nominal, _ = self._nominal(context.lengths(x_BTD), context.before(x_BTD), r)
        counts = counts_to_host(active_BT.sum(1), nominal)
        for depth in self._depths(r):
            context.trace.show(depth, "selected", active_BT)
            context.trace.count(depth, "depth", counts)
            if context.cache is not None:
                context.trace.count(depth, "past", context.cache.lengths(depth, context.rows))
        for some in group_equal_sizes(counts):
            yield GatheredTokens(x_BTD, active_BT, some, context, layer=self._depths(r)[0])

    def _f(self, delta_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        return delta_BTD + x_BTD if self.options.residual == "full" else delta_BTD

    def _delta(self, x_BTD: Tensor, context: Context, r: int) -> Tensor:
        """Return the update of the residual stream by recursion r's blocks."""
        added_BTD = torch.zeros_like(x_BTD)
        for block in self._blocks(r):
            added_BTD = added_BTD + block.delta(x_BTD + added_BTD, context)
        return added_BTD

    def _routed(self, workload: Workload, r: int) -> list[Workload]:
        """Return the workloads of recursion r, one for each group of sequences with equal counts."""
        if r == 0:
            return [workload]
        new, past = self._nominal(workload.lengths, workload.past, r)
        lengths = workload.counts.get((self._depths(r)[0], "depth"), new)
        past = workload.counts.get((self._depths(r)[0], "past"), past)
        return [workload.routed(some, past) for some in group_equal_sizes(lengths)]

    def _nominal(
        self, lengths: Sequence[int], past: Sequence[int], r: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """New and earlier tokens of each sequence in recursion r; in token choice, if it is balanced."""
        recursions = self.options.recursions
        return incremental_counts(
            lambda n: capacity_tokens(float(recursions - r), n, among=recursions), lengths, past
        )

    def _depths(self, r: int) -> range:
        each = len(self.blocks)
        return range(1 + r * each, 1 + (r + 1) * each)

    def _blocks(self, r: int) -> Iterator[Block]:
        """Yield the blocks under the depths of recursion r, which are their labels and caches. Their
        parameters are those of ``self.blocks``."""
        for shared, depth in zip(self.blocks, self._depths(r), strict=True):
            block: Block = copy(shared)  # type: ignore[assignment]
            block._modules = dict(shared._modules)
            block.attention, block.feed_forward = copy(block.attention), copy(block.feed_forward)
            block.attention.layer = block.feed_forward.layer = depth  # type: ignore[assignment]
            yield block
