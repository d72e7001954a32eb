"""Contexts in which lm-eval runs."""

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import lm_eval.utils
import numpy as np

#: lm-eval's own seeds of Python and numpy.
SEED, NUMPY_SEED = 0, 1234


@contextmanager
def quiet() -> Iterator[None]:
    """Context without lm-eval's progress bars, prints and warnings, and without its process pool; it
    compiles each template once, and not for each item, which takes longer than a small model."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # read by 0.4
    with contextlib.suppress(ImportError):  # 0.5 reads it once
        from lm_eval.api.metrics import stderr

        stderr.DISABLE_MULTIPROC = True
    env = getattr(lm_eval.utils, "env", None)  # of 0.4; 0.5 compiles once
    compile_template = env.from_string if env else None
    if env:
        env.from_string = lru_cache(compile_template)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if env:
            env.from_string = compile_template
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
