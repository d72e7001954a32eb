"""Loads lm-eval's task objects; contexts in which lm-eval runs."""

import io
import logging
import os
import random
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.tasks.manager import TaskDict, TaskManager

from modbench.data.config import DataConfig
from modbench.errors import FAULTS, UserError, reason
from modbench.evaluate.scored_lm import ScoredLM

#: lm-eval's own seed of few-shot examples.
FEWSHOT_SEED = 1234


def load_tasks(
    name: str, files: Mapping[str, Path], folder: Path, *, num_fewshot: int | None, data: DataConfig
) -> TaskDict:
    """Load the task, group or tag ``name``, of whose ``files`` those in ``folder`` are made, and set
    few-shot number and seed as lm-eval's command line does. Raises UserError: a task runs generated
    code."""
    metadata = {"data": asdict(data)}
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    loaded = manager.load([name])
    for member, task in loaded["tasks"].items():
        _prepare(files.get(member), member, task, num_fewshot)
    return loaded


def _prepare(file: Path | None, name: str, task: Any, num_fewshot: int | None) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"task '{name}' runs code that the model writes; run it with lm-eval")
    stated = task.config.num_fewshot
    if stated != 0:
        wanted = num_fewshot if num_fewshot is not None else stated or 0
        task.set_config(key="num_fewshot", value=wanted)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if file is not None:  # not the temporary one
        if isinstance(task.config.metadata, dict):
            task.config.metadata["config_source"] = str(file)
        if isinstance(task.config.dataset_kwargs, dict):
            task.config.dataset_kwargs.pop("cache_dir", None)


@contextmanager
def task_errors(task: str) -> Iterator[None]:
    """Context in which tasks are loaded and scored. Raises UserError, with lm-eval's own message: a data
    set cannot be reached, or a task fails. Errors of the model are raised as they are."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except UserError:
        raise
    except (ConnectionError, TimeoutError, FileNotFoundError, DatasetsError) as error:
        raise UserError(
            f"the data set of task '{task}' could not be loaded "
            f"({reason(error)}); connect to a network, or give local files "
            "(modbench docs evaluation)"
        ) from error
    except FAULTS as error:
        frames = traceback.walk_tb(error.__traceback__)
        if any(isinstance(frame.f_locals.get("self"), ScoredLM) for frame, _ in frames):
            raise
        raise UserError(
            f"task '{task}' can't be scored ({type(error).__name__}: {reason(error)}); fix the "
            "task or its items, or read items of another format by a YAML file (modbench docs "
            "evaluation)"
        ) from error


#: lm-eval's own seeds of Python and numpy.
SEED, NUMPY_SEED = 0, 1234


#: Parts of warnings that hold for most tasks and tell nothing about their items.
_USUAL = ("Custom kwargs can be passed", "using default")


@contextmanager
def quiet() -> Iterator[Counter[str]]:
    """Context without lm-eval's progress bars and prints, and without its process pool. Yields what
    lm-eval warns of, in the order in which it is first said, and how often."""
    said: Counter[str] = Counter()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            first, *_ = record.getMessage().splitlines() or [""]
            if not any(usual in first for usual in _USUAL):
                said[reason(first)] += 1

    handler = Listener(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    loggers[0].setLevel(logging.WARNING)
    loggers[0].addHandler(handler)
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield said
    finally:
        loggers[0].removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@contextmanager
def seeded() -> Iterator[None]:
    """Context in which the global generators of Python and numpy start from lm-eval's own seeds."""
    python, arrays = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
