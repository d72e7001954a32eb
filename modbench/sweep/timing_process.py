"""Runs one measuring process, from its start to its result."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modbench.measure.memory import MEMORY_ENV
from modbench.sweep.crash import error_of
from modbench.sweep.process import child_environment, kill_session, parsed_line


class DiedError(Exception):
    """A process ended without a result, with exit code ``code``."""

    def __init__(self, code: int, how: str) -> None:
        super().__init__(how)
        self.code = code


def run_worker(
    command: Sequence[str],
    spec: dict[str, Any],
    log: Path,
    say: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Return the result that the process of ``spec`` printed (see `modbench.measure.worker`). ``say``
    receives its events, ``log`` its standard error.

    Raises:
        DiedError: it printed no result.
    """
    environment = child_environment(spec["threads"])
    if "memory" in spec["kind"]:
        environment |= MEMORY_ENV
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        start = errors.tell()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # Ctrl-C on the terminal is for this process to handle
        )
    assert process.stdin is not None
    assert process.stdout is not None
    found: dict[str, Any] | None = None
    # Processes that it forked hold its standard output open: they are killed once it has ended.
    rest = threading.Thread(target=_end_with, args=(process,), daemon=True, name="end-session")
    rest.start()
    try:
        # Its standard input stays open while this process lives: it ends when that closes.
        with contextlib.suppress(BrokenPipeError):  # it died before it read; its log has the error
            process.stdin.write(json.dumps(spec).encode() + b"\n")
            process.stdin.flush()
        for line in process.stdout:
            document = parsed_line(line)
            if "status" in document:
                found = document
            elif "event" in document:
                say(document)
        code = process.wait()
    finally:
        _end(process)
        rest.join()
    if code or found is None:
        raise DiedError(code, error_of(log, start, code))
    return found


def _end_with(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the process, then kill the rest of its session."""
    process.wait()
    kill_session(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and its session, and close its pipes."""
    kill_session(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
