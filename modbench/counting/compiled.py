"""Runs compiled code uncompiled while a counter is at work: torch.compile hides ops, and the program is
counted as written. Code that inductor compiled earlier and that runs all the same (the backward pass of
a forward pass outside the counter, an exported program) is an error: its fused matmuls can't be seen.
"""

import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch

from modbench.errors import UserError

_RUNNERS = (
    ("torch._inductor.output_code", "CompiledFxGraph"),
    ("torch._inductor.output_code", "CompiledAOTI"),
    ("torch._inductor.package.package", "AOTICompiledModel"),
    ("torch.export.pt2_archive._package", "AOTICompiledModel"),
)


_WARNING = "torch.compile with fullgraph=True found no compiled frames"


class Uncompiled:
    """Disables compiled code from `begin` to `end`, in all threads."""

    def __init__(self) -> None:
        self._stance: Any = None
        self._calls: list[tuple[type, Any]] = []
        self._quiet = ExitStack()

    @torch._disable_dynamo  # which imports Dynamo, before code under the counter does
    def begin(self) -> None:
        if _in_compiled_call():
            raise UserError(
                "FlopCounter can't begin inside a function that torch.compile compiled; enter it around "
                "the call"
            )
        if torch.__version__.startswith("2.12."):  # which warns of what is asked for here
            self._quiet.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=_WARNING)
        self._stance = torch.compiler.set_stance("force_eager")
        self._cond, torch.cond = torch.cond, _taken
        for module, name in _RUNNERS:
            kind = getattr(sys.modules.get(module), name, None)
            if kind is not None and all(kind is not known for known, _ in self._calls):
                self._calls.append((kind, kind.__call__))
                setattr(kind, "__call__", _refuse)  # noqa: B010  mypy knows no other way

    def end(self) -> None:
        for kind, call in self._calls:
            setattr(kind, "__call__", call)  # noqa: B010
        self._calls = []
        torch.cond = self._cond
        self._stance.__exit__(None, None, None)
        self._quiet.close()


def _taken(
    pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()
) -> Any:
    """Run torch.cond's taken branch itself, so that its backward pass is that of the branch."""
    return (true_fn if bool(pred) else false_fn)(*operands)


def _in_compiled_call() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "compile_wrapper":
            return frame.f_globals.get("__name__") == "torch._dynamo.eval_frame"
        frame = frame.f_back
    return False


def _refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise UserError(
        "code that inductor compiled before FlopCounter began runs inside it, and its matmuls can't all "
        "be seen; run what it was compiled from inside the counter, the forward pass included"
    )


UNCOMPILED = Uncompiled()
