"""What one process of `modbench time` found: a line of ``results/<suite>/timings``.

A run is what was started once and perhaps gone on with: each scheme in several processes, its memory in
one each, the machine's ceilings with them. Lines of one run may be compared, and no others.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from modbench.errors import UserError, known_names
from modbench.report.line import Line, cell_key
from modbench.report.shape import check, is_of
from modbench.report.store import read_lines

TIMINGS = "timings"
Kind = Literal["time", "ceiling", "training_memory", "inference_memory"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TimingStatus = Literal["ok", "failed", "oom"]

#: What of an environment must be equal in all of a run: the machine, and beside the environment's
#: ``variables`` how it was set.
HARDWARE = ("cpu", "gpu", "cores", "threads", "driver", "cuda", "torch")
SETTINGS = ("python", "deterministic")
#: Variables of the C library's allocator, which memory is weighed under values of its own of.
ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_")
#: Beyond this is no count and no rate, and divisions overflow.
MOST = 10**30

_NUMBER = (int, float)
_NONE = type(None)
_CELL = {"router": (dict, _NONE), "model": dict, "train": dict, "time": dict}
_ROUTER = {"name": str, "options": dict, "plugin_sha256": (str, _NONE), "label": str}
_TRAIN = {"sequence": int, "batch": int, "precision": str}
_ENVIRONMENT = {"cpu": (str, _NONE), "gpu": (str, _NONE), "threads": int, "torch": str, "dtype": str}
_MEASURED: dict[str, dict[str, Any]] = {
    "time": {"cases": list, "balance": str, "compiled": bool, "machine": dict},
    "ceiling": {
        "gemm": list,
        "copy_bytes_per_second": _NUMBER,
        "machine": dict,
        "gpu": (dict, _NONE),
    },
    "training_memory": {"measured": dict, "predicted": dict},
    "inference_memory": {"measured": dict, "predicted": dict},
}
_SIZES = ("sequences", "tokens", "past")
_CASE = {
    "name": str,
    "phase": str,
    "sequences": int,
    "tokens": int,
    "past": int,
    "seconds": list,
    "loops": int,
    "flops": dict,
    "joules": (int, float, _NONE),
    "gpu": (dict, _NONE),
}
_RAN_OUT = {
    **{name: kind for name, kind in _CASE.items() if name in ("name", "phase", *_SIZES)},
    "asked_bytes": (int, _NONE),
    "error": str,
}
PHASES = ("forward", "train", "prefill", "decode")
_FLOPS = {"nominal": dict, "realised": dict, "dispatched": dict}
_CONVENTIONS = {"model": int, "executed": int}
_GEMM = {
    "dtype": str,
    "component": str,
    "rows": int,
    "inner": int,
    "columns": int,
    "flops_per_second": _NUMBER,
}


@dataclass(frozen=True, kw_only=True)
class Timing(Line):
    """One process. Holds a copy, in plain JSON types, of what it is given.

    Raises:
        UserError: a field is not as below, a number is not finite, or ``key`` is not the key of
            ``cell``.
    """

    SCHEMA: ClassVar[int] = 1
    STATUSES: ClassVar[tuple[str, ...]] = get_args(TimingStatus)

    run: str
    suite: dict[str, Any]  #: name, version
    kind: Kind
    cell: dict[str, Any]  #: router (null for a ceiling), model, train, time
    key: str  #: cell_key(cell)
    repetition: int  #: from 1
    code: dict[str, Any]  #: version, commit, dirty
    environment: dict[str, Any]  #: at least cpu, gpu, threads, torch, dtype; no host, user or path
    measured: dict[
        str, Any
    ]  #: what `modbench.measure.worker` found; {} if it isn't ok, or the cases that could be timed
    asked_bytes: int | None  #: of an allocation that failed, where it is known
    status: TimingStatus
    error: str | None
    started: str
    finished: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        self.hold_copies()
        if self.kind not in KINDS:
            raise UserError(f"kind '{self.kind}' is not known; {known_names(self.kind, KINDS)}")
        check("suite", self.suite, {"name": str, "version": int})
        check("code", self.code, {"version": str, "commit": (str, _NONE), "dirty": (bool, _NONE)})
        check("environment", self.environment, _ENVIRONMENT, more=True)
        variables = self.environment.get("variables", {})
        check("environment variables", variables, {}, more=True)
        check("environment variables", variables, dict.fromkeys(variables, str))
        check("cell", self.cell, _CELL)
        check("cell train", self.cell["train"], _TRAIN, more=True)
        if self.cell["router"] is not None:
            check("cell router", self.cell["router"], _ROUTER)
        if (self.cell["router"] is None) != (self.kind == "ceiling"):
            raise UserError(f"kind is {self.kind}; a ceiling has no router, and all else has one")
        if self.key != cell_key(self.cell):
            raise UserError(f"key is {self.key!r} but its cell's key is '{cell_key(self.cell)}'")
        if self.status == "ok" or (self.measured and self.kind == "time"):
            ran_out = {"ran_out": list} if self.kind == "time" and "ran_out" in self.measured else {}
            check("measured", self.measured, _MEASURED[self.kind] | ran_out)
            if ran_out and self.status == "ok":
                raise UserError("status is ok and cases ran out of memory; it must be oom or failed")
            _CHECKS[self.kind](self.measured)
        self.check_outcome()

    @property
    def job(self) -> tuple[str, str, int]:
        """What it is of its run: kind, key, repetition."""
        return self.kind, self.key, self.repetition

    @property
    def machine(self) -> str:
        """The machine in words."""
        return machine_in_words(self.environment)

    @property
    def settings(self) -> dict[str, str]:
        """What its environment was set to, by name."""
        return settings_of(self.environment, self.kind)


def _check_within(where: str, value: float, least: int = 0) -> None:
    if not least <= value <= MOST:
        fewest = least if least > -MOST else f"{least:.0e}"
        raise UserError(f"{where} is {value}; it must be {fewest} or more, and {MOST:.0e} or less")


def _check_rate(where: str, value: float) -> None:
    if not 0 < value <= MOST:
        raise UserError(f"{where} is {value}; it must be above 0, and {MOST:.0e} or less")


def _check_machine(measured: dict[str, Any]) -> None:
    check("measured machine", measured["machine"], {"overloaded": bool}, more=True)


def _check_gpu(where: str, gpu: dict[str, Any] | None) -> None:
    if gpu is not None:
        check(f"{where} gpu", gpu, {"throttled": list}, more=True)


def _check_cases(measured: dict[str, Any]) -> None:
    _check_machine(measured)
    for case in measured["cases"]:
        check("case", case, _CASE)
        _check_phase(case)
        seconds = case["seconds"]
        if not seconds or not all(is_of(s, _NUMBER) and 0 < s <= MOST for s in seconds):
            raise UserError(
                f"case seconds is {case['seconds']!r}; it must be numbers above 0, one or more"
            )
        for name in ("sequences", "tokens", "loops"):
            _check_within(f"case {name}", case[name], least=1)
        _check_within("case past", case["past"])
        check("case flops", case["flops"], _FLOPS)
        for name, counts in case["flops"].items():
            check(f"case flops {name}", counts, _CONVENTIONS, more=True)
            for convention in _CONVENTIONS:
                _check_within(f"case flops {name} {convention}", counts[convention])
        _check_gpu("case", case["gpu"])

    for case in measured.get("ran_out", []):
        check("case that ran out", case, _RAN_OUT)
        _check_phase(case)


def _check_phase(case: dict[str, Any]) -> None:
    if case["phase"] not in PHASES:
        raise UserError(
            f"case phase '{case['phase']}' is not known; {known_names(case['phase'], PHASES)}"
        )


def _check_ceiling(measured: dict[str, Any]) -> None:
    _check_machine(measured)
    _check_gpu("measured", measured["gpu"])
    for gemm in measured["gemm"]:
        check("measured gemm", gemm, _GEMM, more=True)
        _check_rate("measured gemm flops_per_second", gemm["flops_per_second"])
    _check_rate("measured copy_bytes_per_second", measured["copy_bytes_per_second"])


def _check_memory(measured: dict[str, Any]) -> None:
    predicted = measured["predicted"]
    for name, parts in measured.items():
        if "peak" not in parts or parts.keys() != predicted.keys():
            raise UserError(
                f"measured {name} has {sorted(parts)}; it must have the parts of both, and peak"
            )
        check(f"measured {name}", parts, dict.fromkeys(parts, int))
        for part, size in parts.items():
            _check_within(f"measured {name} {part}", size, least=-MOST)


_CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "time": _check_cases,
    "ceiling": _check_ceiling,
    "training_memory": _check_memory,
    "inference_memory": _check_memory,
}


def machine_in_words(environment: dict[str, Any]) -> str:
    """What of ``environment`` is the machine's."""
    named = (name for name in HARDWARE if environment.get(name) is not None)
    return ", ".join(f"{name} {environment[name]}" for name in named)


