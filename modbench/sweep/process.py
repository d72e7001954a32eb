"""The process of a worker, as its parent sees it: its environment, its events and its end."""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import modbench

Event = dict[str, Any]
Say = Callable[[Event], None]

COMMAND = (sys.executable, "-P", "-m", "modbench.sweep.worker")
FILE, EVENTS = "job.json", "events.jsonl"
_POLL_SECONDS = 0.1  #: short next to the seconds that a worker takes to start
_PARENT_DEATH_SIGNAL = 1  #: option of prctl
_END_SECONDS = 5.0  #: for killed processes to leave their GPUs
_REPEAT_SECONDS = 1.0  #: between two equal events, which say that the job makes progress
_MOST = 32_768  #: bytes of events, of which the latest of each kind are kept

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


class Events:
    """The events of the job in ``folder``: written by its worker, read by any number of others."""

    def __init__(self, folder: Path, name: str = EVENTS) -> None:
        self._path = folder / name
        self._latest: dict[str, Event] = {}
        self._written = 0.0
        self._seen: tuple[int, int] | None = None
        self._content = b""
        self.changed = time.monotonic()  #: when this reader last saw a change
        self.phase = "start"
        self.end: Event | None = None  #: the last event, once the worker has said it

    def clear(self) -> None:
        """Remove those of an earlier worker."""
        with contextlib.suppress(OSError):
            self._path.write_bytes(b"")

    def say(self, event: Event) -> None:
        """Add ``event``. A full disk loses it: the job may have room for its record."""
        kind, now = event["event"], time.monotonic()
        if self._latest.get(kind) == event and now - self._written < _REPEAT_SECONDS:
            return
        self._latest[kind], self._written = event, now
        try:
            whole = self._path.exists() and self._path.stat().st_size > _MOST
            with self._path.open("wb" if whole else "ab") as file:
                lines = [*self._latest.values()] if whole else [event]
                file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        except OSError:
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def new(self) -> list[Event]:
        """The events since the last call; what is written at this moment comes with the next one."""
        try:
            state = self._path.stat()
            if (state.st_size, state.st_mtime_ns) == self._seen:
                return []
            content = self._path.read_bytes()
        except OSError:
            return []
        if self._seen or content:
            self.changed = time.monotonic()
        self._seen = state.st_size, state.st_mtime_ns
        content = content[: content.rfind(b"\n") + 1]
        added = content.removeprefix(self._content)
        self._content = content
        events = [event for line in added.splitlines() if (event := _event(line))]
        for event in events:
            self.phase = event.get("phase", self.phase)
            if event["event"] == "end" or event.get("phase") == "start":
                self.end = event if event["event"] == "end" else None
        return events


def _event(line: bytes) -> Event | None:
    """The event of ``line``; None if it is none: a full disk may have cut one off."""
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        return event if isinstance(event, dict) and "event" in event else None
    return None


class Process:
    """The process of the worker of the job in ``folder``, as its parent sees it. It ends with its
    parent. ``patience``: seconds for which it waits for the lease; ``measures``: see
    `environment_of`."""

    def __init__(
        self,
        folder: Path,
        *,
        log: Path,
        threads: int,
        measures: str = "",
        device: str = "",
        patience: float = 0.0,
    ) -> None:
        self._log = log
        self._kills_before = out_of_memory_kills()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [*COMMAND, str(folder), str(patience)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment_of(threads, measures, device),
                start_new_session=True,  # Ctrl-C on the terminal is for the parent to handle
            )

    @property
    def code(self) -> int:
        """Exit code of a worker that has ended."""
        return int(self._process.returncode)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        """Ask the worker to store its state and end."""
        if not self.ended():
            self._process.terminate()

    def close(self) -> None:
        """Kill what is left of the worker's session, and of what it has started in others."""
        end_all(self._process)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def death(self) -> tuple[str, str]:
        """Status and error of a worker that ended without a word. One that was killed, while the kernel
        counted an out-of-memory kill, had not enough memory."""
        killed = self.code == -signal.SIGKILL and out_of_memory_kills() > self._kills_before
        return "oom" if killed else "failed", error_of(self._log, self._log_start, self.code)


def end_all(process: "subprocess.Popen[Any]") -> None:
    """Kill ``process``, its descendants and, if it leads one, its session; wait for their end."""
    descendants = []
    with contextlib.suppress(psutil.NoSuchProcess):  # once it has ended, they follow by themselves
        descendants = psutil.Process(process.pid).children(recursive=True)
    # Nothing may be left; macOS raises PermissionError for a group with only a zombie.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()
    psutil.wait_procs(descendants, timeout=_END_SECONDS)


def follow(parent: int) -> None:
    """Let Linux kill this process, whatever it does, once its ``parent`` has ended: another process may
    take its job over."""
    with contextlib.suppress(OSError, AttributeError):  # another system
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def out_of_memory_kills() -> int:
    """Number of processes that the Linux kernel has killed for lack of memory; 0 if unknown."""
    vmstat = Path("/proc/vmstat")
    match = re.search(r"^oom_kill (\d+)$", vmstat.read_text() if vmstat.exists() else "", re.MULTILINE)
    return 0 if match is None else int(match[1])


def silence(timeout: float, phase: str) -> str:
    """The error of a worker that was ended since it made no progress."""
    return f"no progress for {timeout:.0f} s in step {phase}; its process was ended"


def environment_of(threads: int, measures: str = "", device: str = "") -> dict[str, str]:
    """Environment variables of a worker: its threads, its allocator, its ``device``, if not empty, and
    this modbench, whatever the working directory holds. ``measures``: what a timing measures."""
    return {
        **ALLOCATOR,
        **os.environ,
        **(MEMORY_ALLOCATOR if "memory" in measures else {}),
        **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")},
        "VECLIB_MAXIMUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        **({"CUDA_VISIBLE_DEVICES": device} if device else {}),
        "PYTHONPATH": python_path(),
        "PYTHONSAFEPATH": "1",
    }


def python_path() -> str:
    """PYTHONPATH of workers: this modbench, and what this process has."""
    path = [
        str(Path(modbench.__file__).parent.parent),
        *os.environ.get("PYTHONPATH", "").split(os.pathsep),
    ]
    return os.pathsep.join(filter(None, dict.fromkeys(path)))


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
    message = one_line(last.removeprefix("modbench: "))
    return message if last.startswith("modbench: ") and code > 0 else f"{how}: {message}"


def one_line(text: str) -> str:
    """``text`` as a record has it: one line, no absolute path."""
    line = " ".join(text.split())
    return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], line)[:_LONGEST]
