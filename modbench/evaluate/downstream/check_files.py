"""Checks the tasks of a suite that read local files, before anything is trained."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from modbench.evaluate.downstream.item_checks import check_sources
from modbench.evaluate.downstream.loading import check_examples
from modbench.evaluate.downstream.local_data import Sources
from modbench.evaluate.downstream.quiet import quiet, seeded
from modbench.evaluate.downstream.table import missing_sentence
from modbench.evaluate.downstream.task_files import files_by_name


def check_files(
    names: Sequence[str], *, data_dir: Path | None, include: Path | None, fewshot: int | None
) -> Iterator[str]:
    """Check the local files of the tasks ``names`` in ``data_dir``, and yield a sentence for each group
    that is partial. ``include``: folder of a user's own tasks; ``fewshot``: examples before each item,
    None: as the task says. Raises UserError: a file is missing, also of few-shot examples, or has a line
    that is no item of its task."""
    every = files_by_name(names, include=include, data_dir=data_dir)
    for name, files in every.items():
        sources = Sources(name=name, files=files, data_dir=data_dir, include=include)
        with quiet(), seeded():
            check_sources(sources)
        tasks = [task for task in files if sources.data_files(task)]
        for task in tasks:
            number = sources.stated[task].get("num_fewshot")
            if number != 0:
                number = number if fewshot is None else fewshot
            check_examples(sources, task, number, remedy="ask for 0 examples")
        if sources.missing:
            yield missing_sentence(name, sources.missing, len(tasks))
