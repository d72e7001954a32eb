"""Describes errors of a router's own code: what was raised, in which file and line. Imports no torch."""

import ast
import inspect
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

from modbench.errors import FAULTS, NO_VALUES, UserError

if TYPE_CHECKING:
    from modbench.routing.router import Router

DECORATORS = "@register_router('{}') and, below it, @dataclass(frozen=True, kw_only=True)"
#: Start of Python's messages on a dataclass that these two lines correct, before it is registered.
_NO_DATACLASS = ("cannot inherit non-frozen dataclass", "non-default argument")
#: Characters of a message; a record's error sentence holds them and the author's line.
_LONGEST = 180
_NOT_AUTHORS = (Path(sysconfig.get_path("stdlib")).resolve(), Path(__file__).resolve().parent.parent)


@contextmanager
def authors_code(router: "Router | type[Router]", during: str) -> Iterator[None]:
    """Context in which code of the author of ``router`` runs, as in a training step. Raise a `UserError`
    if it raises something; the message names the router, the author's line, if there is one, and
    ``during``. A UserError keeps its sentence."""
    name = router.name
    try:
        yield
    except UserError as error:
        named = "" if str(error).startswith(f"router '{name}'") else f"router '{name}': "
        cause = None if ", line " in str(error) else error.__cause__
        raise UserError(f"{named}{error}{'' if cause is None else at(cause)}") from error
    except FAULTS as error:
        raise UserError(f"router '{name}' {raised(error, during)}") from error


def raised(error: BaseException, during: str = "", remedy: str = "fix it") -> str:
    """Return "raised KeyError: 'k' in DURING (my_router.py, line 16); REMEDY"; both may be empty. An
    error where FLOPs are counted has `NO_VALUES` as remedy."""
    text = str(error.msg if isinstance(error, SyntaxError) else error)  # str(error) repeats the line
    fault = f"{type(error).__name__}: {' '.join(text.split())[:_LONGEST]}".removesuffix(": ")
    where = f" in {during}" if during else ""
    if text.startswith(_NO_DATACLASS):
        remedy = f"put {DECORATORS.format('NAME')} above the class"
    if NO_VALUES in getattr(error, "__notes__", ()):
        remedy = NO_VALUES
    end = f"; {remedy}" if remedy else ""
    return f"raised {fault}{where}{at(error)}{end}"


def at(error: BaseException) -> str:
    """Return " (my_router.py, line 16)", the author's line that ``error`` came from; empty if it came
    from none."""
    frames = [(frame.filename, frame.lineno) for frame in extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    for name, line in reversed(frames):
        if line is not None and _is_authors(Path(name)):
            return f" ({shown(Path(name))}, line {line})"
    return at(error.__cause__) if error.__cause__ is not None else ""


def defined_at(function: Callable[..., Any]) -> str:
    """Return " (my_router.py, line 12)", where an author defines ``function``; else nothing."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not _is_authors(Path(code.co_filename)):
        return ""
    return f" ({shown(Path(code.co_filename))}, line {code.co_firstlineno})"


def assigned_at(owner: type, name: str) -> str:
    """Return " (my_router.py, line 12)", where the body of the class ``owner`` gives ``name`` a value,
    or the first line of the class; nothing without its source."""
    try:
        lines, first = inspect.getsourcelines(owner)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return ""
    line = first
    for node in ast.walk(tree):  # the body before what it holds
        if isinstance(node, ast.Name):
            stored = node.id == name and isinstance(node.ctx, ast.Store)
        else:
            stored = isinstance(node, ast.FunctionDef) and node.name == name
        if stored:
            line = first + node.lineno - 1  # type: ignore[attr-defined]
            break
    return f" ({shown(Path(inspect.getfile(owner)))}, line {line})"


def shown(file: Path) -> str:
    """Return the path of ``file`` from the working directory if it lies there, else its name: records
    hold no other paths."""
    file = file.resolve()
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file.name)


def _is_authors(file: Path) -> bool:
    """Return True for a Python file outside Python's library, installed packages and modbench."""
    file = file.resolve()
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    ours = any(file.is_relative_to(folder) for folder in _NOT_AUTHORS)
    return file.suffix == ".py" and file.is_file() and not installed and not ours
