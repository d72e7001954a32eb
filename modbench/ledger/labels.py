"""Labels of our own for what a model computes: which layer, which component.

A label holds for the forward ops inside it, for the recompute of them, and for their backward ops, which
run long after: autograd numbers the nodes it makes, and a label remembers the numbers made inside it.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from modbench.ledger.ledger import OUTSIDE


class Listener(Protocol):
    """A counter that follows the labels."""

    def open(self, label: "Label | None", pairs: Any = None) -> None: ...

    def close(self) -> None: ...


#: The counters at work, the innermost last.
active: list[Listener] = []


@dataclass(frozen=True)
class Label:
    """A layer's component."""

    layer: int = OUTSIDE
    component: str = "other"


class component:  # noqa: N801  a context manager, named as it reads: with component("mlp", layer)
    """``with component("mlp", layer):`` what runs inside belongs to that component of that layer."""

    def __init__(self, name: str, layer: int = OUTSIDE) -> None:
        self.label = Label(layer, name)

    def __enter__(self) -> None:
        for counter in active:
            counter.open(self.label)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for counter in active:
            counter.close()


class attending:  # noqa: N801
    """``with attending(pairs):`` the matmuls inside are attention written out, under the label that
    holds there, and need ``pairs`` of the query-key pairs that they compute."""

    def __init__(self, pairs: Any) -> None:
        self._pairs = pairs

    def __enter__(self) -> None:
        for counter in active:
            counter.open(None, self._pairs)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for counter in active:
            counter.close()
