"""A worker: one process that runs one job. Every training run, timing and memory measurement is one.

The parent writes the job's specification, one line of JSON, to the worker's standard input and keeps
it open: when it closes, the parent has ended, and the worker stores its state and ends. Events are
lines of JSON on a pipe of their own; standard output and error, and so what plugin code prints, go to
the job's log. A worker may be killed at any moment.
"""

import contextlib
import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import modbench
from modbench.errors import FAULTS, UserError
from modbench.train.out_of_memory import out_of_memory_kills

Event = dict[str, Any]
Say = Callable[[Event], None]

#: The function that runs each kind of job: takes the specification and a `Say`, returns the result.
JOBS = {
    "run": "modbench.sweep.work:run_job",
    "rows": "modbench.sweep.rows:describe_rows",
    "machine": "modbench.sweep.timing_job:describe_machine",
    "timing": "modbench.sweep.timing_job:run_timing",
    "steps": "modbench.sweep.step_times:time_steps",
}
COMMAND = (sys.executable, "-m", "modbench.sweep.worker")
#: Environment variable: the descriptor of the pipe of events.
_EVENTS = "MODBENCH_EVENTS"
#: Seconds to store a checkpoint once the parent has ended.
_GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.1  #: short next to the seconds that a worker takes to start

#: By default glibc returns large buffers to the kernel at once; a training step then spends up to a
#: fifth of its time on page faults. These settings keep the memory, and ask for it in huge pages.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
#: Where memory is measured, freed buffers return to the kernel at once and pages are small, so that the
#: resident set is the memory in use.
MEMORY_ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}


class DiedError(Exception):
    """A worker ended without a result, with exit code ``code``."""

    def __init__(self, code: int, how: str) -> None:
        super().__init__(how)
        self.code = code


class Worker:
    """Starts the worker of ``spec`` (``job``, ``threads`` and what the job needs). ``hear`` receives its
    events in a thread of their own; ``result`` is its result once it has reported one. ``timeout``:
    seconds without an event after which `over` ends it."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        log: Path,
        hear: Say,
        timeout: float = math.inf,
        command: Sequence[str] | None = None,
    ) -> None:
        self.log = log
        self.started = datetime.now(UTC)
        self.result: dict[str, Any] | None = None
        self._timeout = timeout
        self._late = False
        self._heard = time.monotonic()
        self._phase = "start"
        self._hear = hear
        self._kills_before = out_of_memory_kills()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                list(command or COMMAND),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment(spec) | {_EVENTS: str(writing)},
                start_new_session=True,  # Ctrl-C on the terminal is for the parent to handle
                pass_fds=(writing,),
            )
        os.close(writing)
        self._reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died before it read; its log has the error
            self._process.stdin.write(json.dumps(spec).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def code(self) -> int:
        """Exit code of a worker that has ended."""
        return int(self._process.returncode)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def over(self) -> bool:
        """Return True if it has ended, or has sent no event for too long."""
        self._late = not self.ended() and time.monotonic() - self._heard > self._timeout
        return self._late or self.ended()

    def ask_to_stop(self) -> None:
        """Ask the worker to store its state and end."""
        if not self.ended():
            self._process.terminate()

    def close(self) -> None:
        """Kill what is left of the worker's session, and read the last events."""
        # Nothing may be left; macOS raises PermissionError for a group with only a zombie.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join(timeout=5)

    def error(self) -> str:
        """One line on how it ended."""
        if self._late:
            return f"no progress for {self._timeout:.0f} s in step {self._phase}; its process was ended"
        return error_of(self.log, self._log_start, self.code)

    def out_of_memory(self) -> bool:
        """Return True if it was killed and the kernel has counted an out-of-memory kill since it
        started; a kill by hand alone is not one."""
        return (
            not self._late
            and self.code == -signal.SIGKILL
            and out_of_memory_kills() > self._kills_before
        )

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as pipe:
            for line in pipe:
                if not line.endswith(b"\n"):  # it was killed while it wrote
                    return
                event = json.loads(line)
                self._heard = time.monotonic()
                self._phase = event.get("phase", self._phase)
                if event["event"] == "result":
                    self.result = event["result"]
                else:
                    self._hear(event)


