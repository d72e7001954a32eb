"""Checks the tasks of a suite that read local files, before anything is trained."""

from collections.abc import Iterator

from modbench.measure.config import MeasureConfig
from modbench.measure.downstream.item_checks import check_sources
from modbench.measure.downstream.loading import check_examples
from modbench.measure.downstream.local_data import Sources
from modbench.measure.downstream.quiet import quiet, seeded
from modbench.measure.downstream.table import missing_sentence
from modbench.measure.downstream.task_files import files_by_name


def check_files(measure: MeasureConfig) -> Iterator[str]:
    """Check the local files of the downstream tasks of ``measure``, and yield a sentence for each group
    that is partial. Raises UserError: a file is missing, also of few-shot examples, or has a line that
    is no item of its task."""
    data_dir, include = measure.data_dir, measure.include
    every = files_by_name(measure.downstream, include=include, data_dir=data_dir)
    for name, files in every.items():
        sources = Sources(name=name, files=files, data_dir=data_dir, include=include)
        with quiet(), seeded():
            check_sources(sources)
        tasks = [task for task in files if sources.data_files(task)]
        for task in tasks:
            number = sources.stated[task].get("num_fewshot")
            if number != 0:
                number = number if measure.downstream_fewshot is None else measure.downstream_fewshot
            check_examples(sources, task, number, remedy="ask for 0 examples")
        if sources.missing:
            yield missing_sentence(name, sources.missing, len(tasks))
