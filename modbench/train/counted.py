"""Counts the first and the last training step: the budget must be charged for what a step computes.

The audit sees only the trained model; a router may compute more at the start of training. The first step
is counted before it is taken, the last one after: only then is it known to be the last.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from modbench.counting.counter import FlopCounter, seen_conventions
from modbench.counting.restore_state import untouched
from modbench.ledger import Counts, Workload
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder
from modbench.routing.plugin_fault import raised
from modbench.train.out_of_memory import failed_allocation


@dataclass
class CountedSteps:
    """Results of counting a run's first and last step. Steps are numbered from 1."""

    counted: int = 0  #: steps counted
    unseen: int = 0  #: steps that ran out of memory under the counter
    wrong: dict[int, str] = field(default_factory=dict)  #: by step: how the ledger differs

    def count(
        self, number: int, model: RoutedDecoder, load: Workload, passes: Callable[[], Context]
    ) -> None:
        """Run ``passes``, the forward and backward pass of step ``number``, under the counter, compare
        with the ledger of ``load`` as it was routed, and restore the model. Training is unchanged, to
        the bit."""
        try:
            with untouched(model, train=True), FlopCounter() as counter:
                context = passes()
            off = _ledger_minus_counter(model, load, context.trace.counts, counter)
        # An op without a formula, or an error of the router's code: it goes to the record.
        except Exception as error:
            if failed_allocation(error) is not None:
                self.unseen += 1
            else:
                self.wrong[number] = f"training step {number} {raised(error, remedy='')}"
            return
        self.counted += 1
        if off:
            self.wrong[number] = f"{off:+d} in training step {number}"

    def figure(self) -> str:
        """All differences in one line; empty if there are none."""
        return ", ".join(self.wrong.values())


def _ledger_minus_counter(
    model: RoutedDecoder, load: Workload, counts: Counts, counter: FlopCounter
) -> int:
    """The first difference between the ledger and ``counter``, over conventions; 0 if there is none. A
    training batch has no padding, so FLOPs charged and FLOPs dispatched are the same."""
    differences = (
        model.loss_ledger(
            Workload(lengths=load.lengths, phase="train", counts=counts, padding=padding)
        ).total(convention)
        - counter.under(convention)
        for padding in (False, True)
        for convention in seen_conventions(next(model.parameters()).device)
    )
    return next(filter(None, differences), 0)
