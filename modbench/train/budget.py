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
