"""DepthRouter: the base class of schemes in which each routed block processes some tokens of a sequence.

B sequences, T tokens, D model width; R sequences with a selected token, K most tokens selected in one.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Counts, Ledger, Workload, incremental_counts
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer, trains
from modbench.model.mlp import MLP
from modbench.routing.baselines import Control
from modbench.routing.ema import EMA
from modbench.routing.feed_forward import as_feed_forward
from modbench.routing.force_balance import even_tokens
from modbench.routing.gathered_tokens import GatheredTokens, group_equal_sizes
from modbench.routing.hook_checks import checked_tensor, expect_losses
from modbench.routing.predictor import Predictor
from modbench.routing.router import Router, check_types, overrides
from modbench.routing.scorer import (
    LinearScorer,
    has_closed_form,
    run_scorer,
    scorer_ledger,
    scorer_of,
    update_scorer,
)
from modbench.routing.tokens import Noise, Tokens, tokens_of
from modbench.routing.topk import capacity_tokens, counts_to_host, highest, nonzero_indices
from modbench.typed import Count, Natural, Part, Positive, Share, check_type


class DepthScheme(Router):
    """Each routed block processes a part of a sequence's tokens: the hooks that `DepthRouted` calls, and
    the values of what is no option of a scheme."""

    every: int
    offset: int | None = None
    first_dense: int = 0
    last_dense: int = 0
    causal: Literal["predictor", "aux_bce", "ema_threshold"] = "predictor"
    auxiliary: float = 0.01
    threshold_decay: float = 0.95

    #: True if the gate also multiplies the residual stream: x' = x + gate * (x + block(x)).
    adds_residual: ClassVar[bool] = False

    @property
    @abstractmethod
    def capacity(self) -> float:
        """Share of a sequence's tokens that a routed block processes."""

    def scorer(self, model: ModelConfig) -> nn.Module | None:
        """Return the module that scores tokens, (B, T, D) to (B, T); its FLOPs are counted. None: no
        scores, for a scheme that overrides `selected`; its gate is 1."""
        return LinearScorer(model.width, None, stream="depth_router")

    def capacity_of(self, model: ModelConfig, layer: int) -> float:
        """Return the capacity of the block at depth ``layer``, by default the option ``capacity``. In a
        layer's other hooks, ``self.capacity`` is what this one returned."""
        return self.capacity

    def gate(self, scores_BT: Tensor) -> Tensor:
        """Return the factor on the block's output, (B, T)."""
        return scores_BT

    def feed_forward(self, model: ModelConfig, layer: int) -> nn.Module:
        """Return the feed-forward part of the block at depth ``layer``: a dense MLP, experts such as
        ``TokenChoice().feed_forward(model, layer)``, or any module from (B, T, D) to (B, T, D)."""
        return MLP(model, layer)

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        """Return the tokens that the block processes, (B, T) bool: in training the top-k. Override it
        where their number depends on the scores, or a rule of your own predicts; it then decides in both
        cases, and no causal rule is built. Padding that it selects is left out. Raise a `UserError` if
        the default is called by an override where ``tokens.causal``."""
        if tokens.causal:
            raise UserError(
                "selected: top-k may not predict, and where selected is overridden no causal rule is "
                "built; where tokens.causal, decide by the token's own score"
            )
        counts = [capacity_tokens(self.capacity, n) for n in tokens.lengths]
        return highest(scores_BT.detach(), counts, tokens.real)

    def losses(self, scores_N: Tensor, selected_N: Tensor, tokens: Tokens) -> Mapping[str, Tensor]:
        """Return auxiliary losses by name, weighted, of the N tokens of a training pass, without
        padding. They must give the scorer a gradient."""
        return {}

    def update(
        self, scorer: nn.Module | None, scores_N: Tensor, selected_N: Tensor, tokens: Tokens
    ) -> None:
        """Change the buffers of ``scorer`` after a training pass of N tokens, without padding;
        ``tokens.state`` has their values before it."""

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        routed = [number for number in range(model.layers) if self.routes(number, model.layers)]
        if not routed:
            raise UserError(
                f"no block of {model.layers} is routed with every {self.every}, offset {self.offset}, "
                f"first_dense {self.first_dense} and last_dense {self.last_dense}; leave room for one"
            )
        of = _of_layer(self, model, layer) if layer in routed else self
        block = Block(model, layer, as_feed_forward(of, of.feed_forward(model, layer)))
        return DepthRouted(self, model, layer, block) if layer in routed else block

    def routes(self, layer: int, layers: int) -> bool:
        """Return True if the block at depth ``layer`` of ``layers`` is routed."""
        which = self.every - 1 if self.offset is None else self.offset
        dense = layer < self.first_dense or layer >= layers - self.last_dense
        return layer % self.every == which and not dense

    def applied_gate(self, scores_BT: Tensor) -> Tensor:
        """Return `gate`; a scheme that has an option named ``gate`` overrides this method instead."""
        return self.gate(scores_BT)


