"""`modbench` in the test's own process, its workers included: a command that trains two tiny schemes
takes a second in place of seventeen. Specifications and events pass through JSON, as between
processes."""

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from modbench.audit import fresh
from modbench.audit.fresh import differs_in_a_fresh_process
from modbench.cli.main import main
from modbench.cli.messages import Messages
from modbench.routing import registry
from modbench.sweep import engine, work, worker
from modbench.sweep.worker import Worker
from modbench.timing.stopwatch import matmul_rate

#: Seconds after which a test takes what it waits for to hang: long enough for a busy machine.
PATIENCE = 120.0
_ONE_AT_A_TIME = threading.RLock()


class InlineWorker:
    """A `modbench.sweep.worker.Worker` whose job is done when it has been made."""

    def __init__(
        self,
        spec: dict[str, Any],
        *,
        log: Path,
        hear: Callable[[dict[str, Any]], None],
        timeout: float = 0.0,
        command: object = None,
    ) -> None:
        self.started = datetime.now(UTC)
        self.result: dict[str, Any] | None = None
        self._log = log

        def say(event: dict[str, Any]) -> None:
            event = json.loads(json.dumps(event))
            if event["event"] == "result":
                self.result = event["result"]
            else:
                with redirect_stdout(stdout), redirect_stderr(stderr):
                    hear(event)

        log.parent.mkdir(parents=True, exist_ok=True)
        with _ONE_AT_A_TIME, log.open("a") as output:
            stdout, stderr, self._log_start = sys.stdout, sys.stderr, output.tell()
            with redirect_stdout(output), redirect_stderr(output), _state_of_torch():
                self.code = worker.work(json.loads(json.dumps(spec)), say)

    def ended(self) -> bool:
        return True

    def over(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def error(self) -> str:
        return worker.error_of(self._log, self._log_start, self.code)

    def out_of_memory(self) -> bool:
        return False


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
        patch.object(engine, "Worker", InlineWorker),
        patch.object(engine, "_POLL_SECONDS", 0.0),
        patch.object(engine, "_WAIT_SECONDS", 0.0),
        patch.object(worker, "Worker", InlineWorker),
        patch.object(worker, "_POLL_SECONDS", 0.0),
        patch.object(work, "matmul_rate", lambda *of: 1e9),  # takes longer than the training
        patch.object(fresh, "differs_in_a_fresh_process", lambda *of: ""),  # tests/audit has it
    ):
        yield


@contextmanager
def processes() -> Iterator[None]:
    """Have jobs done in processes of their own, as a user's are."""
    real = {"Worker": Worker, "_POLL_SECONDS": 0.2}
    with (
        patch.multiple(engine, **real, _WAIT_SECONDS=1.0),
        patch.multiple(worker, **real),
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
