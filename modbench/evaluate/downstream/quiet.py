"""Contexts in which lm-eval runs."""

import io
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np

#: lm-eval's own seeds of Python and numpy.
SEED, NUMPY_SEED = 0, 1234


@contextmanager
def quiet() -> Iterator[None]:
    """Context without lm-eval's progress bars, prints and warnings, and without its process pool."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
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
