"""The error for mistakes that a user can fix. A message says what, where and what to do."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A user's mistake. The command line prints the message, no traceback, and exits with code 2."""


class ModelError(UserError):
    """A fault of transformers, or of the code in a model's folder, on a model. A suite excludes its row
    and runs the others."""


#: Control characters, which a terminal may obey, but for tabs and line breaks.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: Exceptions of plugin code. SystemExit is included because it would end the process with exit code 0.
FAULTS = (Exception, SystemExit)

#: Note on an error of code that is run to count its FLOPs.
NO_VALUES = (
    "FLOPs are counted on tensors without values: see `modbench docs writing_a_router`, Your own ledger"
)


def reason(error: BaseException | str) -> str:
    """Return the message of ``error`` in one line, shortened."""
    return " ".join(str(error).split())[:160]


@contextmanager
def models_code(fault: str, remedy: str) -> Iterator[None]:
    """Context in which code of transformers, or of a model's folder, runs. Raise a `ModelError` for what
    it raises: ``fault``, the error, and ``remedy``."""
    try:
        yield
    except UserError:
        raise
    except FAULTS as error:
        raise ModelError(f"{fault} ({type(error).__name__}: {reason(error)}); {remedy}") from error


def printable(text: str) -> str:
    """Return ``text`` with control characters as ``\\x1b``."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def is_file(path: Path) -> bool:
    """Return True if ``path`` is a file; False for a name that the file system does not accept, too."""
    try:
        return path.is_file()
    except OSError:
        return False


def known_names(name: object, known: Iterable[str]) -> str:
    """Return the end of an "unknown X" message: the nearest match, if there is one, and all names."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names) or 'none'}"


def nearest_names(name: object, known: Iterable[str]) -> str:
    """Return the end of an "unknown X" message where there are too many names to list: the nearest."""
    near = difflib.get_close_matches(str(name), sorted(known), n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "check its spelling"


def several(number: int, noun: str, form: str = "") -> str:
    """Return ``number``, as ``form``, with its noun: "1 token", "3 tokens" or "2 processes"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:{form}} {noun if number == 1 else plural}"