def settings_of(environment: dict[str, Any], kind: Kind) -> dict[str, str]:
    """What of ``environment`` must be equal besides, in a process of ``kind`` and all others."""
    variables = environment.get("variables", {})
    if kind.endswith("memory"):
        variables = {name: text for name, text in variables.items() if not name.startswith(ALLOCATOR)}
    named = {name: str(environment[name]) for name in SETTINGS if environment.get(name) is not None}
    return named | variables


def read_timings(folder: Path) -> list[Timing]:
    """All timings under ``folder`` (results/<suite>), in the order they were begun; none if there are
    none yet.

    Raises:
        UserError: as `modbench.report.store.read_records`.
    """
    lines = read_lines(Path(folder) / TIMINGS, Timing)
    return [lines[line] for line in sorted(lines, key=lambda line: (lines[line].started_at, line))]


def newest_run(timings: Iterable[Timing]) -> list[Timing]:
    """Those of the run that was gone on with last; a job that was done again counts as it was last, but
    for one that had gone well."""
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
        UserError: two schemes have the same label; their samples would be pooled.
    """
    keys: dict[str, str] = {}
    for timing in timings:
        router = timing.cell["router"]
        if router is not None and keys.setdefault(router["label"], timing.key) != timing.key:
            raise UserError(
                f"run {timing.run} timed '{router['label']}' with two sets of options, shapes or plugin "
                "code; time all schemes anew with `modbench time --again`"
            )


def refuse_other_environments(timings: Iterable[Timing]) -> None:
    """
    Raises:
        UserError: the timings are of more than one machine, or were taken under different settings; it
            names them.
    """
    timings = list(timings)
    machines = sorted({timing.machine for timing in timings})
    if len(machines) > 1:
        raise UserError(
            "timings of different machines are not compared: "
            + " and ".join(f"({machine})" for machine in machines)
            + "; time all of them on one machine with `modbench time --again`"
        )
    # A process that died tells none of its own dtype.
    dtypes: dict[str, set[str]] = {}
    for timing in timings:
        if timing.measured:
            shape = cell_key({**timing.cell, "router": None})
            dtypes.setdefault(shape, set()).add(timing.environment["dtype"])
    different = [f"dtype {_listed(found)}" for found in dtypes.values() if len(found) > 1]
    different += [
        f"{name} {_listed(found)}" for name, found in _settings_by_name(timings) if len(found) > 1
    ]
    if different:
        raise UserError(
            f"timings under different settings are not compared: {'; '.join(different)}; time all of "
            "them under one with `modbench time --again`"
        )


def _settings_by_name(timings: Sequence[Timing]) -> Iterable[tuple[str, set[str | None]]]:
    """The values of each setting among those that could have it; None: not set."""
    for name in sorted({name for timing in timings for name in timing.settings}):
        able = (t for t in timings if not (t.kind.endswith("memory") and name.startswith(ALLOCATOR)))
        yield name, {timing.settings.get(name) for timing in able}


def _listed(values: Iterable[str | None]) -> str:
    return " and ".join(sorted("not set" if value is None else f"'{value}'" for value in values))
