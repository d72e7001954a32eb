"""Processor type of runs: what decides on the last digits of a training run besides its seed."""

from collections.abc import Iterable

from modbench.records.result import Result
from modbench.report.timing.values import machine_in_words

#: Parts of the environment that make a processor type.
PROCESSOR = ("cpu", "instructions", "gpu", "dtype", "threads")
#: By how much another processor type changed the loss of a run, in nats per token: root mean square of
#: the runs of results/isoflop-cpu that results/isoflop-cpu-again has, too.
ROUNDING = 0.003
#: Mark of a difference between rows of different processor types.
MARK = "‡"


def processor_types(results: Iterable[Result]) -> list[str]:
    """All processor types of ``results``, sorted; without instruction sets if a record lacks them."""
    environments = [result.environment for result in results]
    parts = list(PROCESSOR)
    if any("instructions" not in environment for environment in environments):
        parts.remove("instructions")
    return sorted({machine_in_words(environment, parts) for environment in environments})
