"""The error sentence of a job that ended without a record."""

import re
import signal
from pathlib import Path

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
