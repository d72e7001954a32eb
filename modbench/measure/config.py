"""The [measure] table of a suite. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modbench.errors import UserError
from modbench.evaluate.tasks.names import check_names
from modbench.typed import Count, Natural, UpTo1

Step = Literal["audit", "train", "heldout", "downstream", "memory", "timing"]
#: Names of what a suite can ask for, with their meanings for the docs. ``train`` is always among it.
STEPS: dict[Step, str] = {
    "audit": "Audit of the scheme. It runs once, is stored as a record of its own, and runs of other "
    "budgets and seeds refer to it.",
    "train": "Train to the budget, and check cheaply: the FLOPs of the first, the last and one random "
    "training step, and the causality and batch invariance of the trained weights.",
    "heldout": "Validation loss under both selection rules, routing statistics, KV cache.",
    "downstream": "Scores on lm-eval's tasks, of the trained model and the untrained one.",
    "memory": "Peak memory of a training step, once per scheme and shape.",
    "timing": "Wall time of a forward pass and of a training step, by one process per scheme and shape; "
    "`modbench time` adds more processes.",
}


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Measurements of a suite: held-out text, downstream tasks, time and memory. Raises UserError: a
    field is out of range, with the value and what would be right."""

    #: what is done; train is required
    steps: tuple[Step, ...] = tuple(STEPS)
    heldout_tokens: Count | Literal["all"] = 65_536  #: held-out tokens of the final loss
    curve_tokens: Count = 8_192  #: held-out tokens of each point of the learning curve
    #: tasks, groups and tags of lm-eval and of modbench by name (`modbench docs evaluation`)
    downstream: tuple[str, ...] = ("modbench_cloze",)
    downstream_limit: Count | None = None  #: items per task; None: all
    downstream_fewshot: Natural | None = None  #: examples before each item; None: as the task says
    #: folder of a user's own YAML files of lm-eval tasks, relative to the working directory; their
    #: Python is run
    downstream_include: str | None = None
    #: rising shares of a run, the last one 1, at which the routing on one fixed held-out batch is
    #: recorded (`modbench docs routing_over_training`); empty: none
    routing_points: tuple[UpTo1, ...] = ()

    def __post_init__(self) -> None:
        for key in ("steps", "downstream"):
            names = getattr(self, key)
            for name in names:
                if names.count(name) > 1:
                    raise UserError(f"{key} names '{name}' twice; remove one")
        if "train" not in self.steps:
            raise UserError(f"steps is {list(self.steps)}; 'train' must be there")
        points = self.routing_points
        if points and (list(points) != sorted({*points}) or points[-1] != 1):
            raise UserError(f"routing_points is {list(points)}; they must rise, and the last one be 1")
        check_names(self.downstream, self.include)

    @property
    def include(self) -> Path | None:
        """The folder of a user's own tasks."""
        return None if self.downstream_include is None else Path(self.downstream_include)

    def wanted(self) -> list[tuple[str, dict[str, Any]]]:
        """Measurements of the weights of each run: kinds, and the settings that alter the result."""
        measurements: list[tuple[str, dict[str, Any]]] = []
        if "heldout" in self.steps:
            tokens = {"heldout_tokens": self.heldout_tokens, "curve_tokens": self.curve_tokens}
            measurements.append(("heldout", tokens))
        if "downstream" in self.steps:
            measurements += [("downstream", self.task(name)) for name in self.downstream]
        if self.routing_points:
            measurements.append(("routing", {"points": [*map(float, self.routing_points)]}))
            measurements.append(("rules", {}))
        return measurements

    def task(self, name: str) -> dict[str, Any]:
        """The settings of the task ``name``; those that are None are left out."""
        settings = {
            "limit": self.downstream_limit,
            "fewshot": self.downstream_fewshot,
            "include": self.downstream_include,
        }
        return {"task": name} | {key: value for key, value in settings.items() if value is not None}
