"""Files, data sets and tasks that records name. Records of other people may name any of them: none is
read, fetched or run unless the command line names it too."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import abspath
from typing import Any

from modbench.data.config import DataConfig
from modbench.errors import UserError
from modbench.evaluate.tasks import TASKS


def outside(data: DataConfig, tasks: Iterable[Mapping[str, Any]] = ()) -> dict[str, str]:
    """Return what a run on ``data`` and its ``tasks`` (settings of measurements) name outside of
    modbench: each name with its meaning."""
    named: list[tuple[str | None, str]] = [
        (data.path, "a text"),
        (data.name, "a data set, which is fetched"),
        (data.tokenizer if data.has_tokenizer_file else None, "a tokenizer"),
    ]
    for settings in tasks:
        task = settings["task"]
        named.append((settings.get("include"), "a folder of tasks, whose Python is run"))
        if task not in TASKS:
            named.append((task, "a task, whose items may be fetched"))
    meanings: dict[str, dict[str, None]] = {}
    for name, meaning in named:
        if name is not None:
            meanings.setdefault(name, {})[meaning] = None
    return {name: " and ".join(of) for name, of in meanings.items()}


def permit(
    subject: str, named: Mapping[str, str], allow: Sequence[str], say: Callable[[str], object]
) -> None:
    """Say what is used of ``named``, which the records of ``subject`` name. Raises UserError: a part of
    it is not among ``allow``, names of the command line."""
    allowed = {*allow, *map(abspath, allow)}
    lacking = [name for name in named if name not in allowed and abspath(name) not in allowed]
    if lacking:
        words = " and ".join(f"'{name}' ({named[name]})" for name in lacking)
        raise UserError(
            f"{subject}: what only a record names is not used, here {words}; if you trust that, add "
            f"--allow {shlex.join(lacking)}"
        )
    for name, meaning in named.items():
        say(f"{subject}: uses '{name}' ({meaning})")
