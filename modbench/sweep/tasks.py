"""Checks the downstream tasks of a suite before anything is trained."""

from collections.abc import Callable

from modbench.errors import UserError
from modbench.measure.config import MeasureConfig
from modbench.sweep.suite import Suite


def check_tasks(suite: Suite, embedded: bool, tell: Callable[[str], None]) -> None:
    """Check the downstream tasks and their data, before anything is trained; tell which groups are
    partial. Raises UserError: a group and its member are named, the held-out text is too short for a
    task of ours, or a file of another, or of its few-shot examples, is missing."""
    measure = suite.measure
    if measure.data_dir is not None and not measure.data_dir.is_dir():
        raise UserError(
            f"suite {suite.source}: [measure] downstream_data {measure.data_dir} is no folder; give one "
            "with files such as arc_easy.jsonl"
        )
    if len(measure.downstream) > 1 or measure.data_dir is not None:  # lm-eval takes seconds to import
        try:
            _check_files(measure, tell)
        except UserError as error:
            raise UserError(f"suite {suite.source}: [measure] downstream: {error}") from error
    if not embedded:
        from modbench.evaluate.tasks.build import check_text

        check_text(measure.downstream, suite.data)


def _check_files(measure: MeasureConfig, tell: Callable[[str], None]) -> None:
    from modbench.evaluate.downstream.loading import check_examples
    from modbench.evaluate.downstream.local_data import Sources
    from modbench.evaluate.downstream.table import missing_sentence
    from modbench.evaluate.downstream.task_files import files_by_name

    data_dir, include = measure.data_dir, measure.include
    files_of = files_by_name(measure.downstream, include=include, data_dir=data_dir)
    for name, files in files_of.items():
        sources = Sources(name=name, files=files, data_dir=data_dir, include=include)
        sources.check()
        tasks = [task for task in files if sources.data_files(task)]
        for task in tasks:
            stated = sources.stated[task].get("num_fewshot")
            fewshot = measure.downstream_fewshot
            number = stated if stated == 0 or fewshot is None else fewshot
            check_examples(sources, task, number, remedy="ask for 0 examples")
        if sources.missing:
            tell(missing_sentence(name, sources.missing, len(tasks)))
