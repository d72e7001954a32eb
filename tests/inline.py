"""`modbench` in the test's own process, its workers included: a command that trains two tiny schemes
takes a second in place of seventeen."""

import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from modbench.audit import fresh
from modbench.audit.fresh import differs_in_a_fresh_process
from modbench.cli.main import main
from modbench.cli.messages import Messages
from modbench.routing import registry
from modbench.sweep import loop, process, work, worker
from modbench.sweep.process import Process
from modbench.timing.stopwatch import matmul_rate

#: Seconds after which a test takes what it waits for to hang: long enough for a busy machine.
PATIENCE = 120.0
_ONE_AT_A_TIME = threading.RLock()


class InlineProcess:
    """A `modbench.sweep.process.Process` whose job is done when it has been made."""

    def __init__(self, folder: Path, *, log: Path, patience: float = 0.0, **_: Any) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with _ONE_AT_A_TIME, log.open("a") as output:
            self._log_start = output.tell()
            with redirect_stdout(output), redirect_stderr(output), _state_of_torch():
                self.code, sentence = worker.serve(folder, patience, began=time.monotonic())
                print(f"modbench: {sentence}" if sentence else "", file=sys.stderr)

    def ended(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def death(self) -> tuple[str, str]:
        return "failed", process.error_of(self._log, self._log_start, self.code)


@contextmanager
def _state_of_torch() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(deterministic)


@contextmanager
def own_routers() -> Iterator[None]:
    """Forget the routers of plugin files and packages that are loaded meanwhile."""
    before = {*registry._registered}
    try:
        yield
    finally:
        for name in {*registry._registered} - before:
            module = registry._registered[name].__module__
            if not module.startswith("modbench."):
                del registry._registered[name]
                registry._sources.pop(name, None)
                sys.modules.pop(module, None)
        registry._package_sha256.cache_clear()


@contextmanager
def inline_workers() -> Iterator[None]:
    """Have jobs done in this process, and forget the routers of plugin files."""
    with (
        patch.object(process, "Process", InlineProcess),
        patch.object(process, "_POLL_SECONDS", 0.0),
        patch.multiple(loop, _POLL_SECONDS=0.0, _WAIT_SECONDS=0.0),
        patch.object(work, "matmul_rate", lambda *of: 1e9),  # takes longer than the training
        patch.object(fresh, "differs_in_a_fresh_process", lambda *of: ""),  # tests/audit has it
    ):
        yield


@contextmanager
def processes() -> Iterator[None]:
    """Have jobs done in processes of their own, as a user's are."""
    with (
        patch.multiple(process, Process=Process, _POLL_SECONDS=0.1),
        patch.multiple(loop, _POLL_SECONDS=0.2, _WAIT_SECONDS=1.0),
        patch.object(work, "matmul_rate", matmul_rate),
        patch.object(fresh, "differs_in_a_fresh_process", differs_in_a_fresh_process),
    ):
        yield


def modbench_inline(place: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of `modbench WORDS` in ``place``, without a process."""
    output = Messages(io.BytesIO(), "utf-8", "backslashreplace", line_buffering=True)
    here = Path.cwd()
    os.chdir(place)
    try:
        cache = patch.dict(os.environ, MODBENCH_CACHE=str(place / "cache"))
        with cache, redirect_stdout(output), redirect_stderr(output), inline_workers(), own_routers():
            try:
                code = main(list(words))
            except SystemExit as exit_:
                code = int(exit_.code or 0)
        output.flush()
        return code, output.buffer.getvalue().decode()  # type: ignore[attr-defined]
    finally:
        os.chdir(here)
