"""The processes that train one model: this one alone, or several (`modbench.train.rank_group`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.language_model import LanguageModel
from modbench.routing.expert_bank import ExpertBank


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
        """Share out the weights of ``model``, which all processes have built alike."""

    def reduce(self, model: LanguageModel) -> None:
        """Make the gradients of ``model`` those of the mean loss of all processes, and its averages the
        means over them."""

    def clip(self, model: LanguageModel, most: float) -> None:
        """Scale the gradients down to the norm ``most``."""
        torch.nn.utils.clip_grad_norm_(model.parameters(), most)

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
        return all(weight.isfinite().all() for weight in weights)

    def model_state(self, model: LanguageModel) -> dict[str, Tensor]:
        """The state of ``model`` as one process has it."""
        return model.state_dict()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of ``optimizer`` as one process has it."""
        return optimizer.state_dict()

    def load(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        of_model: Mapping[str, Tensor],
        of_optimizer: dict[str, Any],
    ) -> None:
        """Load states that one process has."""
        model.load_state_dict(of_model)
        optimizer.load_state_dict(of_optimizer)


ALONE = Ranks()


def refuse_split(model: LanguageModel, parallel: Mapping[Any, int] | None) -> None:
    """Raise a `UserError` if ``parallel`` can't share out the experts of ``model``."""
    shares = (parallel or {}).get("expert", 1)
    for bank in [part for part in model.modules() if isinstance(part, ExpertBank)]:
        if bank.experts % shares:
            raise UserError(
                f"[train] parallel has expert = {shares}; it must divide the number of experts of a "
                f"layer, which is {bank.experts}"
            )
