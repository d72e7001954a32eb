"""Which timings may be compared: those of one run, one machine and one set of settings."""

from collections.abc import Sequence
from typing import Any

from modbench.errors import UserError
from modbench.records.record import Measurement, TimingRecord
from modbench.records.store import latest

#: Parts of the environment that must be equal in a run: the machine, and, with the environment's
#: ``variables``, its settings.
HARDWARE = ("cpu", "gpu", "cores", "threads", "driver", "cuda", "torch")
SETTINGS = ("python", "deterministic")
#: Variables of the C allocator; memory is measured under values of its own.
ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_")


def machine_in_words(environment: dict[str, Any], parts: Sequence[str] = HARDWARE) -> str:
    """Description of the machine in ``environment``."""
    named = (name for name in parts if environment.get(name) is not None)
    return ", ".join(f"{name} {environment[name]}" for name in named)


def settings_of(environment: dict[str, Any], measurement: Measurement) -> dict[str, str]:
    """Settings in ``environment`` that must be equal in a process of ``measurement`` and all others."""
    variables = environment.get("variables", {})
    if measurement.endswith("memory"):
        variables = {name: text for name, text in variables.items() if not name.startswith(ALLOCATOR)}
    named = {name: str(environment[name]) for name in SETTINGS if environment.get(name) is not None}
    return named | variables


def newest_run(timings: Sequence[TimingRecord]) -> list[TimingRecord]:
    """The timings of the run that was continued last, one of each job."""
    run = max(timings, key=lambda timing: (timing.started_at, timing.run)).run
    return latest((one for one in timings if one.run == run), key=lambda one: one.job)


def refuse_incomparable(timings: Sequence[TimingRecord]) -> None:
    """Raises UserError: the timings differ in machine or settings, or two cells share a label, so that
    their samples would be pooled; the sentence names the difference."""
    keys: dict[str, str] = {}
    for timing in timings:
        router = timing.cell["router"]
        if router is not None and keys.setdefault(router["label"], timing.key) != timing.key:
            raise UserError(
                f"run {timing.run} timed '{router['label']}' with two sets of options, shapes or plugin "
                "code; time all schemes again with `modbench time --again`"
            )
    # Variables of the allocator differ between a time and a memory of one run.
    environments = [
        {"machine": machine_in_words(timing.environment)}
        | settings_of(timing.environment, "training_memory")
        for timing in timings
    ]
    for name in sorted({name for environment in environments for name in environment}):
        found = {environment.get(name, "not set") for environment in environments}
        if len(found) > 1:
            raise UserError(
                f"timings of one run with different {name} are not compared: "
                f"{' and '.join(f'({text})' for text in sorted(found))}; time all of them under one "
                "with `modbench time --again`"
            )
