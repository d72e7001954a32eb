"""The cell's side of the engine: one process, one spec file, one record."""

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from modbench.errors import UserError

#: Environment variable: the descriptor of a pipe that closes when the engine's process ends.
PARENT_PIPE = "MODBENCH_PARENT_PIPE"
_GRACE_SECONDS = 30.0


def run_spec(path: Path) -> int:
    """Run the cell of spec file ``path``; 0 once its record is appended, whatever its status; 130 if it
    was stopped; 1 if its router's own code raised something, of which the last line tells.

    Raises:
        UserError: no such file, or not a spec.
    """
    follow_parent()
    try:
        spec = json.loads(path.read_bytes())
        missing = {"suite", "cell", "plugins", "results", "folder", "threads"} - set(spec)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"cell {path} can't be read ({error}); `modbench run` writes spec files"
        ) from error
    if missing:
        raise UserError(
            f"cell {path} lacks {', '.join(sorted(missing))}; `modbench run` writes spec files"
        )
    from modbench.sweep.cell import run_cell
    from modbench.sweep.crash import raised_sentence
    from modbench.train.loop import StoppedError

    try:
        run_cell(spec, say)
    except StoppedError:
        print("modbench: stopped by a signal, its checkpoint is stored", file=sys.stderr)
        return 130
    except UserError:
        raise
    except BaseException as error:
        sentence = raised_sentence(error, spec["cell"]["router"]["name"])
        if sentence is None:
            raise
        traceback.print_exc()
        print(f"modbench: {sentence}", file=sys.stderr)
        return 1
    return 0


def say(event: dict[str, Any]) -> None:
    """One event to the engine: a line of JSON on standard output."""
    try:
        print(json.dumps(event), flush=True)
    except BrokenPipeError:
        # The engine was killed. `follow_parent` asks this process to store its checkpoint and end;
        # dying here would lose it. Later prints, and Python's flush at exit, need somewhere to go.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def follow_parent() -> None:
    """Where an engine started this process: once that is gone, ask this process to stop (SIGTERM, as the
    engine would have), and end it if it doesn't."""
    descriptor = os.environ.pop(PARENT_PIPE, None)
    if descriptor is None:
        return

    def watch() -> None:
        os.read(int(descriptor), 1)  # nothing is ever written: this returns at the end of the pipe
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()
