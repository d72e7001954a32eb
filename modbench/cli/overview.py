"""The commands, and what `modbench --help` says of them. Imports none of them."""

import ast
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from modbench.errors import UserError, known_names

#: By name, in the order of the help.
COMMANDS = (
    *("check", "run", "time", "report", "compare", "verify", "merge", "list", "data", "flops", "plan"),
    *("fit", "audit", "new-router", "eval", "sample", "export", "convert", "docs"),
)


def function_of(command: str) -> Callable[..., int]:
    """The function of ``command``, which its module is imported for. Raises UserError: no such one."""
    if command not in COMMANDS:
        raise UserError(f"there is no command '{command}'; {known_names(command, COMMANDS)}")
    name = _name(command)
    module = import_module(f"modbench.cli.{name}")
    # With an underscore where Python has the word itself.
    function: Callable[..., int] = getattr(module, name if hasattr(module, name) else f"{name}_")
    return function


def _name(command: str) -> str:
    """Return the name of the module and of the function of ``command``."""
    return command.replace("-", "_")


def overview() -> str:
    """The text of `modbench --help`."""
    about = {command: _first_sentence(command) for command in COMMANDS}
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {sentence}" for command, sentence in about.items()]
    return "\n".join(
        [
            "usage: modbench COMMAND [...]",
            "",
            "Compares routing schemes for language models at equal compute.",
            "",
            *lines,
            "",
            "Options and an example of a command: modbench COMMAND --help",
            "Pages of the documentation: modbench docs. The version: modbench --version.",
        ]
    )


def _first_sentence(command: str) -> str:
    """The first sentence of the help of ``command``."""
    name = _name(command)
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_bytes())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    words = next(ast.get_docstring(f) or "" for f in functions if f.name.rstrip("_") == name)
    return " ".join(re.split(r"(?<=\.)\s", words, maxsplit=1)[0].split())
