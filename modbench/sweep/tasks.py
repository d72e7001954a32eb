"""Checks the downstream tasks of a suite before anything is trained."""

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from modbench.errors import UserError
from modbench.measure.config import MeasureConfig
from modbench.sweep.suite import Suite
from modbench.sweep.worker import DiedError, Say, run_worker


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
        try:
            for sentence in _checked(measure):
                tell(sentence)
        except UserError as error:
            raise UserError(f"suite {suite.source}: [measure] downstream: {error}") from error


@cache
def _checked(measure: MeasureConfig) -> Sequence[str]:
    """The sentences of `modbench.evaluate.downstream.check_files.check_files`, which runs in a worker:
    the Python of a user's task may end its process. Raises UserError: as there, or that happened."""
    stated = {name: getattr(measure, name) for name in ("data_dir", "include")}
    spec = {
        "job": "tasks",
        "names": measure.downstream,
        **{name: None if folder is None else str(folder) for name, folder in stated.items()},
        "fewshot": measure.downstream_fewshot,
        "threads": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            return list(run_worker(spec, log=Path(folder, "log.txt"))["sentences"])
        except DiedError as death:
            ended = f"the process that loaded the tasks ended: {death}; fix the task's Python"
            raise UserError(str(death) if death.code == 2 else ended) from None


def check_in_worker(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Do the job of `_checked`."""
    from modbench.evaluate.downstream.check_files import check_files

    folders = {name: spec[name] and Path(spec[name]) for name in ("data_dir", "include")}
    return {"sentences": list(check_files(spec["names"], fewshot=spec["fewshot"], **folders))}
