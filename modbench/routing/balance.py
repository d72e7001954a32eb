"""Load balancing of experts: an auxiliary loss, or a bias that affects only the choice of experts.

The loss is E * sum_i f_i P_i (Fedus et al. 2021, equations 4 to 6; DeepSeek-V3, equations 17 to 20),
where f_i is expert i's share of all assignments and P_i its mean share of a token's scores. It counts
assignments, as DeepSeek-V3 does, where Fedus et al. count tokens: 1 at an even load for every k.

B sequences, N tokens, E experts, K chosen.
"""

import torch
from torch import Tensor

from modbench.routing.step_state import Steered

#: Most experts whose assignments a GPU counts by comparison with each of them. Its deterministic
#: `index_add` sorts the indices and adds equal ones one after another; beyond this number, a byte per
#: comparison is too much memory.
COMPARED = 1024


def load_of(experts_NK: Tensor, experts: int) -> Tensor:
    """Return the number of assignments of each expert, (E,)."""
    chosen = experts_NK.flatten()
    if chosen.is_cuda and experts <= COMPARED:
        return (chosen[:, None] == torch.arange(experts, device=chosen.device)).sum(0)
    zeros_E = torch.zeros(experts, dtype=torch.long, device=chosen.device)
    return zeros_E.index_add(0, chosen, torch.ones_like(chosen, dtype=torch.long))


def balance_loss(
    experts_NK: Tensor, shares_NE: Tensor, sequence_N: Tensor | None = None, sequences: int = 1
) -> Tensor:
    """Return the loss over all tokens; with ``sequence_N``, the sequence of each token, the mean of the
    losses of the sequences that have a token. ``shares_NE``: each expert's share of a token's scores."""
    experts = shares_NE.shape[1]
    if sequence_N is None:
        load_E = load_of(experts_NK, experts)
        share_E = load_E / load_E.sum().clamp(min=1)
        return experts * (share_E * shares_NE.mean(0)).sum()
    cells_NK = sequence_N[:, None] * experts + experts_NK
    load_BE = load_of(cells_NK, sequences * experts).view(sequences, experts)
    share_BE = load_BE / load_BE.sum(1, keepdim=True).clamp(min=1)
    sum_BE = shares_NE.new_zeros(sequences, experts).index_add(0, sequence_N, shares_NE)
    tokens_B = load_of(sequence_N, sequences)
    mean_BE = sum_BE / tokens_B.clamp(min=1)[:, None]
    return experts * (share_BE * mean_BE).sum() / (tokens_B > 0).sum().clamp(min=1)


class SelectionBias(Steered):
    """A bias per expert that is added to the scores only for choosing experts: after each training step
    b += step * sign(mean load - load) (Wang et al. 2024, algorithm 1; DeepSeek-V3, equation 16). What it
    has seen is the load, the number of assignments of each expert.
    """

    value: Tensor

    def __init__(self, experts: int, step: float) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("value", torch.zeros(experts))
        self.register_buffer("seen", torch.zeros(experts, dtype=torch.int64), persistent=False)

    def move(self, seen: Tensor) -> None:
        """Move the bias by one step."""
        load_E = seen.to(self.value.dtype)
        self.value += self.step * (load_E.mean() - load_E).sign()
