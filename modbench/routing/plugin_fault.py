"""Describes errors of a router's own code: what was raised, in which file and line. Imports no torch."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

from modbench.errors import FAULTS, UserError
from modbench.routing.plugin_code import is_authors

if TYPE_CHECKING:
    from modbench.routing.router import Router

#: Characters of a message; a record's error sentence holds them and the author's line.
_LONGEST = 180
_LOCATED = re.compile(r"\.py, line \d")


@contextmanager
def authors_code(router: "Router | type[Router]", during: str) -> Iterator[None]:
    """Context in which code of the author of ``router`` runs, as in a training step. Raise a `UserError`
    if it raises something; the message names the router, the author's line or class, and ``during``. A
    UserError keeps its sentence."""
    name = router.name
    try:
        yield
    except UserError as error:
        named = str(error).startswith(f"router '{name}'")
        where = "" if _LOCATED.search(str(error)) else at(error) or _class_at(router)
        raise UserError(f"{error}{where}" if named else f"router '{name}': {error}{where}") from error
    except FAULTS as error:
        raise UserError(f"router '{name}' {raised(error, during, router=router)}") from error


def raised(
    error: BaseException,
    during: str = "",
    remedy: str = "fix it",
    router: "Router | type[Router] | None" = None,
) -> str:
    """Return "raised KeyError: 'k' in DURING (my_router.py, line 16); fix it". Without an author's frame
    in the traceback, as where a module of PyTorch gets a wrong shape, file and line are those of the
    class of ``router``, if it is given. ``remedy`` may be empty."""
    text = str(error.msg if isinstance(error, SyntaxError) else error)  # str(error) repeats the line
    said = f"{type(error).__name__}: {' '.join(text.split())[:_LONGEST]}".removesuffix(": ")
    where = f" in {during}" if during else ""
    end = f"; {remedy}" if remedy else ""
    return f"raised {said}{where}{at(error) or _class_at(router)}{end}"


def at(error: BaseException) -> str:
    """Return " (my_router.py, line 16)", the author's line that ``error`` came from; empty if it came
    from none."""
    last = _authors_line(error)
    return f" ({shown(last[0])}, line {last[1]})" if last else ""


def defined_at(function: Callable[..., Any]) -> str:
    """Return " (my_router.py, line 12)", where an author defines ``function``; else nothing."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not is_authors(Path(code.co_filename)):
        return ""
    return f" ({shown(Path(code.co_filename))}, line {code.co_firstlineno})"


def _class_at(router: "Router | type[Router] | None") -> str:
    kind = router if isinstance(router, type) else type(router)
    try:
        file, line = Path(inspect.getfile(kind)), inspect.getsourcelines(kind)[1]
    except (TypeError, OSError):  # not of a file, or the file is gone
        return ""
    return f" (class {kind.__name__}, {shown(file)}, line {line})" if is_authors(file) else ""


def shown(file: Path) -> str:
    """Return the path of ``file`` from the working directory if it lies there, else its name: records
    hold no other paths."""
    file, here = file.resolve(), Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file.name)


def _authors_line(error: BaseException) -> tuple[Path, int] | None:
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        file = Path(error.filename).resolve()
        if is_authors(file):
            return file, error.lineno
    for frame in reversed(extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if frame.lineno is not None and is_authors(file):
            return file, frame.lineno
    return _authors_line(error.__cause__) if error.__cause__ is not None else None
