"""Runs a modbench command that loads a submission's code: in a process of its own, with limits, without
the caller's variables, and without a network where the system can take it away. It is no sandbox: the
code reads and writes files as the user who runs it."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from modbench.errors import UserError

#: Variables that a command keeps: no token or password of its user's.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "XDG_CACHE_HOME")
_LARGEST_FILE = 2**30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one command."""

    minutes: float
    gigabytes: float  #: of its address space


@cache
def without_network() -> Sequence[str]:
    """The start of a command that has no network; empty if this system has none."""
    start = ("unshare", "--map-root-user", "--net")
    if shutil.which(start[0]) is None:
        return ()
    return start if subprocess.run([*start, "true"], capture_output=True).returncode == 0 else ()


def isolated(arguments: Sequence[str], limits: Limits) -> tuple[int, str, str]:
    """Run modbench with ``arguments``; return its exit code, what it printed and what it told. Raises
    UserError: it took more time than its limit."""

    def limit() -> None:
        space = int(limits.gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    started = subprocess.Popen(
        [*without_network(), sys.executable, "-m", "modbench", *arguments],
        env={
            "PYTHONDONTWRITEBYTECODE": "1",  # no __pycache__ in the folder
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=limit,
    )
    with started:
        try:
            printed, told = started.communicate(timeout=60 * limits.minutes)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"`modbench {arguments[0]}` took more than {limits.minutes:g} minutes; raise --minutes"
            ) from None
        finally:
            with suppress(ProcessLookupError):  # none that it left behind
                os.killpg(started.pid, signal.SIGKILL)
    return started.returncode, printed, told
