"""The [train] table of a suite. Imports no torch."""

from dataclasses import dataclass, fields
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
    learning_rate: Positive = 3e-3  #: peak learning rate
    #: AdamW's weight decay of matrices; vectors and the embedding have none
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
        names = [field.name for field in fields(self) if field.name not in _ALTER_NOTHING]
        stated = {name: getattr(self, name) for name in names}
        if self.micro_batches == 1:
            del stated["micro_batch"]
        if not self.recompute:
            del stated["recompute"]
        if self.ranks == 1:
            del stated["parallel"]
        return stated

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


#: Fields that don't alter the weights: a run with others is the same run.
_ALTER_NOTHING = ("evaluations", "checkpoint_seconds")


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
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})

    def schedule_of(self, budget: int) -> Schedule:
        """The schedule with ``budget``. Raises UserError: see `Schedule`."""
        return Schedule(
            kind=self.schedule,
            budgets=(budget,),
            warmup=self.warmup,
            final_learning_rate=self.final_learning_rate,
            decay=self.decay,
        )
