"""Which timings may be compared: those of one session, one machine and one set of settings;
and the processor type of runs, which decides on the last digits besides the seed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modbench.errors import UserError
from modbench.records.record import SuiteRecord, TimingKind, TimingRecord
from modbench.records.result import Result
from modbench.records.store import latest

#: Parts of the environment that must be equal in a session: the machine, and, with the environment's
#: ``variables``, its settings.
HARDWARE = ("cpu", "gpu", "cores", "threads", "driver", "cuda", "torch")
SETTINGS = ("python", "deterministic")
#: Variables of the C allocator; memory is measured under values of its own.
ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_")


def machine_in_words(environment: Mapping[str, Any], parts: Sequence[str] = HARDWARE) -> str:
    """Description of the machine in ``environment``."""
    named = (name for name in parts if environment.get(name) is not None)
    return ", ".join(f"{name} {environment[name]}" for name in named)


def settings_of(environment: Mapping[str, Any], kind: TimingKind) -> dict[str, str]:
    """Settings in ``environment`` that must be equal in a process of ``kind`` and all others."""
    variables = environment.get("variables", {})
    if kind.endswith("memory"):
        variables = {name: text for name, text in variables.items() if not name.startswith(ALLOCATOR)}
    named = {name: str(environment[name]) for name in SETTINGS if environment.get(name) is not None}
    return named | variables


def newest_session(timings: Sequence[TimingRecord]) -> list[TimingRecord]:
    """The timings of the session that was continued last, one of each job; of those of the newest
    version of the measurement."""
    newest = max(timings, key=lambda timing: (timing.protocol or 1, timing.started_at, timing.session))
    session = newest.session
    return latest(
        (timing for timing in timings if timing.session == session), key=lambda timing: timing.job
    )


def labels_of(suites: Sequence[SuiteRecord]) -> dict[str, str]:
    """The label of each timed scheme and shape, by key. Where two suites give a label to different ones,
    such as before and after an option was changed, the later suite counts."""
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for record in reversed(suites):
        rows = [row for row in record.suite.rows if row.label not in taken]
        for row in rows:
            taken.add(row.label)
            for key in row.timed:
                labels.setdefault(key, row.label)
    return labels


def refuse_incomparable(timings: Sequence[TimingRecord]) -> None:
    """Raises UserError: the timings differ in machine, settings or version of the measurement; the
    sentence names the difference."""
    # Variables of the allocator differ between a time and a memory of one session.
    environments = [
        {"machine": machine_in_words(timing.environment), "protocol": str(timing.protocol or 1)}
        | settings_of(timing.environment, "training_memory")
        for timing in timings
    ]
    for name in sorted({name for environment in environments for name in environment}):
        values = {environment.get(name, "not set") for environment in environments}
        if len(values) > 1:
            raise UserError(
                f"timings of one session with different {name} are not compared: "
                f"{' and '.join(f'({text})' for text in sorted(values))}; time all of them under one "
                "with `modbench time --again`"
            )


def time_marks(
    stable: bool | None,
    loaded: bool | None,
    throttled: bool | None = None,
    host_bound: bool | None = None,
) -> str:
    """Those of ``unstable``, ``loaded``, ``throttled`` and ``host-bound`` that hold."""
    marks = {"unstable": stable is False, "loaded": loaded, "throttled": throttled}
    return ", ".join(mark for mark, holds in (marks | {"host-bound": host_bound}).items() if holds)


#: Parts of the environment that make a processor type.
PROCESSOR = ("cpu", "instructions", "gpu", "dtype", "threads")
#: Mark of a difference between rows of different processor types.
MARK = "‡"


def processor_types(results: Iterable[Result]) -> list[str]:
    """All processor types of ``results``, sorted; without instruction sets if a record lacks them."""
    environments = [result.environment for result in results]
    parts = list(PROCESSOR)
    if any("instructions" not in environment for environment in environments):
        parts.remove("instructions")
    return sorted({machine_in_words(environment, parts) for environment in environments})
