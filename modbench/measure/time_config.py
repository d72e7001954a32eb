"""What `modbench time` times of a scheme: the [time] table of a suite. Imports no torch."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from modbench.errors import UserError

#: More threads than this no machine has, and libraries end the process.
MOST_THREADS = 4096
#: Beyond it products of sizes are no numbers that a machine reckons with.
MOST_TOKENS = 10**15


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """Cases, and how often each is timed. The forward pass and the training step have [train]'s batch
    and sequence; a sample of decoding is ``decode_tokens`` tokens one after the other, since a
    depth-routed layer is entered by one token in several.

    Raises:
        UserError: a field is out of range, with the value and what would be right.
    """

    repetitions: int = 5  #: fresh processes of each scheme
    samples: int = 10  #: timed runs of each case in a process
    warm_up: int = 3  #: runs before them
    prefill: tuple[int, ...] = ()  #: lengths of prompts; none: a quarter of [train]'s sequence, all
    prefill_batch: int = 1  #: prompts read at once
    decode_past: tuple[int, ...] = ()  #: cached tokens; none: an eighth of the sequence, half, all
    decode_batches: tuple[int, ...] = (1, 4)  #: sequences decoded at once, each with each past
    decode_tokens: int = 16  #: tokens of one sample of decoding
    forced_balance: bool = True  #: route evenly, whatever the scores of untrained routers
    compile: Literal["auto", "on", "off"] = "auto"  #: and decode by CUDA graphs; auto: on a GPU
    deterministic: bool = False  #: PyTorch's deterministic kernels alone, as `modbench run` trains
    threads: int = 0  #: of the processor; 0: one to each core

    def __post_init__(self) -> None:
        for name in ("prefill", "decode_past", "decode_batches"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if min(values, default=1) < 1:
                raise UserError(f"time {name} is {list(values)}; each must be 1 or more")
            if max(values, default=1) > MOST_TOKENS:
                raise UserError(f"time {name} is {list(values)}; each must be {MOST_TOKENS:,} or fewer")
            if len(set(values)) < len(values):
                raise UserError(f"time {name} is {list(values)}; an entry appears twice, remove one")
        for name in ("repetitions", "samples", "prefill_batch", "decode_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"time {name} is {getattr(self, name)}; it must be 1 or more")
            if getattr(self, name) > MOST_TOKENS:
                raise UserError(
                    f"time {name} is {getattr(self, name)}; it must be {MOST_TOKENS:,} or fewer"
                )
        for name in ("warm_up", "threads"):
            if getattr(self, name) < 0:
                raise UserError(f"time {name} is {getattr(self, name)}; it must be 0 or more")
        if self.threads > MOST_THREADS:
            raise UserError(f"time threads is {self.threads}; it must be {MOST_THREADS} or fewer")
        if not self.decode_batches:
            raise UserError("time decode_batches is empty; give it at least one entry")
        if self.repetitions * self.samples < 3:
            raise UserError(
                f"time repetitions is {self.repetitions} and samples {self.samples}; they must multiply "
                "to 3 or more, for a median and an interquartile range"
            )
        if self.compile not in ("auto", "on", "off"):
            raise UserError(f"time compile is '{self.compile}'; it must be 'auto', 'on' or 'off'")

    def resolved(self, sequence: int) -> "TimeConfig":
        """With the lengths that follow from ``sequence`` where none are given."""

        def parts(*divisors: int) -> tuple[int, ...]:
            return tuple(dict.fromkeys(max(1, sequence // divisor) for divisor in divisors))

        return replace(
            self,
            prefill=self.prefill or parts(4, 1),
            decode_past=self.decode_past or parts(8, 2, 1),
        )

    def of_a_process(self) -> dict[str, Any]:
        """What one process needs to know; how many there are changes nothing of what each measures."""
        return {name: value for name, value in asdict(self).items() if name != "repetitions"}
