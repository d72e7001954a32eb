"""Checks the downstream tasks of a suite before anything is trained."""

from collections.abc import Callable

from modbench.errors import UserError
from modbench.sweep.suite import Suite


def check_tasks(suite: Suite, embedded: bool, tell: Callable[[str], None]) -> None:
    """Check the downstream tasks and their data, before anything is trained; tell which groups are
    partial. Raises UserError: a group and its member are named, the held-out text is too short for a
    task of ours, or a file of another is missing or has a line that is no item."""
    measure = suite.measure
    if len(measure.downstream) > 1:  # lm-eval takes seconds to import
        from modbench.evaluate.downstream.task_files import files_by_name

        try:
            files_by_name(measure.downstream, include=measure.include, data_dir=measure.data_dir)
        except UserError as error:
            raise UserError(f"suite {suite.source}: [measure] downstream: {error}") from error
    if not embedded:
        from modbench.evaluate.tasks.build import check_text

        check_text(measure.downstream, suite.data)
    where = f"suite {suite.source}: [measure] downstream_data"
    if measure.data_dir is not None and not measure.data_dir.is_dir():
        raise UserError(
            f"{where} {measure.data_dir} is no folder; give one with files such as arc_easy.jsonl"
        )
    if measure.data_dir is not None or measure.include is not None:
        from modbench.evaluate.downstream.check_files import check_files

        try:
            for sentence in check_files(
                measure.downstream,
                data_dir=measure.data_dir,
                include=measure.include,
                fewshot=measure.downstream_fewshot,
            ):
                tell(sentence)
        except UserError as error:
            raise UserError(f"suite {suite.source}: [measure] downstream: {error}") from error
