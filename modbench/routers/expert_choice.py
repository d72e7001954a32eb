"""Expert choice: each expert processes the tokens that score highest for it (Zhou et al. 2022,
section 3).

Equation 1: k = n c / E tokens for each expert, of the n tokens of a pool. Equation 2: S = softmax(X W)
over the experts; each expert takes the top k of its column of S. A token's output is the sum over its
experts of score times expert output: gates are not renormalised, and a token without an expert gets no
update. There is no balance loss.

That choice compares a token with later ones and may not predict. The causal rule is a score threshold
per expert: an exponential average over training of the lowest score that the expert took (Sun et al.
2026, Expert Threshold routing, which also trains with it); an expert processes every token at or above
it.

Differences from the paper: k is rounded up; the pool is one sequence by default (the paper's is the
batch), so that training on a sequence does not depend on other sequences; every block has experts, not
every second one; experts are MLPs of the same kind as the dense block's. The variant that bounds the
number of experts per token is left out.

N tokens of a batch, P pools, T tokens of the largest pool, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from modbench.routing.registry import register_router
from modbench.routing.router import Presets
from modbench.routing.threshold_router import ThresholdRouter
from modbench.routing.tokens import Tokens
from modbench.routing.topk import highest


@register_router("expert_choice")
@dataclass(frozen=True, kw_only=True)
class ExpertChoice(ThresholdRouter):
    """Experts choose the highest-scoring tokens of a pool."""

    presets: ClassVar[Presets] = {"batch_pool": {"pool": "batch"}, "one_expert": {"capacity": 1.0}}

    pool: Literal["sequence", "batch"] = "sequence"  #: tokens that an expert compares in training

    def start(self) -> float:
        return 1 / self.experts  # an even softmax is all that is known before training

    def pools(self, sizes: Sequence[int]) -> list[int]:
        return list(sizes) if self.pool == "sequence" else [sum(sizes)]

    def exact_load(self, lengths: Sequence[int], past: Sequence[int]) -> int:
        return self.load(lengths, past)

    def assign(self, logits_NE: Tensor, tokens: Tokens) -> Tensor:
        scores_NE = self.scores(logits_NE)
        if tokens.causal:
            cut_E = tokens.state["threshold.value"].to(scores_NE.dtype)
            return scores_NE.masked_fill(~(scores_NE >= cut_E), 0.0)
        lengths = self.pools(tokens.lengths)
        scores_PET = self._by_pool(scores_NE.detach(), lengths, -torch.inf).transpose(1, 2)
        counts = [self.taken(length) for length in lengths for _ in range(self.experts)]
        taken_PET = highest(scores_PET.flatten(0, 1), counts, None).view_as(scores_PET)
        taken_PTE = taken_PET.transpose(1, 2)
        if len(set(lengths)) == 1:
            taken_NE = taken_PTE.flatten(0, 1)
        else:
            rows = zip(taken_PTE, lengths, strict=True)
            taken_NE = torch.cat([taken_TE[:length] for taken_TE, length in rows])
        # A gate of 0 would mean that the expert does not take the token.
        scores_NE = scores_NE.clamp(min=torch.finfo(scores_NE.dtype).tiny)
        return scores_NE.masked_fill(~taken_NE, 0.0)

    def update(self, scorer: nn.Module, logits_NE: Tensor, gates_NE: Tensor, tokens: Tokens) -> None:
        taken_NE = gates_NE.masked_fill(gates_NE == 0, torch.inf)
        lowest_PE = self._by_pool(taken_NE, self.pools(tokens.lengths), torch.inf).amin(1)
        scorer.threshold.update(lowest_PE.mean(0))  # type: ignore[operator, union-attr]

    def _by_pool(self, values_NE: Tensor, lengths: list[int], padding: float) -> Tensor:
        """Return ``values_NE`` by pool, (P, T, E)."""
        if len(set(lengths)) == 1:
            return values_NE.view(len(lengths), lengths[0], -1)
        return pad_sequence(values_NE.split(lengths), batch_first=True, padding_value=padding)
