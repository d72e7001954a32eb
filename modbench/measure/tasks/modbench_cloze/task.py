"""What the YAML names. lm-eval loads this file by its path, outside the package: it only points on."""

from modbench.measure.tasks.modbench_cloze.items import dataset

__all__ = ["dataset"]