def run_worker(
    spec: Mapping[str, Any],
    *,
    log: Path,
    hear: Say = lambda event: None,
    poll: Callable[[], None] = lambda: None,
    timeout: float = math.inf,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run a worker to its end and return its result. ``poll`` is called while it runs, and may raise.
    ``timeout``: seconds without an event after which it is ended. Raises DiedError: it reported no
    result."""
    worker = Worker(spec, log=log, hear=hear, timeout=timeout, command=command)
    try:
        while not worker.over():
            poll()
            time.sleep(_POLL_SECONDS)
    finally:
        worker.close()
    if worker.code or worker.result is None:
        raise DiedError(worker.code, worker.error())
    return worker.result


def _environment(spec: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables of a worker: its threads, its allocator, and this modbench, whatever the
    working directory holds."""
    threads = str(spec["threads"])
    of_memory = "memory" in spec.get("measures", "")
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    path = [str(Path(modbench.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **ALLOCATOR,
        **os.environ,
        **(MEMORY_ALLOCATOR if of_memory else {}),
        **{f"{name}_NUM_THREADS": threads for name in names},
        "VECLIB_MAXIMUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        **({"CUDA_VISIBLE_DEVICES": spec["device"]} if "device" in spec else {}),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONSAFEPATH": "1",
    }


def main() -> int:
    """Run the job of standard input; returns what `work` does."""
    spec = json.loads(sys.stdin.readline())
    follow_parent()
    return work(spec, event_writer())


def work(spec: Mapping[str, Any], say: Say) -> int:
    """Run the job of ``spec``. Returns 0 with a result; 130 if stopped; 2 for a user's or a plugin
    author's mistake, else 1: the last line of standard error states the error."""
    module, _, function = JOBS[spec["job"]].partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(spec, say)
    except UserError as error:
        print(f"modbench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except FAULTS as error:
        return _told(spec, error)
    say({"event": "result", "result": result})
    return 0


def _told(spec: Mapping[str, Any], error: BaseException) -> int:
    """Print what ended the job of ``spec``; return its exit code."""
    from modbench.model.shape import TRANSFORMERS
    from modbench.routing.plugin_fault import at, raised
    from modbench.routing.registry import router_class
    from modbench.sweep.claim import LostError
    from modbench.train.loop import StoppedError

    if isinstance(error, LostError):
        print("modbench: another process has taken this run over", file=sys.stderr)
        return 130
    if isinstance(error, StoppedError):
        print("modbench: stopped by a signal, its checkpoint is stored", file=sys.stderr)
        return 130
    traceback.print_exception(error)
    subject = spec.get("run") or spec.get("timed") or {}
    if not subject.get("router"):
        return 1
    name = subject["router"]["name"]
    if name == TRANSFORMERS:
        return 1
    router = router_class(name)
    reason = raised(error, remedy="fix it and run again")
    print(f"modbench: router '{name}' {reason}", file=sys.stderr)
    # A full disk is not a mistake of the plugin, unless its own code writes the file.
    built_in = router.__module__.startswith("modbench.")
    return 1 if built_in or (isinstance(error, OSError) and not at(error)) else 2


@contextlib.contextmanager
def stop_signals(handle: Callable[[int], object]) -> Iterator[None]:
    """Call ``handle`` with each signal that arrives: SIGINT, SIGTERM, SIGHUP."""
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup
        before[number] = signal.signal(number, lambda number, frame: handle(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def event_writer() -> Say:
    """The function that sends events."""
    descriptor = int(os.environ.pop(_EVENTS))
    os.set_inheritable(descriptor, False)

    def say(event: Event) -> None:
        # The parent may have been killed: `follow_parent` then asks this process to store its state.
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, f"{json.dumps(event)}\n".encode())

    return say


def follow_parent() -> None:
    """Once the parent has ended, send SIGTERM to this process, as the parent would have, and SIGKILL to
    its session after a grace period. Plugin code gets an empty standard input."""
    alive = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def watch() -> None:
        os.read(alive, 1)  # nothing more is ever written: this returns when the pipe closes
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()


if __name__ == "__main__":
    sys.exit(main())


KILLED = "killed (SIGKILL); likely out of memory"
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?=:|$)")
_PATH = re.compile(r"(?<![\w.:/])~?(?:/[^\s/:'\"`,;()<>\[\]]+)+/?")
_LONGEST = 300  #: characters of a record's error; the longest of `plugin_fault` fits, with its line


def error_of(log: Path, start: int, code: int) -> str:
    """One line on how a process ended: its exit ``code``, and the error in ``log`` from byte ``start``
    on. Absolute paths are cut to their last name."""
    if code == -signal.SIGKILL:
        return KILLED
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 65_536))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    words = [line for line in lines if any(letter.isalnum() for letter in line)]
    raised = [line for line in words if _RAISED.match(line) or line.startswith("modbench: ")]
    if not words:
        return f"{how}, nothing in its log"
    last = (raised or words)[-1]
    message = _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], last)
    message = message.removeprefix("modbench: ")[:_LONGEST]
    return message if last.startswith("modbench: ") and code > 0 else f"{how}: {message}"
