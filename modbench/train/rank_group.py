"""Several processes that train one model together, as `torchrun` starts them: each has the whole model
and its own sequences of the batch ([train] parallel)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from modbench.model.language_model import LanguageModel
from modbench.routing.tokens import Noise
from modbench.train.ranks import Ranks

#: Between the keys of random streams of two processes; any odd number.
_KEYS_APART = 1_000_003


@dataclass(eq=False, kw_only=True)
class RankGroup(Ranks):
    """The processes of a run, seen from one of them."""

    @classmethod
    def joined(cls, device: str) -> "RankGroup":
        """Join the processes that `torchrun` has started."""
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        return cls(number=dist.get_rank(), count=dist.get_world_size())

    def part(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The sequences of this process in ``batch``, inputs and targets."""
        each = len(batch[0]) // self.count
        first = self.number * each
        inputs_BT, targets_BT = batch
        return inputs_BT[first : first + each], targets_BT[first : first + each]

    def spread(self, model: LanguageModel) -> None:
        """Give each process noise of its own; the first keeps that of one process."""
        for noise in [part for part in model.modules() if isinstance(part, Noise)]:
            noise.key.add_(self.number * _KEYS_APART).bitwise_and_(2**31 - 1)

    @torch.no_grad()
    def reduce(self, model: LanguageModel) -> None:
        """Make the gradients of ``model`` those of the mean loss of all processes, and its averages the
        means over them."""
        weights = [p for p in model.parameters() if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in weights], dtype=torch.uint8)
        used = self._sum(used.to(next(model.parameters()).device))
        for weight in [p for p, of in zip(weights, used.tolist(), strict=True) if of]:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad)
            weight.grad /= self.count
        for average in model.buffers():
            if average.is_floating_point():
                dist.all_reduce(average)
                average /= self.count

    def mean(self, loss: Tensor) -> Tensor:
        """The mean of ``loss`` over the processes."""
        return self._sum(loss) / self.count

    def sums(self, numbers: list[int]) -> list[int]:
        """The sum of each number over the processes."""
        return [sum(column) for column in zip(*self.all(numbers), strict=True)]

    def all(self, value: Any) -> list[Any]:
        """The ``value`` of each process."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def _sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def finite(self, weights: Iterable[Tensor]) -> bool:
        """True if all ``weights`` of all processes are finite."""
        return all(self.all(super().finite(weights)))

    def load(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        of_model: Mapping[str, Tensor],
        of_optimizer: dict[str, Any],
    ) -> None:
        """Load the states of a process."""
        super().load(model, optimizer, of_model, of_optimizer)
        self.spread(model)
