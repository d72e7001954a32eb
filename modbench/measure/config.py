"""The [measure] table of a suite. Imports no torch."""

from dataclasses import dataclass

from modbench.errors import UserError, known_names
from modbench.measure.tasks import CHANCE


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Measurements of a cell: steps, held-out text, timing and downstream tasks. Raises UserError: a
    field is out of range, with the value and what would be right."""

    #: what a cell does, in this order: the files of modbench/sweep/steps
    steps: tuple[str, ...] = ("audit", "train", "heldout", "downstream", "memory", "timing")
    heldout_tokens: int = 65_536  #: held-out tokens of the final loss
    curve_tokens: int = 8_192  #: held-out tokens of each point of the learning curve
    timing_repeats: int = 12  #: timed forward passes and training steps
    downstream: tuple[str, ...] = ("modbench_cloze",)  #: our tasks, scored by lm-eval
    downstream_limit: int | None = None  #: items per task; None: all

    def __post_init__(self) -> None:
        # JSON specifications hold a list.
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "downstream", tuple(self.downstream))
        for task in self.downstream:
            if task not in CHANCE:
                raise UserError(f"downstream task '{task}' is not known; {known_names(task, CHANCE)}")
        for name in ("heldout_tokens", "curve_tokens", "downstream_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"measure {name} is {value}; it must be 1 or more")
        if self.timing_repeats < 3:
            raise UserError(
                f"measure timing_repeats is {self.timing_repeats}; it must be 3 or more, "
                "for a median and an interquartile range"
            )
