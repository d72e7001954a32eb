"""Counts the first training step, before it is taken, and the last one, after it: the budget must be
charged for what a step computes, and the audit sees only the trained model."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

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
        """Run ``passes``, the forward and backward pass of step ``number``, under the counter, and
        compare with the ledger of ``load`` as it was routed. Training is unchanged, to the bit."""
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
    for padding in (False, True):
        ledger = model.loss_ledger(replace(load, counts=counts, padding=padding))
        for convention in seen_conventions(next(model.parameters()).device):
            if off := ledger.total(convention) - counter.under(convention):
                return off
    return 0
