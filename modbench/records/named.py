"""Results that a user names: a folder of a suite, a row or run of it, a file of records. No torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from modbench.errors import UserError, known_names
from modbench.records.record import MeasurementRecord
from modbench.records.result import Result, results_of
from modbench.records.run_name import RunName
from modbench.records.store import RECORDS, Records, read_records, read_suite


@dataclass(frozen=True)
class Named:
    """The finished results of a folder, or those of it that a name chooses."""

    name: str  #: as the user typed it
    folder: Path  #: ``results/<suite>``
    label: str | None  #: what the name chooses in the folder; None: all of it
    results: Sequence[Result]
    lost: Sequence[Result] = field(repr=False)  #: chosen ones that did not finish
    of_folder: Sequence[Result] = field(repr=False)  #: all finished results of the folder
    records: Records = field(repr=False)  #: all of the folder


def named(name: str, results: Path = Path()) -> Named:
    """The finished results that ``name`` stands for, see `folder_of`: the folder of a suite
    (``results/quick``); that and a label, a router or a run's name (``results/quick/mod@1e12#0``); or a
    file of records. Raises UserError: there are no such records."""
    folder, rest = folder_of(name, results)
    label = rest or None
    records = read_suite(folder)
    of_folder = results_of(records)
    if label is None:
        chosen = of_folder
    elif label.endswith(".jsonl"):
        keys = {
            record.measurement.run if isinstance(record, MeasurementRecord) else record.key
            for record in read_records(folder.joinpath(*Path(label).parts))
        }
        chosen = [result for result in of_folder if result.key in keys]
    else:
        chosen = _of_label(label, of_folder)
        if not chosen:
            of_scheme = [r for r in of_folder if r.scheme == label.partition("/")[0]]
            known = {result.label for result in of_scheme} or {result.scheme for result in of_folder}
            raise UserError(f"{folder} has no run '{label}'; {known_names(label, sorted(known))}")
    if not any(result.status == "ok" for result in chosen):
        raise UserError(f"{name} has no finished run; see `modbench report`")
    finished, all_finished = ([of for of in some if of.status == "ok"] for some in (chosen, of_folder))
    lost = [result for result in chosen if result.status != "ok"]
    return Named(name, folder, label, finished, lost, all_finished, records)


def folder_of(name: str | Path, results: Path = Path()) -> tuple[Path, str]:
    """The folder of a suite at the start of ``name``, which is a path or begins in the folder
    ``results``, and the rest of it; the whole may be the rest where ``results`` or the working directory
    is such a folder. Raises UserError: there are no such results; names those that are there."""
    parts = Path(name).parts
    starts = dict.fromkeys((Path(),) if str(name).startswith(".") else (results, Path()))
    places = [*product(starts, range(len(parts), 0, -1))]
    if parts[:1] not in (("/",), ("..",)):
        places += product(starts, (0,))
    for start, length in places:
        folder = Path(start, *parts[:length])
        if _has_records(folder):
            is_named = folder.name not in ("", "..")
            return folder if is_named else folder.resolve(), "/".join(parts[length:])
    nearest = next(path for path in (Path(name), *Path(name).parents) if os.path.isdir(path))
    beginning = Path(nearest, *Path(name).relative_to(nearest).parts[:1])
    near = {path for path in nearest.glob("*") if _has_records(path)}
    inside = {path for path in results.glob("*") if _has_records(path)} - near
    if not inside | near:  # such as those of another results folder
        near = {path for path in nearest.glob("*/*") if _has_records(path)}
    known = {*map(str, near), *(path.name for path in inside)}
    raise UserError(
        f"{name} is no folder of results; name one such as my-results/quick, or a row of it such as "
        f"my-results/quick/mod; {known_names(beginning, known)}"
    )


def _has_records(folder: Path) -> bool:
    # Unlike that of a Path, this isdir is False for a name that the file system does not accept.
    return os.path.isdir(folder / RECORDS) and any((folder / RECORDS).glob("*.jsonl"))


def _of_label(text: str, results: Sequence[Result]) -> list[Result]:
    """Those of ``results`` with the label, scheme or router ``text``, or with this name of a run."""
    if whole := [result for result in results if text in (result.label, result.scheme)]:
        return whole
    parts = RunName.parsed(text)
    rows = [result for result in results if parts.row in (result.label, result.scheme)]
    rows = rows or [result for result in results if parts.row == result.run.router.name]
    return [result for result in rows if parts.names(run_name(result))]


def run_name(result: Result) -> RunName:
    """The full name of ``result``."""
    return RunName(
        row=result.label,
        budget=result.budget,
        seed=result.seed,
        learning_rate=result.learning_rate,
    )
