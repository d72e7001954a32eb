"""The function named in the YAML. lm-eval loads this file by path, outside the package."""

from modbench.measure.tasks.modbench_cloze.items import dataset

__all__ = ["dataset"]
