"""The processes that train one model: this one alone, or several (`modbench.train.rank_group`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modbench.model.language_model import LanguageModel


@dataclass(eq=False, kw_only=True)
class Ranks:
    """One process alone. Methods that return what all processes have must be called by all of them."""

    number: int = 0  #: of this process, from 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """True for the process that writes files and reports."""
        return self.number == 0

    def part(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The sequences of this process in ``batch``, inputs and targets (B, T)."""
        return batch

    def spread(self, model: LanguageModel) -> None:
        """Give this process noise of its own in ``model``, which all processes have built alike."""

    def reduce(self, model: LanguageModel) -> None:
        """Make the gradients of ``model`` those of the mean loss of all processes, and its averages the
        means over them."""

    def mean(self, loss: Tensor) -> Tensor:
        """The mean of ``loss`` over the processes."""
        return loss

    def sums(self, numbers: list[int]) -> list[int]:
        """The sum of each number over the processes."""
        return numbers

    def all(self, value: Any) -> list[Any]:
        """The ``value`` of each process."""
        return [value]

    def finite(self, weights: Iterable[Tensor]) -> bool:
        """True if all ``weights`` of all processes are finite."""
        return all(bool(weight.isfinite().all()) for weight in weights)

    def load(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        of_model: Mapping[str, Tensor],
        of_optimizer: dict[str, Any],
    ) -> None:
        """Load the states of a process."""
        model.load_state_dict(of_model)
        optimizer.load_state_dict(of_optimizer)


ALONE = Ranks()
