"""Steps that a budget of FLOPs buys. Models are built on the meta device: nothing is allocated."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig


def flops_per_step(model: RoutedDecoder, train: TrainConfig) -> int:
    """Nominal FLOPs of one training step, convention ``model``."""
    return model.ledger(Workload.uniform(train.batch, train.sequence, "train")).total("model")


def model_of(router: str, options: Mapping[str, Any], shape: Mapping[str, Any]) -> RoutedDecoder:
    """Build a model on the meta device. Raise a `UserError` for an unknown router or option, or a shape
    that the router does not support."""
    with torch.device("meta"), _Uninitialised():
        return RoutedDecoder(ModelConfig(**shape), build_router(router, options))


class _Uninitialised(TorchFunctionMode):
    """Skips the functions of `torch.nn.init`: on the meta device they do nothing, after an import of the
    compiler, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
