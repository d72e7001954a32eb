"""The steps of a cell, one per file: ``modbench/sweep/steps/NAME.py`` holds the function ``NAME``.

A step takes the model and the `modbench.sweep.cell.CellRun` and returns metrics by their names in
`modbench.records.metrics`. A suite chooses steps with ``[measure] steps``. Imports no torch.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from modbench.errors import UserError, known_names

Step = Callable[[Any, Any], dict[str, Any]]


def step_names() -> list[str]:
    """Names of all steps, without importing any."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check_steps(where: str, names: tuple[str, ...]) -> None:
    """Check the ``steps`` of a suite. Raises UserError: an unknown or repeated name, or ``train`` is
    missing or comes after a step that needs the trained model; the sentence starts with ``where``."""
    for name in names:
        if name not in step_names():
            raise UserError(
                f"{where} steps names '{name}', which is not known; {known_names(name, step_names())}"
            )
        if names.count(name) > 1:
            raise UserError(f"{where} steps names '{name}' twice; remove one")
    if "train" not in names or any(name != "audit" for name in names[: names.index("train")]):
        raise UserError(
            f"{where} steps is {list(names)}; 'train' must be there, and only 'audit' may come before it"
        )


def step(name: str) -> Step:
    """The function of step ``name``. Raise a `UserError` if its file has none of this name."""
    found: Step | None = getattr(importlib.import_module(f"{__name__}.{name}"), name, None)
    if found is None:
        raise UserError(f"modbench/sweep/steps/{name}.py has no function '{name}'; add it")
    return found
