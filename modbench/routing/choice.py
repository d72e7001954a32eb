"""Which experts a token chooses, and whom an expert with a capacity lets in.

N tokens, E experts, K chosen, G groups of experts, A assignments.
"""

import torch
from torch import Tensor

from modbench.routing.topk import nonzero_indices


def best_experts(
    scores_NE: Tensor, k: int, groups: int = 1, top_groups: int = 1, group_best: int | None = None
) -> Tensor:
    """The ``k`` experts that score highest, (N, K), the best first, ties to the lower number; of
    ``groups`` equal groups, only those in the ``top_groups`` whose best ``group_best`` experts sum to
    most; None: k / ``top_groups``, rounded up."""
    if groups > top_groups:
        scores_NGM = scores_NE.unflatten(1, (groups, -1))
        members = min(group_best or -(-k // top_groups), scores_NGM.shape[2])
        group_NG = scores_NGM.sort(dim=-1, descending=True).values[..., :members].sum(-1)
        order_NG = group_NG.argsort(dim=-1, descending=True, stable=True)
        out_NG = torch.zeros_like(group_NG, dtype=torch.bool).scatter_(1, order_NG[:, top_groups:], 1)
        scores_NE = scores_NGM.masked_fill(out_NG[..., None], -torch.inf).flatten(1)
    return scores_NE.argsort(dim=-1, descending=True, stable=True)[:, :k]


def apply_capacity(expert_A: Tensor, load_E: Tensor, capacity: int, total: int) -> Tensor:
    """Which assignments their experts take when each has room for ``capacity``: the first ones.

    ``expert_A``: the expert of each assignment, sorted; ``load_E``: how many each has; ``total``: how
    many they take together, as the host knows it. Places in ``expert_A``, in order."""
    first_E = load_E.cumsum(0) - load_E
    place_A = torch.arange(len(expert_A), device=expert_A.device) - first_E.index_select(0, expert_A)
    return nonzero_indices(place_A < capacity, total)
