"""What a cell that ended without a record says of itself."""

import re
import signal
from datetime import datetime
from pathlib import Path
from traceback import walk_tb
from typing import Any

from modbench.report.record import Record, Status, cell_key
from modbench.routing.plugin_code import is_authors

_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?=:|$)")
_PATH = re.compile(r"(?<![\w.:/])~?(?:/[^\s/:'\"`,;()<>\[\]]+)+/?")
_LONGEST = 300


def error_of(log: Path, start: int, code: int) -> str:
    """One line on how a process ended: its exit ``code``, and the line of ``log`` (from byte ``start``)
    that says most. Folders of this machine are cut off paths."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, by hand or for want of memory"  # which leaves no last word
    how = f"exit code {code}"
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 65_536))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    words = [line for line in lines if any(letter.isalnum() for letter in line)]
    raised = [line for line in words if _RAISED.match(line) or line.startswith("modbench: ")]
    if not words:
        return f"{how}, nothing in its log"
    if raised and raised[-1].startswith("modbench: ") and code > 0:
        how = ""  # the sentence says it
    said = without_folders((raised or words)[-1].removeprefix("modbench: "))[:_LONGEST]
    return f"{how}: {said}" if how else said


def raised_sentence(error: BaseException, router: str) -> str | None:
    """What is said of an ``error`` that came out of the code of ``router``'s author, and from which of
    its lines; None if it came from elsewhere. Of an interrupt and an exit nothing else raises any."""
    own = [
        (Path(frame.f_code.co_filename).name, line, frame.f_code.co_name)
        for frame, line in walk_tb(error.__traceback__)
        if is_authors(Path(frame.f_code.co_filename).resolve())
    ]
    if not own and not isinstance(error, KeyboardInterrupt | SystemExit):
        return None
    said = " ".join(str(error).split())
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    where = f" in {own[-1][0]}, line {own[-1][1]}, in {own[-1][2]}" if own else ""
    return f"router '{router}': its own code raised {what}{where}; mend it and run again"


def without_folders(text: str) -> str:
    """``text`` with each absolute path cut down to its last name."""
    return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], text)


def killed_sentence(cell: dict[str, Any], kind: str = "time") -> str:
    """What is said of a process that the kernel killed for want of memory. How much it asked for nobody
    knows by then; what its model takes can be predicted (see
    `modbench.measure.footprint.predicted_peak`)."""
    from modbench.measure.footprint import predicted_peak

    predicted = predicted_peak(cell, kind)
    if predicted is None:
        return "killed by the kernel: out of memory"
    what = "a prefill" if kind == "inference_memory" else "a training step"
    return f"killed by the kernel: out of memory, where {what} takes {predicted:,} bytes by the plan"


def crash_record(
    cell: dict[str, Any],
    *,
    suite: dict[str, Any],
    data: dict[str, Any],
    threads: int,
    status: Status,
    error: str,
    started: datetime,
    finished: datetime,
) -> Record:
    """The record of a cell that could write none itself."""
    import torch

    from modbench.measure.environment import code_version, environment

    machine = environment(torch.float32)
    return Record(
        suite=suite,
        cell=cell,
        key=cell_key(cell),
        code=code_version(),
        # The rest of it is about this process, not about the one that crashed.
        environment={name: machine[name] for name in ("cpu", "gpu", "torch")} | {"threads": threads},
        data=data,
        audit=[],
        metrics={},
        curve=[],
        routing={},
        status=status,
        error=error,
        started=started.isoformat(timespec="seconds"),
        finished=finished.isoformat(timespec="seconds"),
    )
