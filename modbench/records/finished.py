"""Identity and outcome of each record of a suite, without a check of its fields. No torch."""

from pathlib import Path
from typing import NamedTuple

from modbench.records.record import parse_line
from modbench.records.store import parsed_file, parsed_lines, record_files


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
    workers: int | None = None  #: jobs that ran at the same time
    gpu: str | None = None
    text: str | None = None  #: sha256 of a run's text
    run: str | None = None  #: key of the run that a measurement is of
    loss: float | None = None  #: held-out loss of a measurement
    #: of an isoFLOP suite: the laws of its learning rates, by depth; None: it has one depth
    exponents: tuple[tuple[int | None, float], ...] = ()
    margin: float | None = None  #: and that of its comparisons
    error: str | None = None
    number: int | None = None  #: of a suite's record


def finished(folder: Path) -> list[Finished]:
    """One entry per record under ``folder`` (``results/<suite>``). Digests are checked, most fields are
    not. Raises UserError: see `read_suite`."""
    return list(parsed_lines(folder, _finished)[0].values())


class Watch:
    """The entries of `finished` in ``folder`` (``results/<suite>``), read again as files are added; only
    of files that were written after ``since`` (seconds since 1970, by the clock of the file system)."""

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        self._folder = folder
        self._since = since
        self._files: set[str] = set()
        self._lines: dict[str, Finished] = {}

    def new(self) -> list[Finished]:
        """The entries that were added since the last call. Raises UserError: see `read_suite`."""
        before = len(self._lines)
        for path in record_files(self._folder, self._files):
            self._files.add(path.name)
            if not self._since or path.stat().st_mtime >= self._since:
                list(parsed_file(path, _finished, self._lines))
        return list(self._lines.values())[before:]


def _finished(line: str) -> Finished:
    record = parse_line(line)
    measured = record.get("measurement", {})
    plans = [row["isoflop"] for row in record.get("suite", {}).get("rows", []) if "isoflop" in row]
    return Finished(
        kind=record["kind"],
        key=record["key"],
        status=record.get("status"),
        audit_key=record.get("audit_key"),
        session=record.get("session"),
        measures=record.get("measures", measured.get("measures")),
        repetition=record.get("repetition"),
        finished=record.get("finished", ""),
        workers=record.get("workers"),
        gpu=record.get("environment", {}).get("gpu"),
        text=record.get("data", {}).get("sha256"),
        run=measured.get("run"),
        loss=record.get("result", {}).get("metrics", {}).get("heldout_loss"),
        exponents=tuple({p.get("depth"): p["exponent"] for p in plans if "exponent" in p}.items()),
        margin=plans[0].get("margin") if plans else None,
        error=record.get("error"),
        number=record.get("number"),
    )
