"""The [time] table of a suite: the cases of `modbench time`. Imports no torch."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from modbench.errors import UserError
from modbench.typed import Count, Natural, NotNegative

#: Training steps that a GPU takes without a wait between them.
STEPS_IN_A_ROW = 20
#: Balanced routing, whatever the scores of untrained routers.
FORCED_BALANCE = True


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """Cases, and how often each is timed. The forward pass and the training step use [train]'s batch and
    sequence. A decode sample is ``decode_tokens`` consecutive tokens, since a depth-routed layer selects
    only one in several. Ranges are checked where a suite is read. Raises UserError: too few samples for
    an interquartile range."""

    repetitions: Count = 5  #: fresh processes per scheme
    samples: Count = 10  #: timed runs per case and process
    warm_up_seconds: NotNegative = 0.5  #: of untimed runs before them; a fifth of it on a CPU
    prefill: tuple[
        Count, ...
    ] = ()  #: prompt lengths; (): a quarter of [train]'s sequence, and all of it
    prefill_batch: Count = 1  #: prompts per batch
    decode_past: tuple[Count, ...] = ()  #: cached tokens; (): an eighth of the sequence, half, all
    decode_batches: tuple[Count, ...] = (1, 4)  #: sequences per batch, combined with each past
    decode_tokens: Count = 16  #: tokens per decode sample
    compile: Literal["auto", "on", "off"] = "auto"  #: torch.compile of training; auto: as [train]
    threads: Natural = 0  #: CPU threads; 0: as many as a run has: one, or with a GPU all cores

    def __post_init__(self) -> None:
        for name in ("prefill", "decode_past", "decode_batches"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has a list
        if self.repetitions * self.samples < 3:
            raise UserError(
                f"time repetitions is {self.repetitions} and samples {self.samples}; they must multiply "
                "to 3 or more, for a median and an interquartile range"
            )

    def resolved(self, sequence: int) -> "TimeConfig":
        """Fill in the lengths that default to fractions of ``sequence``."""

        def parts(*divisors: int) -> tuple[int, ...]:
            return tuple(dict.fromkeys(max(1, sequence // divisor) for divisor in divisors))

        return replace(
            self,
            prefill=self.prefill or parts(4, 1),
            decode_past=self.decode_past or parts(8, 2, 1),
        )

    def of_a_process(self) -> dict[str, Any]:
        """The fields that one process depends on: all but ``repetitions``."""
        return {name: value for name, value in asdict(self).items() if name != "repetitions"}

    def compared(self) -> dict[str, Any]:
        """The fields that must be equal for two times to be compared."""
        return {"compile": self.compile}
