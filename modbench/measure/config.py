"""The [measure] table of a suite. Imports no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modbench.errors import UserError
from modbench.evaluate.tasks.names import check_names

#: Fields that cells lack while they are None: older cells keep their keys.
_LATER = ("downstream_fewshot", "downstream_data", "downstream_include", "downstream_checkpoints")


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Measurements of a cell: steps, held-out text, timing and downstream tasks. Raises UserError: a
    field is out of range, with the value and what would be right."""

    #: steps of a cell, in this order; train is required, and only audit may come before it
    steps: tuple[str, ...] = ("audit", "train", "heldout", "downstream", "memory", "timing")
    heldout_tokens: int = 65_536  #: held-out tokens of the final loss
    curve_tokens: int = 8_192  #: held-out tokens of each point of the learning curve
    timing_repeats: int = 12  #: timed forward passes and training steps, 3 or more
    #: tasks, groups and tags of lm-eval and of modbench by name (docs/evaluation.md)
    downstream: tuple[str, ...] = ("modbench_cloze",)
    downstream_limit: int | None = None  #: items per task; None: all
    downstream_fewshot: int | None = None  #: examples before each item; None: as the task says
    #: folder of local files in place of the hub, relative to the working directory; a file there is also
    #: a task of its own; None: the hub
    downstream_data: str | None = None
    #: folder of a user's own YAML files of lm-eval tasks, relative to the working directory
    downstream_include: str | None = None
    #: points at the end of the learning curve that are scored, 2 or more, the trained model included,
    #: for the signal-to-noise ratio; None: the trained model only
    downstream_checkpoints: int | None = None

    def __post_init__(self) -> None:
        # JSON specifications hold a list.
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "downstream", tuple(self.downstream))
        for task in self.downstream:
            if self.downstream.count(task) > 1:
                raise UserError(f"measure downstream names '{task}' twice; remove one")
        check_names(self.downstream, include=self.include, data_dir=self.data_dir)
        for name in ("heldout_tokens", "curve_tokens", "downstream_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"measure {name} is {value}; it must be 1 or more")
        if self.downstream_fewshot is not None and self.downstream_fewshot < 0:
            raise UserError(
                f"measure downstream_fewshot is {self.downstream_fewshot}; it must be 0 or more"
            )
        if self.downstream_checkpoints is not None and self.downstream_checkpoints < 2:
            raise UserError(
                f"measure downstream_checkpoints is {self.downstream_checkpoints}; it must be 2 or more"
            )
        if self.timing_repeats < 3:
            raise UserError(
                f"measure timing_repeats is {self.timing_repeats}; it must be 3 or more, "
                "for a median and an interquartile range"
            )

    @property
    def data_dir(self) -> Path | None:
        """The folder of local files for standard tasks."""
        return None if self.downstream_data is None else Path(self.downstream_data)

    @property
    def include(self) -> Path | None:
        """The folder of a user's own tasks."""
        return None if self.downstream_include is None else Path(self.downstream_include)

    def as_cell(self) -> dict[str, Any]:
        """Return the fields as a cell states them."""
        stated = asdict(self)
        return {name: value for name, value in stated.items() if value is not None or name not in _LATER}
