"""FLOPs of a training step, by which a budget is counted in steps."""

from modbench.ledger import Workload
from modbench.model.language_model import LanguageModel
from modbench.train.config import TrainConfig


def flops_per_step(model: LanguageModel, train: TrainConfig) -> int:
    """Nominal FLOPs of one training step, convention ``model``."""
    load = Workload.uniform(train.rows, train.sequence, "train")
    return train.ranks * train.micro_batches * model.ledger(load).total("model")
