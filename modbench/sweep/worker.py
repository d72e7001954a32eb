"""A worker: one process that does one job. Every training run, timing and memory measurement is one.

It reads its job from the file in the job's folder, holds the folder's lease, and adds events, lines of
JSON, to a file there, which is opened and closed each time, so that other machines see them. What it
prints, and what plugin code prints, goes to the job's log. It may be killed at any moment, and stores
its state and ends on SIGTERM, or when the pipe of its standard input closes: its parent has ended.
"""

import contextlib
import importlib
import json
import os
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from modbench.errors import FAULTS, UserError
from modbench.sweep.process import FILE, Events, environment_of, one_line

if TYPE_CHECKING:
    from modbench.sweep.job import RunJob, TimeJob
    from modbench.sweep.lease import Lease

#: The function that does each kind of job; it returns fields of the last event.
JOBS = {"run": "modbench.sweep.work:run_job", "time": "modbench.sweep.timing_job:run_timing"}
#: Exit codes: stopped, its state is stored; and another process holds the lease.
STOPPED, HELD = 130, 75
_AGAIN = "MODBENCH_STARTED_AGAIN"  #: environment variable: the process has started itself once more
#: Seconds to store a checkpoint once the parent has ended.
_GRACE_SECONDS = 30.0
#: Records that are older than the job's file, by more than what clocks of machines differ by, were read
#: by the command that wrote it. A worker does not read them again: there may be 100,000.
_CLOCKS = 3600.0


def main(words: Sequence[str], log: Path | None = None) -> int:
    """Do the job of a folder; ``words``: the folder, and the seconds to wait for its lease. ``log``: the
    file for what it prints; None: its parent has redirected it. Returns what `serve` does; the last line
    of standard error states the error."""
    folder, patience = Path(words[0]), float(words[1]) if len(words) > 1 else 0.0
    spec = json.loads((folder / FILE).read_bytes())
    environment = environment_of(spec["threads"], spec.get("measures", ""))
    again = os.environ.pop(_AGAIN, None)
    if environment != dict(os.environ) and not again:  # glibc reads its settings as a process starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment | {_AGAIN: "1"})
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        _follow_parent()
    told = [2]
    if log:
        told.append(os.dup(2))
        with contextlib.suppress(OSError), log.open("ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
    code, sentence = serve(folder, patience, began=time.monotonic() - _age())
    for descriptor in told if sentence else ():
        with contextlib.suppress(OSError):  # a full disk
            os.write(descriptor, f"modbench: {' '.join(sentence.split())}\n".encode())
    return code


def _age() -> float:
    """Seconds since this process started."""
    return time.time() - psutil.Process().create_time()


def serve(folder: Path, patience: float = 0.0, *, began: float) -> tuple[int, str]:
    """Do the job of ``folder``. ``patience``: seconds to wait for the lease, if
    another process holds it; ``began``: when the work on it began, on the monotonic clock. Returns 0, or
    130 if stopped, 75 if another process holds the lease, 2 for a user's or a plugin author's mistake,
    else 1; and a sentence on it."""
    content = (folder / FILE).read_bytes()
    spec = json.loads(content)
    events = Events(folder)
    from modbench.sweep.job import read_job
    from modbench.sweep.lease import Lease

    job, lease = read_job(content), Lease(folder)
    with contextlib.suppress(OSError):  # a machine without that folder: paths may be absolute
        os.chdir(job.directory)
    try:
        if not lease.take(patience):
            return HELD, "another process works on it"
        return _done(job, spec, events, lease, began)
    except UserError as error:  # the folder can't be written or read
        return 2, str(error)
    finally:
        lease.release()


def _done(
    job: "RunJob | TimeJob", spec: dict[str, Any], events: Events, lease: "Lease", began: float
) -> tuple[int, str]:
    """Do what is left of ``job`` under its ``lease``, and store a record of what ended it; see
    `serve`."""
    from modbench.records.finished import Watch
    from modbench.records.store import append_record
    from modbench.sweep.job import done_of, identity_of
    from modbench.sweep.lease import LostError

    started = datetime.now(UTC)
    events.clear()
    events.say({"event": "phase", "phase": "start"})
    watch = Watch(job.results, (job.folder / FILE).stat().st_mtime - _CLOCKS)
    left = job.left(done_of(watch.new()))
    if left is None:
        events.say({"event": "end", "code": 0, "error": ""})
        return 0, ""
    module, _, name = JOBS[job.job].partition(":")
    work = getattr(importlib.import_module(module), name)
    code, sentence, fields = _outcome(lambda: work(left, events.say, lease, began), spec)
    events.say({"event": "end", "code": code, "error": one_line(sentence)} | fields)
    if code in (1, 2):
        stored = {identity_of(record) for record in watch.new()}
        lacking = next((identity for identity in left.identities if identity not in stored), None)
        with contextlib.suppress(UserError, LostError):  # such as a full disk
            lease.check()
            if lacking:
                append_record(job.results, job.failure(lacking, "failed", one_line(sentence), started))
    return code, sentence


def _outcome(
    work: Callable[[], dict[str, Any]], spec: Mapping[str, Any]
) -> tuple[int, str, dict[str, Any]]:
    """Do ``work`` of the job ``spec``; return its exit code, a sentence on it, and what it returns."""
    try:
        return 0, "", work()
    except UserError as error:
        return 2, str(error), {}
    except FAULTS as error:
        return *_fault(spec, error), {}


def _fault(spec: Mapping[str, Any], error: BaseException) -> tuple[int, str]:
    """The exit code and a sentence on what ended the job ``spec``; the log gets the traceback."""
    from modbench.model.shape import TRANSFORMERS
    from modbench.routing.plugin_fault import at, raised
    from modbench.routing.registry import router_class
    from modbench.sweep.lease import LostError
    from modbench.train.loop import StoppedError

    if isinstance(error, LostError):
        return STOPPED, "another process has taken this run over"
    if isinstance(error, StoppedError):
        return STOPPED, "stopped by a signal, its checkpoint is stored"
    traceback.print_exception(error)
    subject = (spec.get("run") or spec.get("timed") or {}).get("stated", spec.get("timed") or {})
    name = (subject.get("router") or {}).get("name", TRANSFORMERS)
    if name == TRANSFORMERS:
        return 1, f"exit code 1: {one_line(traceback.format_exception_only(error)[-1])}"
    router = router_class(name)
    sentence = one_line(f"router '{name}' {raised(error, remedy='fix it and run again')}")
    # A full disk is not a mistake of the plugin, unless its own code writes the file.
    built_in = router.__module__.startswith("modbench.")
    return 1 if built_in or (isinstance(error, OSError) and not at(error)) else 2, sentence


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


def _follow_parent() -> None:
    """Once the parent has ended, send SIGTERM to this process, as the parent would have, and SIGKILL to
    its session after a grace period. Plugin code gets an empty standard input."""
    alive = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def watch() -> None:
        os.read(alive, 1)  # nothing is ever written: this returns when the pipe closes
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
