"""The command `modbench check-submission`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from modbench.errors import UserError


def check_submission(
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")],
    /,
    *,
    board: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None,
    minutes: float = 30.0,
    memory: float = 16.0,
    json_: Annotated[bool, arg(name="json", help_behavior_hint="")] = False,
) -> int:
    """Check a submission to a board: records, digests, seeds, code, audit, claim, and one run trained
    again. The exit code is 1 if a check fails. The last two checks run its code, as you, in a process
    of its own, without a network where the system allows it: read the code first.

    Example: modbench check-submission submissions/my-router

    Args:
        folder: folder with submission.toml
        board: folder of the board's records; by default results/SUITE
        minutes: longest time of a command that runs the code
        memory: gigabytes of address space that it may use
        json_: print one JSON document in place of a line per check
    """
    from modbench.records.submission import STATED
    from modbench.submission.checks import checks
    from modbench.submission.isolated import Limits

    if not minutes > 0 or not memory > 0:
        raise UserError(f"--minutes is {minutes:g} and --memory {memory:g}; both must be above 0")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one that holds {STATED}")
    found = []
    for check in checks(folder, board, Limits(minutes=minutes, gigabytes=memory)):
        found.append(check)
        if not json_:
            print(f"{check.verdict:<8} {check.check}: {check.said}", flush=True)
    failed = any(check.verdict != "passed" for check in found)
    if json_:
        print(
            json.dumps(
                {"submission": str(folder), "passed": not failed, "checks": [*map(asdict, found)]}
            )
        )
    return int(failed)
