"""Runs a command that loads plugins or tasks in a process of its own, so that a crash is reported."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from modbench.cli.main import main
from modbench.cli.messages import Messages, tell
from modbench.routing.registry import foreign_routers

#: Environment variable of the inner process: the file that it makes once the command has ended.
_ENDED = "MODBENCH_COMMAND_ENDED"
#: Commands whose plugins do not run in the workers of a sweep.
_OF_PLUGINS = ("check", "audit", "flops", "plan", "sample", "export", "eval", "list")


def run() -> int:
    """Run the command of `sys.argv`; see `modbench.cli.main.main`."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = Messages(
            sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
    arguments, ended = sys.argv[1:], os.environ.pop(_ENDED, None)
    if ended is not None:
        code = 1
        try:
            code = main(arguments)
        finally:
            Path(ended).touch()
        return code
    if arguments and arguments[0] in _OF_PLUGINS and _may_load(arguments):
        return _run_apart(arguments)
    return main(arguments)


def _may_load(arguments: Sequence[str]) -> bool:
    """Return True if the command may import code of others: a plugin file, the Python of a task, or an
    installed package with a router, which a suite, a run or an option names."""
    given = {word.partition("=")[0].replace("_", "-") for word in arguments}
    named = {"--plugin", "--include-path"} & given
    return arguments[0] == "check" or bool(named or foreign_routers())


def _run_apart(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        ended = Path(folder, "ended")
        command = [sys.executable, "-m", "modbench", *arguments]
        try:
            code = subprocess.run(
                command, env={**os.environ, _ENDED: str(ended)}, check=False
            ).returncode
        except KeyboardInterrupt:  # the inner process got it as well, and has said so
            return 130
        if ended.exists():
            return code
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    tell(f"the process that loaded the plugin or task {how} before the command was done; fix that in it")
    return 2
