"""The processes that train one model together ([train] parallel): each has the whole model and its own
sequences of the batch. Or this process alone.

B sequences, T tokens.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.train.compiled import Losses

_LONGEST = 1e8  #: seconds, three years


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes, seen from one of them. All must call what sums over them."""

    number: int = 0  #: of this process, from 0
    count: int = 1
    joined: bool = False  #: `torchrun` has started them

    @classmethod
    def join(cls, seconds: float) -> "Ranks":
        """Join the processes that `torchrun` has started. One that waits for others longer than
        ``seconds`` ends."""
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=min(seconds, _LONGEST)))
        return cls(number=dist.get_rank(), count=dist.get_world_size(), joined=True)

    @property
    def leads(self) -> bool:
        """True for the process that writes files and reports."""
        return self.number == 0

    def part(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The sequences of this process in ``batch``, inputs and targets (B, T)."""
        each = len(batch[0]) // self.count
        inputs_BT, targets_BT = (of[self.number * each : (self.number + 1) * each] for of in batch)
        return inputs_BT, targets_BT

    def together(self, losses: Losses, model: LanguageModel) -> Losses:
        """Return ``losses`` of ``model``, whose backward pass makes gradients those of all processes."""
        if not self.joined:
            return losses
        with warnings.catch_warnings():  # the name that PyTorch 2.13 prefers is unknown to 2.11
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                _Losses(losses, model),
                broadcast_buffers=False,  # a step ends with those of all processes
                # A part of a router may get no gradient in a process. This also keeps the buckets as
                # they are: others after the first step would make a resumed run differ by rounding.
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )

    def total(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` over the processes, in place; return it."""
        if self.joined:
            dist.all_reduce(tensor)
        return tensor

    def sums(self, numbers: Sequence[int]) -> list[int]:
        """The sum of each whole number over the processes. None waits for its GPU."""
        if not self.joined:
            return [int(number) for number in numbers]
        return self.total(torch.tensor(numbers, dtype=torch.int64)).tolist()  # type: ignore[no-any-return]


class _Losses(nn.Module):
    """The module whose forward pass is ``losses`` of ``model``."""

    def __init__(self, losses: Losses, model: LanguageModel) -> None:
        super().__init__()
        self.losses = losses
        self.model = model

    def forward(
        self, inputs_BT: Tensor, targets_BT: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | float]:
        return self.losses(inputs_BT, targets_BT, context)


ALONE = Ranks()
