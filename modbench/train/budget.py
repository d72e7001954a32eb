"""FLOPs of a training step, by which a budget is counted in steps."""

from modbench.ledger import Workload
from modbench.routing.build import RoutedDecoder
from modbench.train.config import TrainConfig


def flops_per_step(model: RoutedDecoder, train: TrainConfig) -> int:
    """Nominal FLOPs of one training step, convention ``model``."""
    load = Workload.uniform(train.rows, train.sequence, "train")
    return train.ranks * train.micro_batches * model.ledger(load).total("model")
