"""ThresholdRouter: what expert choice and expert threshold routing share.

N tokens of a batch, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import incremental_counts
from modbench.model.config import ModelConfig
from modbench.routing.ema import EMA
from modbench.routing.expert_options import BankOptions
from modbench.routing.expert_router import ExpertScheme
from modbench.routing.force_balance import strided_rows
from modbench.routing.scorer import LinearScorer
from modbench.routing.topk import capacity_tokens
from modbench.typed import Share


@dataclass(frozen=True, kw_only=True)
class ThresholdRouter(BankOptions, ExpertScheme):
    """Every block's MLP is a bank of experts. Each expert processes ``capacity`` / ``experts`` of the
    tokens; when predicting, those at or above its threshold, an exponential average over training."""

    capacity: float = 2.0  #: c, experts per token on average
    threshold_decay: Share = 0.95  #: decay of the exponential average

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.capacity <= self.experts:
            raise UserError(
                f"capacity is {self.capacity:g} with {self.experts} experts; it must lie above 0 and "
                "be no more than experts"
            )

    def start(self) -> float:
        """Return the thresholds before training."""
        raise NotImplementedError

    def pools(self, sizes: Sequence[int]) -> list[int]:
        """Return the sizes of the pools that experts take their share of; by default the batch."""
        return [sum(sizes)]

    def taken(self, tokens: int) -> int:
        """Return the tokens that an expert takes of a pool."""
        return capacity_tokens(self.capacity, tokens, among=self.experts)

    def load(self, lengths: Sequence[int], past: Sequence[int]) -> int:
        """Return the nominal number of new tokens that each expert takes."""
        return sum(incremental_counts(self.taken, self.pools(lengths), self.pools(past))[0])

    def scorer(self, model: ModelConfig) -> nn.Module:
        scorer = LinearScorer(model.width, self.experts)
        scorer.threshold = EMA(torch.full((self.experts,), self.start()), self.threshold_decay)
        return scorer

    def nominal_experts_per_token(self) -> float:
        return self.capacity

    def nominal_assignments(self, lengths: Sequence[int], past: Sequence[int]) -> int:
        return self.load(lengths, past) * self.experts

    def even_assignments(
        self, lengths: Sequence[int], past: Sequence[int], device: torch.device
    ) -> Tensor:
        pools = zip(self.pools(past), self.pools(lengths), strict=True)
        rows = [strided_rows(self.capacity, [first], n, device, self.experts)[0] for first, n in pools]
        return torch.cat(rows)[:, None].expand(-1, self.experts)
