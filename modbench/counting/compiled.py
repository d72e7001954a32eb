"""Runs compiled code uncompiled while a counter is at work: torch.compile hides ops, and the
original program is counted. Code that inductor compiled earlier and that still runs compiled (the
backward pass of a forward pass outside the counter, an exported program) is an error: its fused matmuls
can't be seen.
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from modbench.errors import UserError
from modbench.ledger import labels

_RUNNERS = (
    ("torch._inductor.output_code", "CompiledFxGraph"),
    ("torch._inductor.output_code", "CompiledAOTI"),
    ("torch._inductor.package.package", "AOTICompiledModel"),
    ("torch.export.pt2_archive._package", "AOTICompiledModel"),
)
_WARNING = "torch.compile with fullgraph=True found no compiled frames"


def run_uncompiled(undo: ExitStack) -> None:
    """Disable compiled code in all threads until ``undo`` closes."""
    if "torch._dynamo" in sys.modules:
        _force_eager(undo)
    else:  # nothing is compiled yet, and importing Dynamo takes a second
        replace(undo, torch, "compile", partial(_compile, undo, torch.compile))
    replace(undo, torch, "cond", _taken)
    for module, name in _RUNNERS:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and kind.__call__ is not _refuse:
            replace(undo, kind, "__call__", _refuse)


@torch._disable_dynamo
def _force_eager(undo: ExitStack) -> None:
    if torch.__version__.startswith("2.12."):  # which warns of what is asked for here
        undo.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=_WARNING)
    undo.enter_context(torch.compiler.set_stance("force_eager"))


def _compile(undo: ExitStack, compiles: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Stands in for torch.compile, ``compiles``, whose first call imports Dynamo: what it returns runs
    uncompiled until ``undo`` closes, and compiled after."""
    importlib.import_module("torch._dynamo")  # meanwhile another thread's counter may close
    if torch.compile is not compiles:
        torch.compile = compiles
        _force_eager(undo)
    return compiles(*args, **options)


def replace(undo: ExitStack, owner: Any, name: str, function: Any) -> None:
    """Replace an attribute of ``owner`` until ``undo`` closes."""
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, function)


def _taken(
    pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()
) -> Any:
    """Run torch.cond's taken branch itself, so that its backward pass is that of the branch."""
    return (true_fn if bool(pred) else false_fn)(*operands)


def _refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
    message = (
        "code that inductor compiled before FlopCounter began runs inside it, and its matmuls can't all "
        "be seen; run what it was compiled from inside the counter, the forward pass included"
    )
    counters = labels.listeners()
    raise counters[-1].refusal(message) if counters else UserError(message)
