"""Training to a budget of FLOPs, resumable to the bit.

B sequences, T tokens.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modbench.data.batches import Batches
from modbench.ledger import Counts, Workload
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.train import checkpoint
from modbench.train.compiled import compiled, eager
from modbench.train.config import TrainConfig
from modbench.train.counted import Charges, CountedSteps, flops_per_step
from modbench.train.optimizer import build_optimizer
from modbench.train.ranks import ALONE, Ranks
from modbench.train.schedule import Schedule
from modbench.train.step import parts_of, passes, training_step

#: Seconds between two events of progress: more often than a reader notices would slow short steps.
PROGRESS_SECONDS = 0.5
#: Most of a run's time that checkpoints take, where one takes `_CHEAP` seconds or more. At first it is
#: estimated from the bytes of weights and two moments, and bytes written in a second.
SHARE, _CHEAP, _BYTES, _WRITTEN = 0.05, 0.5, 12, 5e8
#: Numbers of a run that its checkpoint holds.
_PLAIN = ("step", "flops", "each", "curve")


class DivergedError(Exception):
    """A loss or a weight is not finite."""


class StoppedError(Exception):
    """The run was asked to stop; its state is saved."""


@dataclass(frozen=True, kw_only=True)
class End:
    """FLOPs, steps and tokens of a run at the end of ``budget``."""

    budget: int
    steps: int
    tokens: int
    flops: int  #: of the routing that took place, convention ``model``
    flops_nominal: int  #: of nominal routing, convention ``model``


@dataclass(frozen=True, kw_only=True)
class Trained:
    """FLOPs, steps and tokens that a run spent, and its learning curve."""

    end: End
    counted_steps: int  #: steps compared with the counter
    unseen_steps: int  #: steps that ran out of memory under the counter
    miscounted: str  #: where the ledger differs from the counter; empty if nowhere
    recharged: str  #: where the ledger, asked again, differs from what it charged; empty if nowhere
    curve: list[dict[str, Any]]


class _Run:
    """The state of a training run between two steps."""

    def __init__(
        self,
        model: LanguageModel,
        batches: Batches,
        train: TrainConfig,
        schedule: Schedule,
        dtype: torch.dtype,
        clock: Callable[[], float],
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.clock = clock
        self.since = clock()
        self.earlier = 0.0  #: seconds that other processes have trained it
        self.model = model
        self.batches = batches
        self.dtype = dtype
        self.train, self.schedule = train, schedule
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, train)
        losses = compiled(eager(model), model, train.compile, recompute=train.recompute)
        self.losses = ranks.together(losses, model)
        #: of one micro-batch
        self.load = Workload.uniform(train.rows, train.sequence, "train", checkpoint=train.recompute)
        self.nominal = flops_per_step(model, train)
        self.step = 0
        self.flops = 0
        self.curve = list[dict[str, Any]]()
        self.each = self.nominal  #: FLOPs of the last step, the estimate for the next one
        self.counts, self.charges = CountedSteps(), Charges()
        #: realised routing and FLOPs of this process's micro-batches of the last step
        self._routed: Sequence[Counts] = []
        self._flops: list[int] = []
        self._ahead: dict[int, tuple[Tensor, Tensor]] = {}  #: the next batch, by step

    def steps_left(self) -> int:
        """Steps that the rest of the budget buys; below 1 at the end."""
        return (self.schedule.budget - self.flops) // self.each

    def end(self) -> End:
        """What the budget has spent."""
        return End(
            budget=self.schedule.budget,
            steps=self.step,
            tokens=self.tokens,
            flops=self.flops,
            flops_nominal=self.step * self.nominal,
        )

    def take_step(self, left: int, stop: Callable[[], bool]) -> tuple[float, bool]:
        """Take one of ``left`` steps that are expected until the end of the budget; return its loss, and
        True if a process was asked to ``stop``."""
        done = (self.flops + self.each) / (self.flops + left * self.each)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(group["peak"], done)
        seed = self.batches.seed
        number = self.step + 1
        if number == 1 or self.counts.draws(seed, number, done, left):
            self.count(number)  # the other processes wait in their first exchange
        batch = self.batch(self.step)
        step = partial(training_step, self.model, self.optimizer, self.train, batch, self.dtype)
        loss, traces = step(losses=self.losses, ranks=self.ranks)
        if self.device.type == "cuda":  # while the GPU works
            self._ahead = {number: self.batch(number)}
        value, routed = Trace.read(loss, traces)
        if routed != self._routed:
            loads = [replace(self.load, counts=counts) for counts in routed]
            self._flops = [self.model.ledger(load).total("model") for load in loads]
            self._routed = routed
        self.each, stops = self.ranks.sums([sum(self._flops), stop()])
        self.charges.add(seed, number, routed[0], self._flops[0])
        self.flops += self.each
        self.step += 1
        return value, stops > 0

    def count(self, number: int) -> None:
        """Count the passes of the first micro-batch of step ``number`` (from 1), eager, with the current
        weights."""
        if not self.ranks.leads:
            return
        losses, part = eager(self.model), parts_of(self.batch(number - 1), self.train)[0]
        run = partial(passes, losses, part, self.dtype, self.train)
        self.counts.count(number, self.model, self.load, lambda: run()[1])

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of step ``step`` (from 0) for this process, on the model's device."""
        if step in self._ahead:
            return self._ahead[step]
        parts = self.ranks.part(self.batches.step(step))
        if self.device.type == "cuda":
            parts = parts[0].pin_memory(), parts[1].pin_memory()
        inputs_BT, targets_BT = (part.to(self.device, non_blocking=True) for part in parts)
        return inputs_BT, targets_BT

    @property
    def tokens(self) -> int:
        return self.step * self.train.batch * self.train.sequence

    def add_point(self, train_loss: float, evaluate: Callable[[LanguageModel], float]) -> dict[str, Any]:
        """Add a point to the learning curve and return it. Raise a `DivergedError` if a weight or the
        held-out loss is not finite."""
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
            raise DivergedError(f"a weight is not finite after step {self.step}")
        heldout_loss = evaluate(self.model)
        self.model.train()
        if not math.isfinite(heldout_loss):
            raise DivergedError(f"the held-out loss is {heldout_loss} after step {self.step}")
        point: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "flops": self.flops}
        point |= {"train_loss": train_loss, "heldout_loss": heldout_loss}
        self.curve.append(point)
        return point

    def save(self, path: Path, origin: str) -> None:
        """Store the checkpoint at ``path``."""
        if not self.ranks.leads:
            return
        on_gpu = self.device.type == "cuda"
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "gpu_random": torch.cuda.get_rng_state(self.device) if on_gpu else None,
            "counts": asdict(self.counts),
            "charges": asdict(self.charges),
            "origin": origin,
            "seconds": self.earlier + self.clock() - self.since,
            "ranks": self.ranks.count,
            **{name: getattr(self, name) for name in _PLAIN},
        }
        checkpoint.save(path, state)

    def resume(self, path: Path, origin: str) -> None:
        """Continue from the checkpoint at ``path``, if there is one. One that is damaged or of another
        ``origin`` is not used, which standard error says."""
        try:
            state = checkpoint.load(path)
            if state is None:
                return
            if state["origin"] != origin:
                raise checkpoint.DamagedError(f"it is of {state['origin']}, not {origin}")
        except checkpoint.DamagedError as error:
            self.tell(f"{path.name} is not used ({error}): training starts from the beginning")
            return
        if state["ranks"] != self.ranks.count:
            of = f"{path.name} is of {state['ranks']} processes, and {self.ranks.count} go on"
            self.tell(f"{of}: losses may differ by rounding")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if state["gpu_random"] is not None:
            torch.cuda.set_rng_state(state["gpu_random"], self.device)
        self.earlier = state["seconds"]
        self.counts, self.charges = CountedSteps(**state["counts"]), Charges(**state["charges"])
        if state["ranks"] != self.ranks.count:  # charges are of passes with other numbers of sequences
            self.charges = Charges()
        for name in _PLAIN:
            setattr(self, name, state[name])

    def tell(self, sentence: str) -> None:
        """Write ``sentence`` to standard error, of one process."""
        if self.ranks.leads:
            print(sentence, file=sys.stderr)


