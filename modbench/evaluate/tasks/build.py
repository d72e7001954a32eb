"""Items of every task by name; called by lm-eval for the documents of a task."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

from modbench.data.config import DataConfig
from modbench.errors import UserError, several
from modbench.evaluate.tasks import DISTANCES, TASKS, bits_per_byte, cloze, continuation, mixture, probes
from modbench.evaluate.tasks.heldout import HeldOut, read_heldout
from modbench.evaluate.tasks.quartets import Item

#: Fewer items of choices would have a standard error of five points and more.
LEAST_ITEMS = 100
#: Builds the items of each task, ``{"source", "context", "choices", "answer"}`` or of bits per byte
#: ``{"source", "text"}``.
BUILDERS: dict[str, Callable[[HeldOut], list[Item]]] = {
    "modbench_cloze": cloze.build_items,
    "modbench_continuation": continuation.build_items,
    "modbench_bits_per_byte": bits_per_byte.build_items,
    **{
        f"modbench_{kind}_{distance}": partial(probes.build_items, kind, distance=distance)
        for kind in ("copy", "recall")
        for distance in DISTANCES
    },
    "modbench_mixture_easy": partial(mixture.build_items, hard=False),
    "modbench_mixture_hard": partial(mixture.build_items, hard=True),
}


@lru_cache(maxsize=32)
def items_of_task(task: str, config: DataConfig) -> tuple[Item, ...]:
    """The items of one task, built from the held-out text of ``config`` and kept for the process. Raises
    UserError: the corpus is missing, altered or too short for the task."""
    built = tuple(BUILDERS[task](read_heldout(config)))
    least = 1 if task == "modbench_bits_per_byte" else LEAST_ITEMS
    if len(built) < least:
        raise UserError(
            f"the held-out part of data source '{config.source}' yields "
            f"{several(len(built), 'item')}, but task {task} needs {least}; give more text, "
            "hold out more of it, or leave the task out"
        )
    return built


def check_text(tasks: Iterable[str], config: DataConfig) -> None:
    """Build the items of those of ``tasks`` that are ours, so that a text that is too short is refused
    before a model is trained. Raises UserError: as `items_of_task`."""
    for task in tasks:
        if task in TASKS:
            for member in TASKS[task].members or (task,):
                items_of_task(member, config)


def dataset(task: str, data: Mapping[str, Any] | None = None, **_: Any) -> dict[str, Any]:
    """Documents of ``task``, from the fields ``data`` of a `DataConfig`, None: of the embedded corpus.
    Called by lm-eval with the ``dataset_kwargs`` of its YAML and the metadata of the call. Raises
    UserError: as `items_of_task`."""
    from datasets import Dataset

    return {"validation": Dataset.from_list(list(items_of_task(task, DataConfig(**(data or {})))))}