@dataclass(frozen=True, kw_only=True)
class DepthRouter(DepthScheme):
    """In each routed block a part of a sequence's tokens is processed; the others skip the block.

    In training, the ceil(capacity * T) tokens that score highest are selected: x' = x + gate *
    block(x) for them, x' = x for the rest (Raposo et al. 2024, equation 1). A prediction may not
    compare a token with later ones, so another rule selects there: ``predictor``, a small MLP that
    learns from the top-k selection; ``aux_bce``, the scores themselves, trained in the same way;
    ``ema_threshold``, a moving average of the lowest score selected. A scheme that overrides
    `selected` decides alone, in training too; ``capacity`` is then the share of tokens that nominal
    FLOPs assume. `capacity_of` gives each layer a capacity of its own. Raise a `UserError` for an option
    out of range or without effect.
    """

    capacity: Part = 0.125  #: share of a sequence's tokens that a routed block processes
    every: Count = 2  #: route every n-th block; the others stay dense
    offset: int | None = None  #: which block of each group of ``every``, from 0; None: the last
    first_dense: Natural = 0  #: number of initial blocks that stay dense
    last_dense: Natural = 0  #: number of final blocks that stay dense
    #: the causal rule: the logits of a small MLP or the scores themselves, selected if 0 or above, or an
    #: average of the lowest selected score as threshold
    causal: Literal["predictor", "aux_bce", "ema_threshold"] = "predictor"
    auxiliary: Positive = 0.01  #: weight of the causal rule's cross-entropy
    threshold_decay: Share = 0.95  #: decay of the moving average of ``ema_threshold``

    def __post_init__(self) -> None:
        check_types(self)
        if self.offset is not None and not 0 <= self.offset < self.every:
            raise UserError(
                f"offset is {self.offset} with every {self.every}; it must lie between 0 and every - 1"
            )
        if overrides(self, "selected", DepthScheme):
            for name in ("causal", "auxiliary", "threshold_decay"):
                if getattr(self, name) != getattr(DepthRouter, name):
                    raise UserError(f"option '{name}' has no effect: selected decides; leave it out")


