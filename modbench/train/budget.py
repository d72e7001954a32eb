"""Steps that a budget of FLOPs buys. Models are built on the meta device: nothing is allocated."""

from collections.abc import Mapping
from typing import Any

from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, outline
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig


def flops_per_step(model: RoutedDecoder, train: TrainConfig) -> int:
    """Nominal FLOPs of one training step, convention ``model``."""
    return model.ledger(Workload.uniform(train.batch, train.sequence, "train")).total("model")


def model_of(router: str, options: Mapping[str, Any], shape: Mapping[str, Any]) -> RoutedDecoder:
    """Build a model on the meta device. Raise a `UserError` for an unknown router or option, or a shape
    that the router does not support."""
    return outline(ModelConfig(**shape), build_router(router, options))
