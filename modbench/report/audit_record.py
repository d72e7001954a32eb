"""The record of an audit. It belongs to a scheme: the cells of all seeds and budgets refer to it by key.
Loads no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter

from modbench.report.line import Line
from modbench.report.shape import at_least, check, closed, list_of

KIND = "audit"

FINDING: Any = closed(
    probe=int,
    name=str,
    verdict=Literal["passed", "failed", "not asked", "unchecked"],
    figure=str,
    ranks=bool,
)
CODE: Any = closed(version=str, commit=str | None, dirty=bool | None)

_SHAPE = TypeAdapter(
    closed(
        kind=Literal["audit"],
        scheme=closed(
            router=closed(name=str, options=dict, code_sha256=str | None),
            model=dict,
            shapes=list_of[list_of[int]],
            trained=list_of[int],
            torch=str,
            modbench=str,
            device=str,
        ),
        code=CODE,
        environment=at_least(cpu=str | None, gpu=str | None, threads=int, torch=str),
        audit=list_of[FINDING],
    )
)


@dataclass(frozen=True, kw_only=True)
class AuditRecord(Line):
    """The audit of one scheme. Holds a copy, in plain JSON types, of its arguments.

    Raises:
        UserError: a field is not as below, a number is NaN or Inf, or ``key`` is not the key of
            ``scheme``.
    """

    SCHEMA: ClassVar[int] = 1

    #: what the findings depend on: router (name, options, hash of its code), model, shapes audited
    #: (sequences, tokens), shape of a training step, versions of PyTorch and modbench, device type
    scheme: dict[str, Any]
    key: str  #: cell_key(scheme)
    code: dict[str, Any]  #: version, commit, dirty
    environment: dict[str, Any]  #: at least cpu, gpu, threads, torch; no host, user or path
    audit: list[dict[str, Any]]  #: probe, name, verdict, figure, ranks (a failure prevents ranking)
    started: str  #: UTC, ISO 8601
    finished: str
    kind: str = KIND
    schema: int = 1

    def __post_init__(self) -> None:
        self.hold_copies()
        named = ("kind", "scheme", "code", "environment", "audit")
        check("", {name: getattr(self, name) for name in named}, _SHAPE)
        self.check_key("scheme")


#: Audit records by key.
Audits = Mapping[str, AuditRecord]


def by_key(audits: Iterable[AuditRecord]) -> dict[str, AuditRecord]:
    """One audit per key: of several, which cells that began at the same time leave, the one finished
    last, then the greatest line."""
    ordered = sorted(audits, key=lambda audit: (audit.finished_at, audit.line()))
    return {audit.key: audit for audit in ordered}