class DepthRouted(Layer):
    """A block that processes the tokens that ``options`` selects."""

    def __init__(self, options: DepthScheme, model: ModelConfig, layer: int, block: Block) -> None:
        super().__init__()
        options = self.options = _of_layer(options, model, layer)
        self.model = model
        self.layer = layer
        self.block = block
        self.router = scorer_of(options, model, layer)
        self.noise = Noise(layer)
        self.decides = overrides(options, "selected", DepthScheme)
        if self.router is None and not self.decides:
            raise UserError(
                f"router '{options.name}': scorer returns None and selected is not overridden; without "
                "scores, selected must choose the tokens"
            )
        learned = self.control is None and not self.decides
        self.predictor = None
        if learned and options.causal == "predictor":
            self.predictor = Predictor(model, layer)
        self.threshold = None
        if learned and options.causal == "ema_threshold":
            self.threshold = EMA(torch.zeros(()), options.threshold_decay)
        elif self.control is not None and self.control.cut is None:
            start = torch.tensor(1 - options.capacity)  # if all tokens came equally often
            self.threshold = EMA(start, options.threshold_decay)

    @property
    def adds_residual(self) -> bool:
        """True if the gate also multiplies the residual stream (for the audit's probe 6)."""
        return self.options.adds_residual

    @property
    def control(self) -> Control | None:
        """The scorer if its scores are not learned and make no gate."""
        return self.router if isinstance(self.router, Control) else None

    @property
    def has_data_dependent_shapes(self) -> bool:  # type: ignore[override]
        return self.decides or self.block.has_data_dependent_shapes

    @property
    def has_closed_form(self) -> bool:
        return has_closed_form(self.router) or self.control is not None

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        tokens = tokens_of(x_BTD, context, self.noise, scorer=None if self.control else self.router)
        scores_BT = self._scores(x_BTD, tokens, context)
        if context.selection == "topk" and not self.decides:
            selected_BT, lengths = self._topk(x_BTD, scores_BT, tokens, context)
        else:
            selected_BT, lengths = self._by_threshold(x_BTD, scores_BT, tokens, context)
        gate_BT = self._gate(scores_BT)
        context.trace.show(self.layer, "selected", selected_BT)
        context.trace.show(self.layer, "gate", gate_BT)
        context.trace.count(self.layer, "depth", lengths)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        if context.selection == "topk":
            self._learn(x_BTD, scores_BT, selected_BT, context)
        out_BTD = x_BTD
        for counts in self._groups(lengths):
            gathered = GatheredTokens(x_BTD, selected_BT, counts, context, layer=self.layer)
            out_BTD = self._processed(out_BTD, gathered, gate_BT, context)
        return out_BTD

    def _processed(
        self, x_BTD: Tensor, gathered: GatheredTokens, gate_BT: Tensor, context: Context
    ) -> Tensor:
        """Return ``x_BTD`` with the block's update of the ``gathered`` tokens, times their gates."""
        delta_RKD = self.block.delta(gathered.x_RKD, gathered.context)
        if self.options.adds_residual:
            delta_RKD = delta_RKD + gathered.x_RKD
        if self._gated():
            delta_RKD = delta_RKD * gathered.gather(gate_BT)[..., None]
        return gathered.add_to(x_BTD, delta_RKD)

    def ledger(self, workload: Workload) -> Ledger:
        lengths, past = self._routed(workload)
        scored = workload
        if self.decides and not any(lengths) and not overrides(self.options, "losses", DepthScheme):
            scored = replace(workload, phase="forward")  # no gate is applied: no gradient arrives
        parts = []
        if self.control is None:
            parts.append(scorer_ledger(self.router, scored, self.layer, self.model.width))
        if self.predictor is not None:
            parts.append(self.predictor.ledger(workload))
        parts += [self.block.ledger(workload.routed(some, past)) for some in self._groups(lengths)]
        return Ledger.sum(parts)

    def nominal_counts(self, workload: Workload) -> Counts:
        if self.decides:
            return {}
        new, _ = incremental_counts(self._share, workload.lengths, workload.past)
        return {(self.layer, "depth"): new} | dict(self.block.nominal_counts(workload.routed(new)))

    def expected_counts(self, workload: Workload) -> Counts:
        new, _ = incremental_counts(self._share, workload.lengths, workload.past)
        return {(self.layer, "depth"): new} | dict(self.block.expected_counts(workload.routed(new)))

    def takes_gradient(self, workload: Workload) -> bool:
        # The predictor learns from a loss of its own.
        learns = trains(self.block) or (self.router is not None and trains(self.router))
        return learns and (not self.decides or any(self._routed(workload)[0]))

    def _scores(self, x_BTD: Tensor, tokens: Tokens, context: Context) -> Tensor:
        """Return the scores (B, T); zeros if there is no scorer."""
        if self.router is None:
            wide = torch.promote_types(x_BTD.dtype, torch.float32)
            return x_BTD.new_zeros(x_BTD.shape[:2], dtype=wide)
        if self.control is not None:
            return self.control(x_BTD, context)  # type: ignore[no-any-return]
        state = tokens.state if context.trace.repeated else None
        scores_BT = run_scorer(self.router, x_BTD, self.layer, state)
        return checked_tensor(self.options, "scorer", scores_BT, x_BTD.shape[:2])

    def _causal_scores(self, x_BTD: Tensor, scores_BT: Tensor) -> Tensor:
        return scores_BT if self.predictor is None else self.predictor(x_BTD)

    def _cut(self) -> float | Tensor:
        """Return the threshold of the causal rule; a logit of 0 is a probability of one half."""
        if self.threshold is not None:
            return self.threshold.value
        return 0.0 if self.control is None or self.control.cut is None else self.control.cut

    def _gated(self) -> bool:
        return self.router is not None and self.control is None

    def _gate(self, scores_BT: Tensor) -> Tensor:
        if not self._gated():
            return torch.ones_like(scores_BT)
        gate_BT = self.options.applied_gate(scores_BT)
        return checked_tensor(self.options, "gate", gate_BT, scores_BT.shape)

    def _by_threshold(
        self, x_BTD: Tensor, scores_BT: Tensor, tokens: Tokens, context: Context
    ) -> tuple[Tensor, Sequence[int]]:
        """Select by the scheme's own rule or the causal one. Return the tokens selected, without
        padding, and their number per sequence."""
        given_BT = context.replaced.get((self.layer, "depth"))
        if given_BT is not None:
            selected_BT = given_BT
        elif self.decides:
            selected_BT = self.options.selected(scores_BT, tokens)
            checked_tensor(self.options, "selected", selected_BT, scores_BT.shape, "bool")
        else:
            selected_BT = self._causal_scores(x_BTD, scores_BT) >= self._cut()
        selected_BT = even_tokens(selected_BT, context, self.options.capacity)
        if tokens.real is not None:
            selected_BT = selected_BT & tokens.real
        nominal, _ = incremental_counts(self._share, tokens.lengths, tokens.past)
        return selected_BT, counts_to_host(selected_BT.sum(1), nominal)

    def _topk(
        self, x_BTD: Tensor, scores_BT: Tensor, tokens: Tokens, context: Context
    ) -> tuple[Tensor, Sequence[int]]:
        """Select by the training rule, and train the causal one."""
        causal_BT = self._causal_scores(x_BTD, scores_BT)
        lengths = [self._share(n) for n in tokens.lengths]
        selected_BT = highest(scores_BT.detach(), lengths, tokens.real)
        selected_BT = even_tokens(selected_BT, context, self.options.capacity)
        if self.threshold is not None:
            if self.training and not context.trace.repeated:
                lowest_B = scores_BT.detach().masked_fill(~selected_BT, torch.inf).amin(1)
                if 0 in lengths:  # a sequence of padding alone
                    lowest_B = lowest_B[[length > 0 for length in lengths]]
                self.threshold.update(lowest_B.mean())
        elif self.control is None:
            errors_BT = F.binary_cross_entropy_with_logits(
                causal_BT, selected_BT.to(causal_BT.dtype), reduction="none"
            )
            error = errors_BT.mean() if tokens.real is None else errors_BT[tokens.real].mean()
            context.trace.loss(self.layer, "causal_rule", self.options.auxiliary * error)
        context.trace.show(self.layer, "predicted", causal_BT >= self._cut())
        return selected_BT, lengths

    def _learn(self, x_BTD: Tensor, scores_BT: Tensor, selected_BT: Tensor, context: Context) -> None:
        """Report the scheme's losses and let it update its state."""
        if not any(overrides(self.options, hook, DepthScheme) for hook in ("losses", "update")):
            return
        scores_N = scores_BT.flatten()
        selected_N = selected_BT.flatten()
        slots_N = None
        real_BT = context.real(x_BTD)
        if real_BT is not None:
            slots_N = nonzero_indices(real_BT, sum(context.lengths(x_BTD)))
            scores_N, selected_N = (t.index_select(0, slots_N) for t in (scores_N, selected_N))
        scorer = None if self.control else self.router
        tokens = tokens_of(x_BTD, context, self.noise, slots_N=slots_N, flat=True, scorer=scorer)
        losses = self.options.losses(scores_N, selected_N, tokens)
        expect_losses(self.options, losses)
        for name, loss in losses.items():
            context.trace.loss(self.layer, name, loss)
        if tokens.training and not context.trace.repeated:
            update_scorer(self.options, self.router, scores_N, selected_N, tokens)

    def _groups(self, lengths: Sequence[int]) -> list[Sequence[int]]:
        """Split the sequences into groups that are processed together. Where the scores decide how many
        tokens are selected in training, too, no slot is padded."""
        if self.decides:
            return list(group_equal_sizes(lengths))
        return [lengths] if any(lengths) else []

    def _routed(self, workload: Workload) -> tuple[Sequence[int], Sequence[int]]:
        """Return the selected new and earlier tokens of each sequence."""
        new, past = incremental_counts(self._share, workload.lengths, workload.past)
        lengths = workload.counts.get((self.layer, "depth"), new)
        return lengths, workload.counts.get((self.layer, "past"), past)

    def _share(self, tokens: int) -> int:
        return capacity_tokens(self.options.capacity, tokens)


def _of_layer(options: DepthScheme, model: ModelConfig, layer: int) -> DepthScheme:
    """Return ``options`` with what `capacity_of` returns for the block at depth ``layer`` as capacity.
    Raise a `UserError` if that is not a number above 0, up to 1, or capacity is no option."""
    if not overrides(options, "capacity_of", DepthScheme):
        return options
    if "capacity" not in options.options():
        raise UserError(
            "capacity_of has no effect without an option 'capacity'; derive from DepthRouter"
        )
    capacity = check_type(f"capacity_of layer {layer}", options.capacity_of(model, layer), Part)
    return replace(options, capacity=float(capacity))  # type: ignore[type-var]
