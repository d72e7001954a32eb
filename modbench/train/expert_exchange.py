"""Expert parallelism: rows travel to the process that has their expert, and back.

R processes of a group, E experts, N rows, A rows that arrive, D model width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

#: Rows of each expert.
Counts = Sequence[int] | Tensor
#: Runs the experts of this process on rows sorted by expert, (A, D).
Run = Callable[[Tensor, Counts], Tensor]


def exchange(group: dist.ProcessGroup, ranks: int) -> Callable[[Run, Tensor, Counts], Tensor]:
    """A function of (run, rows (N, D) sorted by expert, rows of each of all experts): the experts'
    outputs, (N, D), each of the experts computed where its weights are. All processes of ``group`` call
    it together."""

    def exchanged(run: Run, rows_ND: Tensor, counts: Counts) -> Tensor:
        sent_RE = torch.as_tensor(counts, device=rows_ND.device).to(torch.long).view(ranks, -1)
        got_RE = torch.empty_like(sent_RE)
        dist.all_to_all_single(got_RE, sent_RE, group=group)
        sent, got = sent_RE.sum(1).tolist(), got_RE.sum(1).tolist()
        used_ND = rows_ND[: sum(sent)]
        got_AD = all_to_all_single_autograd(used_ND.contiguous(), got, sent, group)
        # By process, then by expert; the experts want them by expert.
        experts_E = torch.arange(got_RE.shape[1], device=rows_ND.device)
        expert_A = experts_E.repeat(ranks).repeat_interleave(got_RE.flatten())
        order_A = expert_A.argsort(stable=True)
        done_AD = run(got_AD.index_select(0, order_A), got_RE.sum(0).tolist())
        back_AD = done_AD.index_select(0, order_A.argsort())
        out_ND = all_to_all_single_autograd(back_AD.contiguous(), sent, got, group)
        left = len(rows_ND) - len(used_ND)  # rows of no expert
        return torch.cat((out_ND, out_ND.new_zeros(left, out_ND.shape[1]))) if left else out_ND

    return exchanged
