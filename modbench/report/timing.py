"""Which timings may be compared: those of one run, one machine and one set of settings."""

from collections.abc import Iterable
from typing import Any

from modbench.errors import UserError
from modbench.report.record import Measurement, TimingRecord, cell_key

#: Parts of the environment that must be equal in a run: the machine, and, with the environment's
#: ``variables``, its settings.
HARDWARE = ("cpu", "gpu", "cores", "threads", "driver", "cuda", "torch")
SETTINGS = ("python", "deterministic")
#: Variables of the C allocator; memory is measured under values of its own.
ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_")


def machine_in_words(environment: dict[str, Any]) -> str:
    """Description of the machine in ``environment``."""
    named = (name for name in HARDWARE if environment.get(name) is not None)
    return ", ".join(f"{name} {environment[name]}" for name in named)


def settings_of(environment: dict[str, Any], measurement: Measurement) -> dict[str, str]:
    """Settings in ``environment`` that must be equal in a process of ``measurement`` and all others."""
    variables = environment.get("variables", {})
    if measurement.endswith("memory"):
        variables = {name: text for name, text in variables.items() if not name.startswith(ALLOCATOR)}
    named = {name: str(environment[name]) for name in SETTINGS if environment.get(name) is not None}
    return named | variables


def newest_run(timings: Iterable[TimingRecord]) -> list[TimingRecord]:
    """The timings of the run that was continued last. Of a repeated job the last timing counts, an
    ``ok`` one before any other."""
    timings = list(timings)
    if not timings:
        return []
    run = max(timings, key=lambda timing: (timing.started_at, timing.run)).run
    jobs: dict[Any, TimingRecord] = {}
    for timing in sorted(timings, key=lambda timing: (timing.finished_at, timing.line())):
        if timing.run == run:
            before = jobs.get(timing.job)
            if before is None or before.status != "ok" or timing.status == "ok":
                jobs[timing.job] = timing
    return [jobs[job] for job in sorted(jobs)]


def refuse_other_versions(timings: Iterable[TimingRecord]) -> None:
    """
    Raises:
        UserError: two cells share a label, so their samples would be pooled.
    """
    keys: dict[str, str] = {}
    for timing in timings:
        router = timing.cell["router"]
        if router is not None and keys.setdefault(router["label"], timing.key) != timing.key:
            raise UserError(
                f"run {timing.run} timed '{router['label']}' with two sets of options, shapes or plugin "
                "code; time all schemes again with `modbench time --again`"
            )


def refuse_other_environments(timings: Iterable[TimingRecord]) -> None:
    """
    Raises:
        UserError: the timings differ in machine or settings; the sentence names both.
    """
    timings = list(timings)
    machines = sorted({machine_in_words(timing.environment) for timing in timings})
    if len(machines) > 1:
        raise UserError(
            "timings of different machines are not compared: "
            + " and ".join(f"({machine})" for machine in machines)
            + "; time all of them on one machine with `modbench time --again`"
        )
    # A process that was killed has recorded no dtype.
    dtypes: dict[str, set[str]] = {}
    for timing in timings:
        if timing.measured:
            shape = cell_key({**timing.cell, "router": None})
            dtypes.setdefault(shape, set()).add(timing.environment["dtype"])
    different = [f"dtype {_listed(found)}" for found in dtypes.values() if len(found) > 1]
    settings = [(t.measurement, settings_of(t.environment, t.measurement)) for t in timings]
    for name in sorted({name for _, of in settings for name in of}):
        values = {
            of.get(name)
            for measurement, of in settings
            if not (measurement.endswith("memory") and name.startswith(ALLOCATOR))
        }
        if len(values) > 1:
            different.append(f"{name} {_listed(values)}")
    if different:
        raise UserError(
            f"timings under different settings are not compared: {'; '.join(different)}; time all of "
            "them under one with `modbench time --again`"
        )


def _listed(values: Iterable[str | None]) -> str:
    return " and ".join(sorted("not set" if value is None else f"'{value}'" for value in values))
