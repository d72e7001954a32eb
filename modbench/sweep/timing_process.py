"""A process that measures, from its start to its last line."""

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from modbench.measure.memory import MEMORY_ENV
from modbench.sweep.crash import error_of
from modbench.sweep.process import child_environment

#: Seconds between two looks at whether a process that says nothing has ended.
LOOKS = 0.5


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
    """What the process of ``spec`` (see `modbench.measure.worker`) printed at its end; ``say`` hears of
    its events, ``log`` has what it says otherwise.

    Raises:
        DiedError: it printed nothing of the kind.
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
            start_new_session=True,  # a Ctrl-C on the terminal is ours to handle
        )
    assert process.stdin is not None
    found: dict[str, Any] | None = None
    # What it forked has its standard output open, too, and may live longer.
    rest = threading.Thread(target=_end_with, args=(process,), daemon=True, name="end-session")
    rest.start()
    try:
        # Its standard input stays open as long as this process lives: that's how it knows.
        with contextlib.suppress(BrokenPipeError):  # it died before it read: its log says of what
            process.stdin.write(json.dumps(spec).encode() + b"\n")
            process.stdin.flush()
        for line in _lines(process):
            document = _document(line)
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


def _lines(process: "subprocess.Popen[bytes]") -> Iterator[bytes]:
    """What it prints, until it ends; what it forked may hold its standard output open after that."""
    assert process.stdout is not None
    output, begun = process.stdout.fileno(), b""
    while True:
        ended = process.poll() is not None
        if select.select([output], [], [], 0 if ended else LOOKS)[0]:
            chunk = os.read(output, 2**16)
            if chunk:
                *lines, begun = (begun + chunk).split(b"\n")
                yield from lines
                continue
            ended = True
        if ended:
            yield begun
            return


def _document(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _end_with(process: "subprocess.Popen[bytes]") -> None:
    """Wait for its end, and leave nothing of its session behind."""
    process.wait()
    _kill_session(process)


def _kill_session(process: "subprocess.Popen[bytes]") -> None:
    # Nothing may be left; macOS says PermissionError of a group in which only a zombie is.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Leave nothing of it and its session behind."""
    _kill_session(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
