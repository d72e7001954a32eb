"""Items of every task by name; called by lm-eval for the documents of a task."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from modbench.data.config import DataConfig
from modbench.evaluate.tasks import DISTANCES, TASKS
from modbench.evaluate.tasks.modbench_bits_per_byte import items as bits_per_byte
from modbench.evaluate.tasks.modbench_cloze import items as cloze
from modbench.evaluate.tasks.modbench_continuation import items as continuation
from modbench.evaluate.tasks.modbench_copy.items import COPY
from modbench.evaluate.tasks.modbench_mixture import items as mixture
from modbench.evaluate.tasks.modbench_recall.items import RECALL
from modbench.evaluate.tasks.quartets import Item

if TYPE_CHECKING:
    from datasets import Dataset

_BUILDERS: dict[str, Callable[[DataConfig], tuple[Item, ...]]] = {
    "modbench_cloze": cloze.items,
    "modbench_continuation": continuation.items,
    "modbench_bits_per_byte": bits_per_byte.items,
    **{
        f"{probe.task}_{distance}": partial(probe.items, distance=distance)
        for probe in (COPY, RECALL)
        for distance in DISTANCES
    },
    "modbench_mixture_easy": mixture.easy_items,
    "modbench_mixture_hard": mixture.hard_items,
}


def items_of_task(task: str, config: DataConfig) -> tuple[Item, ...]:
    """The items of one task, built from the held-out text of ``config`` and kept for the process. Raises
    UserError: the corpus is missing, altered or too short for the task."""
    return _BUILDERS[task](config)


def check_text(tasks: Iterable[str], config: DataConfig) -> None:
    """Build the items of those of ``tasks`` that are ours, so that a text that is too short is refused
    before a model is trained. Raises UserError: as `items_of_task`."""
    for task in tasks:
        if task in TASKS:
            for member in TASKS[task].members or (task,):
                items_of_task(member, config)


def dataset(task: str, data: Mapping[str, Any] | None = None, **_: Any) -> "dict[str, Dataset]":
    """Documents of ``task``; called by lm-eval with the ``dataset_kwargs`` of its YAML and the metadata
    of the call.

    Args:
        data: the fields of a `DataConfig`; None: the embedded corpus.

    Raises:
        UserError: as `items_of_task`.
    """
    from datasets import Dataset

    return {"validation": Dataset.from_list(list(items_of_task(task, DataConfig(**(data or {})))))}
