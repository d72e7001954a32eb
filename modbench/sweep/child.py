"""The process of one cell: reads a spec file, runs the cell, appends its record."""

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from modbench.errors import FAULTS, UserError
from modbench.sweep.lock import cell_lock

#: Environment variable: the descriptor of a pipe that closes when the engine's process ends.
PARENT_PIPE = "MODBENCH_PARENT_PIPE"
_GRACE_SECONDS = 30.0


def run_spec(path: Path) -> int:
    """Run the cell of spec file ``path``. Returns 0 once its record is appended, whatever its status;
    130 if it was stopped. If it raised an error, which the last line of standard error states, returns 2
    for a plugin's mistake, else 1.

    Raises:
        UserError: another process runs this cell.
    """
    follow_parent()
    spec = json.loads(path.read_bytes())
    with cell_lock(Path(spec["folder"])):
        return _run(spec)


def _run(spec: dict[str, Any]) -> int:
    from modbench.routing.plugin_fault import at, raised
    from modbench.routing.registry import router_class
    from modbench.sweep.cell import run_cell
    from modbench.train.loop import StoppedError

    try:
        run_cell(spec, say)
    except StoppedError:
        print("modbench: stopped by a signal, its checkpoint is stored", file=sys.stderr)
        return 130
    except UserError:
        raise
    except FAULTS as error:
        traceback.print_exc()
        router = router_class(spec["cell"]["router"]["name"])
        said = raised(error, remedy="fix it and run again", router=router)
        print(f"modbench: router '{router.name}' {said}", file=sys.stderr)
        # A full disk is not a mistake of the plugin, unless its own code writes the file.
        built_in = router.__module__.startswith("modbench.")
        return 1 if built_in or (isinstance(error, OSError) and not at(error)) else 2
    return 0


def say(event: dict[str, Any]) -> None:
    """Send one event to the engine: a line of JSON on standard output."""
    try:
        print(json.dumps(event), flush=True)
    except BrokenPipeError:
        # The engine was killed. `follow_parent` asks this process to store its checkpoint and end;
        # dying here would lose it. Later prints, and Python's flush at exit, need a valid file.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def follow_parent() -> None:
    """If an engine started this process: once the engine's process has ended, send SIGTERM to this one,
    as the engine would have, and SIGKILL after a grace period."""
    descriptor = os.environ.pop(PARENT_PIPE, None)
    if descriptor is None:
        return

    def watch() -> None:
        os.read(int(descriptor), 1)  # nothing is ever written: this returns when the pipe closes
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()
