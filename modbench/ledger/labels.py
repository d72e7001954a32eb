"""Labels for what a model computes: which layer, which component.

A label applies to the forward ops inside it, to their recomputation, and to their backward ops, which
run later: autograd numbers the nodes that it creates, and a counter remembers the numbers created under
a label.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from modbench.ledger.ledger import OUTSIDE

#: Returns the counters at work in the calling thread, the innermost last. `modbench.counting` replaces
#: it while a counter is at work.
listeners: Callable[[], Sequence[Any]] = tuple


@dataclass(frozen=True)
class Label:
    """A layer's component."""

    layer: int = OUTSIDE
    component: str = "other"


class component:  # noqa: N801  a context manager, named as it reads: with component("mlp", layer)
    """Context manager: assigns what runs inside to component ``name`` of ``layer``."""

    def __init__(self, name: str, layer: int = OUTSIDE) -> None:
        self._label = Label(layer, name)

    def __enter__(self) -> None:
        self._opened = listeners()
        for counter in self._opened:
            counter.open(self._label)

    def __exit__(self, *error: object) -> None:
        for counter in self._opened:
            counter.close()
