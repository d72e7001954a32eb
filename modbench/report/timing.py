"""The result of one process of `modbench time`: a line of ``results/<suite>/timings``.

A run is what one call started and later calls continued: each scheme in several processes, its memory
in one process each, and the machine's ceilings. Only lines of one run are compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, TypeAdapter

from modbench.errors import UserError
from modbench.report.line import Line, cell_key, check_outcome
from modbench.report.shape import at_least, check, closed, list_of, optional
from modbench.report.store import read_lines

TIMINGS = "timings"
Kind = Literal["time", "ceiling", "training_memory", "inference_memory"]
TimingStatus = Literal["ok", "failed", "oom"]

#: Parts of the environment that must be equal in a run: the machine, and, with the environment's
#: ``variables``, its settings.
HARDWARE = ("cpu", "gpu", "cores", "threads", "driver", "cuda", "torch")
SETTINGS = ("python", "deterministic")
#: Variables of the C allocator; memory is measured under values of its own.
ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_")

_Positive = Annotated[int, Field(ge=1)]
_NotNegative = Annotated[int, Field(ge=0)]
_SHAPE = TypeAdapter(
    at_least(
        kind=Kind,
        status=TimingStatus,
        suite=closed(name=str, version=int),
        code=closed(version=str, commit=str | None, dirty=bool | None),
        environment=at_least(
            cpu=str | None,
            gpu=str | None,
            threads=int,
            torch=str,
            dtype=str,
            variables=optional[dict[str, str]],
        ),
        cell=closed(
            router=closed(name=str, options=dict, plugin_sha256=str | None, label=str) | None,
            model=dict,
            train=at_least(sequence=int, batch=int, precision=str),
            time=dict,
        ),
    )
)
_FLOPS = at_least(model=_NotNegative, executed=_NotNegative)
_GPU = at_least(throttled=list) | None
_MACHINE = at_least(overloaded=bool)
_ASKED: dict[str, Any] = {
    "name": str,
    "phase": Literal["forward", "train", "prefill", "decode"],
    "sequences": _Positive,
    "tokens": _Positive,
    "past": _NotNegative,
}
_CASE = closed(
    **_ASKED,
    seconds=Annotated[list[PositiveFloat], Field(min_length=1)],
    loops=_Positive,
    flops=closed(nominal=_FLOPS, realised=_FLOPS, dispatched=_FLOPS),
    joules=float | None,
    gpu=_GPU,
)
_GEMM = at_least(
    dtype=str, component=str, rows=int, inner=int, columns=int, flops_per_second=PositiveFloat
)
_PARTS = at_least(peak=int)
_MEMORY = TypeAdapter(closed(measured=_PARTS, predicted=_PARTS))
_MEASURED: dict[str, TypeAdapter[Any]] = {
    "time": TypeAdapter(
        closed(
            cases=list_of[_CASE],
            balance=str,
            compiled=bool,
            machine=_MACHINE,
            ran_out=optional[list_of[closed(**_ASKED, asked_bytes=int | None, error=str)]],
        )
    ),
    "ceiling": TypeAdapter(
        closed(gemm=list_of[_GEMM], copy_bytes_per_second=PositiveFloat, machine=_MACHINE, gpu=_GPU)
    ),
    "training_memory": _MEMORY,
    "inference_memory": _MEMORY,
}


@dataclass(frozen=True, kw_only=True)
class Timing(Line):
    """One process. Holds a copy, in plain JSON types, of its arguments.

    Raises:
        UserError: a field is not as below, a number is NaN or Inf, or ``key`` is not the key of
            ``cell``.
    """

    SCHEMA: ClassVar[int] = 1

    run: str
    suite: dict[str, Any]  #: name, version
    kind: Kind
    cell: dict[str, Any]  #: router (null for a ceiling), model, train, time
    key: str  #: cell_key(cell)
    repetition: int  #: from 1
    code: dict[str, Any]  #: version, commit, dirty
    environment: dict[str, Any]  #: at least cpu, gpu, threads, torch, dtype; no host, user or path
    #: the result of `modbench.measure.worker`; if not ok: {}, or the cases that could be timed
    measured: dict[str, Any]
    asked_bytes: int | None  #: size of the allocation that failed, if known
    status: TimingStatus
    error: str | None
    started: str
    finished: str
    schema: int = 1

    def __post_init__(self) -> None:
        self.hold_copies()
        named = ("kind", "status", "suite", "code", "environment", "cell")
        check("", {name: getattr(self, name) for name in named}, _SHAPE)
        if (self.cell["router"] is None) != (self.kind == "ceiling"):
            raise UserError(f"kind is {self.kind}; a ceiling has no router, every other kind has one")
        if self.status == "ok" or (self.measured and self.kind == "time"):
            check("measured", self.measured, _MEASURED[self.kind])
        self.check_key("cell")
        check_outcome(self.status, self.error)

    @property
    def job(self) -> tuple[str, str, int]:
        """Its place in the run: kind, key, repetition."""
        return self.kind, self.key, self.repetition

    @property
    def machine(self) -> str:
        """Description of the machine."""
        return machine_in_words(self.environment)

    @property
    def settings(self) -> dict[str, str]:
        """Settings of its environment, by name."""
        return settings_of(self.environment, self.kind)


def machine_in_words(environment: dict[str, Any]) -> str:
    """Description of the machine in ``environment``."""
    named = (name for name in HARDWARE if environment.get(name) is not None)
    return ", ".join(f"{name} {environment[name]}" for name in named)


def settings_of(environment: dict[str, Any], kind: Kind) -> dict[str, str]:
    """Settings in ``environment`` that must be equal in a process of ``kind`` and all others."""
    variables = environment.get("variables", {})
    if kind.endswith("memory"):
        variables = {name: text for name, text in variables.items() if not name.startswith(ALLOCATOR)}
    named = {name: str(environment[name]) for name in SETTINGS if environment.get(name) is not None}
    return named | variables


def read_timings(folder: Path) -> list[Timing]:
    """All timings under ``folder`` (``results/<suite>``), ordered by start time.

    Raises:
        UserError: as `modbench.report.store.read_records`.
    """
    lines = read_lines(Path(folder) / TIMINGS, Timing.from_line)
    return [lines[line] for line in sorted(lines, key=lambda line: (lines[line].started_at, line))]


def newest_run(timings: Iterable[Timing]) -> list[Timing]:
    """The timings of the run that was continued last. Of a repeated job the last timing counts, an
    ``ok`` one before any other."""
    timings = list(timings)
    if not timings:
        return []
    run = max(timings, key=lambda timing: (timing.started_at, timing.run)).run
    jobs: dict[Any, Timing] = {}
    for timing in sorted(timings, key=lambda timing: (timing.finished_at, timing.line())):
        if timing.run == run:
            before = jobs.get(timing.job)
            if before is None or before.status != "ok" or timing.status == "ok":
                jobs[timing.job] = timing
    return [jobs[job] for job in sorted(jobs)]


def refuse_other_versions(timings: Iterable[Timing]) -> None:
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


def refuse_other_environments(timings: Iterable[Timing]) -> None:
    """
    Raises:
        UserError: the timings differ in machine or settings; the sentence names both.
    """
    timings = list(timings)
    machines = sorted({timing.machine for timing in timings})
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
    for name in sorted({name for timing in timings for name in timing.settings}):
        able = (t for t in timings if not (t.kind.endswith("memory") and name.startswith(ALLOCATOR)))
        values = {timing.settings.get(name) for timing in able}
        if len(values) > 1:
            different.append(f"{name} {_listed(values)}")
    if different:
        raise UserError(
            f"timings under different settings are not compared: {'; '.join(different)}; time all of "
            "them under one with `modbench time --again`"
        )


def _listed(values: Iterable[str | None]) -> str:
    return " and ".join(sorted("not set" if value is None else f"'{value}'" for value in values))
