"""Identity and outcome of each record of a suite, which is all that a sweep of 100,000 runs can keep of
them. No torch."""

from pathlib import Path
from typing import Any, NamedTuple

from modbench.records.record import AnyRecord, MeasurementRecord, RunRecord, SuiteRecord
from modbench.records.store import no_collection, read_files, record_files


class Finished(NamedTuple):
    """Identity and outcome of a record; parts that its kind lacks are None."""

    kind: str
    key: str
    status: str | None = None
    audit_key: str | None = None
    session: str | None = None
    measures: str | None = None
    repetition: int | None = None
    finished: str = ""  #: time, ISO 8601
    text: str | None = None  #: sha256 of a run's text
    run: str | None = None  #: key of the run that a measurement is of
    loss: float | None = None  #: held-out loss of a measurement
    #: of an isoFLOP suite: the laws of its learning rates, by depth; None: it has one depth
    exponents: tuple[tuple[int | None, float], ...] = ()
    margin: float | None = None  #: and that of its comparisons
    error: str | None = None
    number: int | None = None  #: of a suite's record

    @classmethod
    def of(cls, record: AnyRecord) -> "Finished":
        """The entry of ``record``."""
        fields: dict[str, Any] = {name: getattr(record, name, None) for name in _SAME}
        if isinstance(record, RunRecord):
            fields["text"] = record.data["sha256"]
        elif isinstance(record, MeasurementRecord):
            of, loss = record.measurement, record.result.metrics.get("heldout_loss")
            fields |= {"measures": of.measures, "run": of.run, "loss": loss}
        elif isinstance(record, SuiteRecord):
            plans = [row.isoflop for row in record.suite.rows if row.isoflop]
            fields["exponents"] = tuple({plan.get("depth"): plan["exponent"] for plan in plans}.items())
            fields["margin"] = plans[0]["margin"] if plans else None
        return cls(**fields)


#: Fields of an entry that are those of its record, if its kind has them.
_SAME = (
    *("kind", "key", "status", "audit_key", "session", "measures", "repetition"),
    *("finished", "error", "number"),
)


def finished(folder: Path) -> list[Finished]:
    """An entry per record under ``folder`` (``results/<suite>``). Raises UserError: see `read_suite`."""
    return Watch(folder).new()


class Watch:
    """The entries of `finished` in ``folder`` (``results/<suite>``), read again as files are added; only
    of files that were written after ``since`` (seconds since 1970, by the clock of the file system)."""

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        self._folder = folder
        self._since = since
        self._files: set[str] = set()
        self._seen: set[str] = set()

    def new(self) -> list[Finished]:
        """The entries that were added since the last call. Raises UserError: see `read_suite`."""
        entries: list[Finished] = []
        with no_collection():
            for path in record_files(self._folder, self._files):
                self._files.add(path.name)
                if not self._since or path.stat().st_mtime >= self._since:
                    entries += map(Finished.of, read_files([path], seen=self._seen))
        return entries
