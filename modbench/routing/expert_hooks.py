"""The options of schemes with experts, and the hooks that a scheme may override.

N tokens of a batch without padding, D model width, E experts, K experts of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import incremental_counts
from modbench.model.config import ModelConfig
from modbench.routing.balance import balance_loss
from modbench.routing.force_balance import assigned_in_turn
from modbench.routing.option_checks import check_at_least, check_types, reject_unused
from modbench.routing.router import Router
from modbench.routing.scorer import LinearScorer
from modbench.routing.tokens import Tokens
from modbench.routing.topk import best_experts


@dataclass(frozen=True, kw_only=True)
class ExpertOptions(Router):
    """The options that all schemes of experts share. A scheme hides one by declaring it again as
    ``field(init=False, default=...)``."""

    experts: int = 8
    top_k: int = 2  #: experts per token
    expert_width: int | None = None  #: None: active experts are together as wide as the dense MLP
    shared_experts: int = 0  #: further experts, which process every token
    shared_width: int | None = None  #: of each; None: as wide as the others
    shared_gate: bool = False  #: their output is multiplied by sigmoid(w^T x), as in Qwen's models
    capacity_factor: float | None = None  #: room in an expert, in training, over an even load; None: any
    balance: float = 0.01  #: weight of the balance loss
    z_loss: float = 0.0  #: weight of the mean squared log-sum-exp of the router's logits

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(1, self, "experts", "expert_width", "shared_width")
        check_at_least(0, self, "shared_experts", "balance", "z_loss")
        if not 1 <= self.top_k <= self.experts:
            raise UserError(
                f"top_k is {self.top_k} of {self.experts} experts; it must lie between 1 and experts"
            )
        if self.capacity_factor is not None and self.capacity_factor < 1:
            raise UserError(
                f"capacity_factor is {self.capacity_factor:g}; it must be 1 or more, as an even load "
                "needs; leave it out to drop nothing"
            )
        reject_unused(
            self,
            ("shared_width", not self.shared_experts, "shared_experts"),
            ("shared_gate", not self.shared_experts, "shared_experts"),
        )

    def no_ops(self) -> int:
        """Return the number of no-op experts: their ids follow those of the others, and their
        assignments are not computed. Only for schemes that override `choose`."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ExpertHooks(ExpertOptions):
    """The methods that `modbench.routing.expert_router.RoutedExperts` calls. No method sees padding."""

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
        """Return the experts of a token on average that the options promise, for a scheme that
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
        if self.assigns and type(self).losses is ExpertHooks.losses:
            return {}
        return self.losses(logits_NE, chosen)

    def update(self, scorer: nn.Module, logits_NE: Tensor, chosen: Tensor, tokens: Tokens) -> None:
        """Change the buffers of ``scorer`` after a training pass, without gradient."""

    @property
    def assigns(self) -> bool:
        """True if the scheme overrides `assign`."""
        return type(self).assign is not ExpertHooks.assign

    def shares(self, scores_NE: Tensor) -> Tensor:
        """Return each expert's share of a token's scores for the balance loss; they sum to 1."""
        if type(self).scores is ExpertHooks.scores:
            return scores_NE
        return F.normalize(scores_NE, p=1, dim=-1)

    # For the schemes of this package alone: what they promise more exactly than the defaults.

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
