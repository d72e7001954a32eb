"""Counts three training steps, and asks the ledger again for what it charged: the budget must be charged
for what a step computes, and the audit sees only the trained model.

The first step is counted before it is taken, the last one after it, and one in between, which the run's
seed draws, before it is taken: a router can't know it. Of a step with several micro-batches, the first
one of the first process is counted and charged again.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from modbench.counting.counter import FlopCounter, seen_conventions
from modbench.counting.restore_state import untouched
from modbench.ledger import Counts, Workload
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.routing.plugin_fault import raised
from modbench.train.config import TrainConfig
from modbench.train.out_of_memory import failed_allocation

#: Charges that are asked for again. A ledger that answers differently for one step in ten is found in
#: 29 of 30 runs; asking costs as much as charging 32 steps.
_KEPT = 32
#: Steps that a sentence names; a number stands for the others.
_NAMED = 3


@dataclass
class CountedSteps:
    """Results of counting steps of a run. Steps are numbered from 1."""

    counted: int = 0  #: steps counted
    unseen: int = 0  #: steps that ran out of memory under the counter
    drawn: int = 0  #: the step between the first and the last one that is counted; 0: not yet taken
    wrong: dict[int, str] = field(default_factory=dict)  #: by step: how the ledger differs

    def draws(self, seed: int, number: int, done: float, left: int) -> bool:
        """Return True if step ``number`` is the drawn one: the first at which the fraction ``done`` of
        the run, of ``left`` steps, reaches a number drawn by ``seed``. It is neither the first step nor
        the last one; a run of two steps has none."""
        if self.drawn or number == 1 or left < 2:
            return False
        if left == 2 or done >= random.Random(f"counted step, seed {seed}").random():
            self.drawn = number
        return bool(self.drawn)

    def count(
        self, number: int, model: LanguageModel, load: Workload, passes: Callable[[], Trace]
    ) -> None:
        """Run ``passes``, a forward and backward pass of step ``number``, under the counter, and
        compare with the ledger of ``load`` as it was routed. Training is unchanged, to the bit."""
        try:
            with untouched(model, train=True), FlopCounter() as counter:
                trace = passes()
            off = _ledger_minus_counter(model, load, trace.counts, counter)
        # An op without a formula, or an error of the router's code: it goes to the record.
        except Exception as error:
            if failed_allocation(error) is None:
                self.wrong[number] = f"training step {number} {raised(error, remedy='')}"
            else:
                self.unseen += 1
        else:
            self.counted += 1
            if first := next(filter(None, off), 0):
                self.wrong[number] = f"{first:+d} in training step {number}"

    def figure(self) -> str:
        """All differences in one line; empty if there are none."""
        return ", ".join(self.wrong.values())


@dataclass
class Charges:
    """FLOPs that the ledger charged for the routing counts of steps: a random sample of the steps taken,
    at most `_KEPT`."""

    kept: list[dict[str, Any]] = field(default_factory=list)  #: step, counts and FLOPs

    def add(self, seed: int, step: int, counts: Counts, flops: int) -> None:
        """Add the charge of ``step`` to the sample, or leave it out. The draws depend on ``seed`` and
        steps alone: a resumed run has the same sample."""
        charge = {"step": step, "counts": dict(counts), "flops": flops}
        if len(self.kept) < _KEPT:
            self.kept.append(charge)
            return
        index = random.Random(f"charge of step {step}, seed {seed}").randrange(step)
        if index < _KEPT:
            self.kept[index] = charge

    def asked_again(self, model: LanguageModel, load: Workload) -> str:
        """Ask the ledger of ``model`` again for each charge of the sample. Return the differences in one
        line; empty if there are none."""
        wrong = []
        for charge in sorted(self.kept, key=lambda charge: charge["step"]):
            try:
                flops = model.ledger(replace(load, counts=charge["counts"])).total("model")
            except Exception as error:  # of the router's code: it goes to the record
                return f"training step {charge['step']} {raised(error, remedy='')}"
            if off := flops - charge["flops"]:
                wrong.append(f"{off:+d} for training step {charge['step']}")
        more = len(wrong) - _NAMED
        return ", ".join(wrong[:_NAMED]) + (f", and for {more} more" if more > 0 else "")


def _ledger_minus_counter(
    model: LanguageModel, load: Workload, counts: Counts, counter: FlopCounter
) -> list[int]:
    """The differences between the ledger and ``counter``, over conventions. A training batch has no
    padding, so FLOPs charged and FLOPs dispatched are the same."""
    differences = []
    for padding in (False, True):
        ledger = model.loss_ledger(replace(load, counts=counts, padding=padding))
        for convention in seen_conventions(next(model.parameters()).device):
            differences.append(ledger.total(convention) - counter.under(convention))
    return differences


def flops_per_step(model: LanguageModel, train: TrainConfig) -> int:
    """Nominal FLOPs of one training step, convention ``model``."""
    load = Workload.uniform(train.rows, train.sequence, "train")
    return train.ranks * train.micro_batches * model.ledger(load).total("model")
