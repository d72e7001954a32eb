"""The [train] table of a suite. Imports no torch."""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Literal

from modbench.train.schedule import Kind, Schedule
from modbench.typed import Count, NotNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training settings besides the schedule. Ranges are checked where a suite is read."""

    sequence: Count = 256  #: tokens per sequence
    batch: Count = 8  #: sequences per step
    #: sequences per forward and backward pass; a step adds up their gradients. By default the batch, or
    #: a process's part of it
    micro_batch: Count | None = None
    #: `{ data = N }`: processes that train a run together, each with its sequences of the batch; records
    #: until November 2026 also have ``shard`` and ``expert``
    parallel: dict[Literal["data", "shard", "expert"], Count] | None = None
    #: keep only the input of each layer and run the layer again in the backward pass
    recompute: bool = False
    #: muon: `torch.optim.Muon` for the matrices of the blocks, AdamW for all else
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Positive = 3e-3  #: peak learning rate
    #: peak learning rate of Muon; by default learning_rate, since its updates are as large as AdamW's
    muon_learning_rate: Positive | None = None
    #: weight decay of matrices; vectors and the embedding have none
    weight_decay: NotNegative = 0.1
    beta1: Share = 0.9  #: decay of AdamW's first moment
    beta2: Share = 0.95  #: decay of AdamW's second moment
    clip: Positive = 1.0  #: largest norm of the gradient; larger ones are scaled down
    #: of matmuls; auto: bfloat16 on GPUs and on CPUs with bfloat16 instructions
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  #: compile training steps; auto: on a GPU
    evaluations: Count = 8  #: points of the learning curve
    checkpoint_seconds: Positive = 30.0  #: seconds between checkpoints

    def as_json(self) -> dict[str, Any]:
        """The fields that alter weights, as a record holds them."""
        plain = dict[str, Any]()  # in place of values that mean the default
        if self.micro_batches == 1:
            plain["micro_batch"] = None
        if self.ranks == 1:
            plain["parallel"] = None
        if self.optimizer != "muon" or self.muon_learning_rate == self.learning_rate:
            plain["muon_learning_rate"] = None
        return _stated(replace(self, **plain), _ALWAYS, ALTER_NOTHING)

    @property
    def of_a_step(self) -> "TrainConfig":
        """The settings of a training step in one process, of that process's sequences: those that alter
        neither its time nor its memory have their defaults."""
        plain = {field.name: field.default for field in fields(TrainConfig) if field.name in _NO_STEP}
        rows = None if self.micro_batches == 1 else self.rows
        share = {"batch": self.batch // self.ranks, "micro_batch": rows}
        return TrainConfig(**_values(self) | plain | share)

    def step_json(self) -> dict[str, Any]:
        """The fields of `of_a_step`, as a record holds them."""
        return _stated(self.of_a_step, SIZE, _NO_STEP)

    @property
    def ranks(self) -> int:
        """Processes that train a run together."""
        return prod((self.parallel or {}).values())

    @property
    def rows(self) -> int:
        """Sequences of a forward and backward pass."""
        return self.micro_batch or self.batch // self.ranks

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of a step, in each process."""
        return self.batch // self.ranks // self.rows


#: Fields that records have always stated; they state others where they differ from the default, so that
#: keys stay when a field is added.
_ALWAYS = (
    *("sequence", "batch", "learning_rate", "weight_decay", "beta1", "beta2"),
    *("clip", "precision", "compile"),
)
SIZE = ("sequence", "batch", "precision")  #: those of the step of a timing record
#: Fields that don't alter the weights: a run with others is the same run.
ALTER_NOTHING = ("evaluations", "checkpoint_seconds")
#: Fields that don't alter time or memory of a step in one process; [time] has a ``compile`` of its own.
_NO_STEP = (
    *(*ALTER_NOTHING, "learning_rate", "muon_learning_rate", "weight_decay", "beta1", "beta2"),
    *("clip", "compile", "parallel"),
)


def _values(train: TrainConfig) -> dict[str, Any]:
    return {field.name: getattr(train, field.name) for field in fields(TrainConfig)}


def _stated(train: TrainConfig, always: Collection[str], never: Collection[str]) -> dict[str, Any]:
    """The fields of ``train`` that are not its defaults, and those of ``always``; none of ``never``."""
    return {
        field.name: getattr(train, field.name)
        for field in fields(TrainConfig)
        if field.name in always
        or (field.name not in never and getattr(train, field.name) != field.default)
    }


@dataclass(frozen=True, kw_only=True)
class TrainTable(TrainConfig):
    """The [train] table: the settings and those of the schedule, whose budget [sweep] gives."""

    #: `{ data = N }`: processes that train a run together, each with its sequences of the batch
    parallel: dict[Literal["data"], Count] | None = None  # type: ignore[assignment]
    #: learning rate after the warm-up: a cosine, or constant with a linear decay at the end (wsd)
    schedule: Kind = "cosine"
    warmup: Share = 0.1  #: fraction of the budget in which the learning rate rises linearly
    final_learning_rate: Share = 0.1  #: fraction of the peak at the end
    decay: Share = 0.2  #: wsd: fraction of the budget in which the learning rate decays

    def config(self) -> TrainConfig:
        """The settings without the schedule."""
        return TrainConfig(**_values(self))

    def schedule_of(self, budget: int) -> Schedule:
        """The schedule with ``budget``. Raises UserError: see `Schedule`."""
        return Schedule(
            kind=self.schedule,
            budgets=(budget,),
            warmup=self.warmup,
            final_learning_rate=self.final_learning_rate,
            decay=self.decay,
        )
