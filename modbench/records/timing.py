"""Records of `modbench time`. Loads no torch."""

from typing import Annotated, Any, Literal, NotRequired, Self

from annotated_types import Len
from pydantic import Field, TypeAdapter, ValidationError, model_validator, with_config
from typing_extensions import TypedDict

from modbench.records.line import (
    OPEN,
    AboveZero,
    Count,
    Environment,
    Label,
    Number,
    Outcome,
    Positive,
    sentence,
)
from modbench.records.run import Timed, TimedJson

#: Version of what `modbench time` measures, raised when times change in meaning: those of two are never
#: compared. 2: warm-up by time, no garbage collection, ceilings in a row, load of usable cores.
PROTOCOL = 2
#: Measurements that a process of `modbench time` takes.
TimingKind = Literal["training", "inference", "ceiling", "training_memory", "inference_memory"]


@with_config(OPEN)
class Flops(TypedDict):
    model: Count
    executed: Count


@with_config(OPEN)
class Gpu(TypedDict):
    throttled: list[str]


@with_config(OPEN)
class Machine(TypedDict):
    overloaded: bool


class Asked(TypedDict):
    name: str
    phase: Literal["forward", "train", "prefill", "decode"]
    sequences: Positive
    tokens: Positive
    past: Count


class Case(Asked):
    seconds: Annotated[list[AboveZero], Len(1)]
    loops: Positive
    flops: Annotated[dict[Literal["nominal", "realised", "dispatched"], Flops], Len(3)]
    joules: Number | None
    gpu: Gpu | None
    host_share: NotRequired[Number]  # of its time; absent: of a CPU, or not measured


class RanOut(Asked):
    asked_bytes: Count | None
    error: str


#: Of compiled steps: ``graphs``, programs; ``breaks``, places where torch.compile left one for Python.
Programs = Annotated[dict[Literal["graphs", "breaks"], Count], Len(2)]


class Times(TypedDict):
    cases: list[Case]
    balance: str
    compiled: bool
    programs: NotRequired[Programs]
    machine: Machine
    ran_out: NotRequired[list[RanOut]]


@with_config(OPEN)
class Gemm(TypedDict):
    dtype: str
    component: str
    rows: int
    inner: int
    columns: int
    flops_per_second: AboveZero


class Ceiling(TypedDict):
    gemm: list[Gemm]
    copy_bytes_per_second: AboveZero
    machine: Machine
    gpu: Gpu | None


_Bytes = dict[str, Annotated[int, Field(ge=-(10**30), le=10**30)]]


class Memory(TypedDict):
    measured: _Bytes
    predicted: NotRequired[_Bytes]  #: of records until November 2026; nothing reads it


_MEASURED: dict[str, TypeAdapter[Any]] = {
    **dict.fromkeys(("training", "inference"), TypeAdapter(Times)),
    "ceiling": TypeAdapter(Ceiling),
    **dict.fromkeys(("training_memory", "inference_memory"), TypeAdapter(Memory)),
}


@with_config(OPEN)
class TimedEnvironment(Environment):
    dtype: str
    variables: NotRequired[dict[str, str]]


class TimingRecord(Outcome):
    """One process that measures time or memory of an untrained scheme.

    A session is what calls on one machine with one version of the code have added to: each scheme in
    several processes, its memory in one process each, and the machine's ceilings. Only records of one
    session are compared.
    """

    about = "timed"

    kind: Literal["timing"]
    environment: TimedEnvironment
    session: Label
    measures: TimingKind
    timed: TimedJson
    time: dict[str, Any]  #: the settings: fields of [time]
    repetition: int  #: from 1
    measured: dict[str, Any]  #: what the process measured; if not ok: {}, or cases that could be timed
    asked_bytes: Count | None  #: size of the allocation that failed, if known
    status: Literal["ok", "failed", "oom"]
    protocol: Positive | None = None  #: version of the measurement (`PROTOCOL`); None: 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        Timed.of(self.timed)  # raises UserError: a field is unknown or wrong
        if (self.timed["router"] is None) != (self.measures == "ceiling"):
            raise ValueError(f"measures is {self.measures}; a ceiling has no router, every other has")
        if self.status == "ok" or (self.measured and self.measures in ("training", "inference")):
            try:
                _MEASURED[self.measures].validate_python(self.measured, strict=True)
            except ValidationError as error:
                raise ValueError(sentence(error, "measured")) from None
        memory = self.status == "ok" and self.measures.endswith("memory")
        if memory and "peak" not in self.measured["measured"]:
            raise ValueError("the measured memory lacks the peak")
        return self

    @property
    def job(self) -> tuple[str, str, int]:
        """Its place in the session: what it measures, key, repetition."""
        return self.measures, self.key, self.repetition
