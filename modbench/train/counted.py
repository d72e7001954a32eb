"""Training steps under the counter: what the budget is charged for a step is what the step runs.

The audit asks the trained model. What a router spent earlier it can't see: one may let in all tokens
while it warms up, or state its FLOPs otherwise while it trains, and train for longer than the others.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor

from modbench.counting.counter import FlopCounter, seen_conventions
from modbench.counting.restore_state import SavedState
from modbench.ledger import Counts, Workload
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder
from modbench.train.out_of_memory import failed_allocation

Step = tuple[Tensor, Context]


@lru_cache(maxsize=1)
def _drawn(seed: int, first: int) -> int:
    """One of the steps after ``first``, up to 256 times as many."""
    return random.Random(f"{seed} {first}").randrange(first + 1, 256 * first)


@dataclass
class CountedSteps:
    """Counts a few steps of a run: the first, the 256th and so on, by powers of 256, and one more
    between two of those, which ``seed`` draws. The audit asks what the last one left. Steps are numbered
    from 1.

    Counting changes no result. A step that is compiled would have to run as written to be counted, which
    differs by rounding: the same batch is taken beside it, and no parameter or buffer keeps a trace of
    that.
    """

    seed: int
    counted: int = 0  #: steps of which it is known whether the ledger is right
    raised: int = 0  #: steps that raised under the counter, the unseen ones aside
    unseen: int = 0  #: steps that memory didn't hold under the counter
    wrong: dict[int, str] = field(default_factory=dict)  #: what is off, by the step
    _ran: tuple[int, int] = (0, 0)  #: the step counted last, and what it ran

    def due(self, number: int) -> bool:
        """Whether step ``number`` is one that is counted."""
        first = 256 ** ((number.bit_length() - 1) // 8)
        return number in (first, _drawn(self.seed, first))

    def taken(self, number: int, model: RoutedDecoder, load: Workload, take: Callable[[], Step]) -> Step:
        """``take()``, counted. A step that raises under the counter is taken again without it: where
        memory did not hold it, that was the counter's fault or a passing one."""
        saved = SavedState(model)
        try:
            with FlopCounter() as counter:
                step = take()
        except Exception as error:  # an op without a formula, say; without the counter it may run
            saved.restore()
            self._lost(number, error)
        else:
            self._hold(number, model, load, step[1].trace.counts, counter)
            return step
        return take()

    def beside(
        self, number: int, model: RoutedDecoder, load: Workload, passes: Callable[[], Step]
    ) -> None:
        """Count ``passes()``, forward and backward, and undo what it did."""
        saved = SavedState(model)
        try:
            with FlopCounter() as counter:
                _, context = passes()
        except Exception as error:
            self._lost(number, error)
        else:
            self._hold(number, model, load, context.trace.counts, counter)
        finally:
            saved.restore()

    def _lost(self, number: int, error: Exception) -> None:
        """Step ``number`` raised ``error`` under the counter: of what it runs nothing is known."""
        if failed_allocation(error) is not None:
            self.unseen += 1
        else:
            self.raised += 1
            self._raised(number, error)

    def _raised(self, number: int, error: Exception) -> None:
        said = " ".join(str(error).split())[:200]
        self.wrong[number] = f"training step {number} raised {type(error).__name__}: {said}"

    def _hold(
        self, number: int, model: RoutedDecoder, load: Workload, counts: Counts, counter: FlopCounter
    ) -> None:
        """A training batch has no padding: what is charged and what is dispatched are the same."""
        self.counted += 1
        self._ran = (number, counter.total_model)
        try:
            for padding in (False, True):
                stated = model.loss_ledger(
                    Workload(lengths=load.lengths, phase="train", counts=counts, padding=padding)
                )
                for convention in seen_conventions(next(model.parameters()).device):
                    off = stated.total(convention) - counter.under(convention)
                    if off:
                        self._off(number, off)
        except Exception as error:  # a router's own code runs here
            self._raised(number, error)

    def charged(self, number: int, flops: int) -> None:
        """What the budget was charged for step ``number``, convention ``model``."""
        if self._ran[0] == number and flops != self._ran[1]:
            self._off(number, flops - self._ran[1])

    def _off(self, number: int, flops: int) -> None:
        self.wrong.setdefault(number, f"{flops:+d} in training step {number}")

    def figure(self) -> str:
        """What was off; empty if nothing was."""
        found = list(self.wrong.values())
        known = self.counted + self.raised
        more = f" and {len(found) - 3} more of {known}" if len(found) > 3 else ""
        return ", ".join(found[:3]) + more

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        numbers = {"counted": self.counted, "raised": self.raised, "unseen": self.unseen}
        return numbers | {"wrong": dict(self.wrong)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.counted, self.raised, self.unseen = state["counted"], state["raised"], state["unseen"]
        self.wrong = dict(state["wrong"])
