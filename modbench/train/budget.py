"""Steps that a budget of FLOPs buys. Models are built on the meta device: nothing is allocated."""

from collections.abc import Mapping
from typing import Any

import torch

from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig


def flops_per_step(model: RoutedDecoder, train: TrainConfig) -> int:
    """Nominal FLOPs of one training step, convention ``model``."""
    return model.ledger(Workload.uniform(train.batch, train.sequence, "train")).total("model")


def model_of(cell: Mapping[str, Any]) -> RoutedDecoder:
    """Build the cell's model on the meta device.

    Raises:
        UserError: its router can't take its shape; the sentence starts with the row's label.
    """
    router = build_router(cell["router"]["name"], cell["router"]["options"])
    try:
        with torch.device("meta"):
            return RoutedDecoder(ModelConfig(**cell["model"]), router)
    except UserError as error:
        raise UserError(f"row '{cell['router']['label']}': {error}") from error


def steps_for(cell: Mapping[str, Any]) -> int:
    """Nominal number of steps of the cell: floor(budget / nominal training FLOPs per step).

    Raises:
        UserError: the budget is smaller than one step, or its router can't take its shape.
    """
    train = TrainConfig(**cell["train"])
    each = flops_per_step(model_of(cell), train)
    steps = train.budget // each
    if steps < 1:
        raise UserError(
            f"[sweep] budgets: budget {train.budget:g} is smaller than one training step of "
            f"'{cell['router']['label']}', which takes {each:g} FLOPs; raise it there, or "
            "shrink batch, sequence or model"
        )
    return steps