def train_model(
    model: LanguageModel,
    batches: Batches,
    train: TrainConfig,
    schedule: Schedule,
    *,
    dtype: torch.dtype,
    evaluate: Callable[[LanguageModel], float],
    folder: Path,
    say: Callable[[dict[str, Any]], None],
    at_end: Callable[[], None] = lambda: None,
    watch: Callable[[int, float], None] = lambda step, share: None,
    origin: str = "",
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    ranks: Ranks = ALONE,
) -> Trained:
    """Train until another step would exceed the budget of ``schedule``; continue from the checkpoint in
    ``folder``. ``at_end`` is called once the model is trained.

    A budget pays for realised FLOPs (convention ``model``): a scheme that skips more tokens than its
    options state takes more steps. Learning rate and learning curve follow the fraction of the budget
    that is spent. Three steps are counted (`modbench.train.counted`).

    ``evaluate`` returns the held-out loss for a point of the learning curve. ``say`` receives the events
    ``resumed``, with the step and the seconds of earlier processes, ``step``, every `PROGRESS_SECONDS`,
    and ``point``. ``watch`` is called before the first step of this process and after each one, with the
    steps and the share of the budget so far, 1 at the end. ``origin`` names text and code: a checkpoint
    of another origin is not used. Raise a `DivergedError` if a loss is not finite, or a weight is not at
    a point of the learning curve; a `StoppedError` once ``stop()`` returns True and the state is saved:
    call again to continue. What ``stop()`` raises ends the training without another checkpoint.
    ``ranks``: the processes that train the model together; each calls this with the same arguments, the
    first one writes.
    """
    run = _Run(model, batches, train, schedule, dtype, clock, ranks)
    path = folder / "checkpoint.pt"
    checkpoint.remove_leftovers(folder)
    run.resume(path, origin)
    say({"event": "resumed", "step": run.step, "seconds": run.earlier})
    saved = time.monotonic()
    #: seconds of a checkpoint
    cost = _BYTES * sum(parameter.numel() for parameter in model.parameters()) / _WRITTEN
    reported = 0.0

    def affordable() -> bool:
        return cost < _CHEAP or time.monotonic() - saved >= cost / SHARE

    model.train()
    watch(run.step, run.flops / schedule.budget)
    stopping = sum(ranks.sums([stop()])) > 0
    while (left := run.steps_left()) >= 1:
        if stopping:
            run.save(path, origin)
            raise StoppedError
        expected = run.flops + left * run.each  # FLOPs at the end, if all steps cost as much as the last
        total = run.step + left
        loss, stopping = run.take_step(left, stop)
        if not math.isfinite(loss):
            raise DivergedError(f"the training loss is {loss} at step {run.step} of {total}")
        ends = run.steps_left() < 1
        watch(run.step, 1.0 if ends else run.flops / schedule.budget)
        if ends and run.step > 1:
            run.count(run.step)
        # By the number of points: `expected` varies, so the same fraction may be reached twice.
        reached = train.evaluations * run.flops // expected
        if ends or reached > len(run.curve):
            say({"event": "point", **run.add_point(loss, evaluate)})
        now = time.monotonic()
        if now - reported >= PROGRESS_SECONDS or ends:
            spent = {"flops": run.flops, "budget": schedule.budget, "tokens": run.tokens}
            done = {"phase": "train", "step": run.step, "steps": total, "loss": loss}
            say({"event": "step", **done, **spent})
            reported = now
        if (now - saved >= train.checkpoint_seconds or ends) and affordable() and not stopping:
            run.save(path, origin)
            saved = time.monotonic()
            cost = saved - now
    at_end()
    return Trained(
        end=run.end(),
        counted_steps=run.counts.counted,
        unseen_steps=run.counts.unseen,
        miscounted=run.counts.figure(),
        recharged=run.charges.asked_again(model, run.load),
        curve=run.curve,
    )
