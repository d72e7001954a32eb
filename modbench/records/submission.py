"""The folder of a submission: submission.toml, the router's file or the name of its package, and
``records/``. Nothing here runs its code. Loads no torch."""

import json
import os
import re
import stat
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from modbench.analysis.difference import Verdict
from modbench.errors import UserError
from modbench.records.names import LABEL, LABEL_WORDS
from modbench.records.result import Result, results_of
from modbench.records.store import RECORDS, Records, read_suite
from modbench.typed import Count, built

STATED = "submission.toml"
#: Bytes of all files of a submission. One of the board has 1 MB.
LARGEST = 20_000_000
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The keys of submission.toml. Raises UserError: a code that isn't one file of the folder or one
    version of a package, or an address that is none."""

    title: str
    authors: tuple[str, ...]
    licence: str  #: of the code, by its SPDX name
    suite: str
    version: Count  #: of the suite
    claim: Verdict  #: of the difference to the dense row
    router: str  #: as the code registers it
    file: str | None = None  #: that registers it, by its path in the folder
    package: str | None = None  #: that registers it, as NAME==VERSION; in place of a file
    paper: str | None = None  #: its address

    def __post_init__(self) -> None:
        if (self.file is None) == (self.package is None):
            raise UserError("file and package: state one of them, the router's code")
        path = PurePosixPath(self.file or "x.py")
        if path.suffix != ".py" or path.is_absolute() or ".." in path.parts:
            raise UserError(f"file is '{self.file}'; it must be the path of a .py file in the folder")
        if self.package is not None and not _PACKAGE.fullmatch(self.package):
            raise UserError(f"package is '{self.package}'; write it as NAME==VERSION")
        if self.paper is not None and not re.fullmatch(r"https://[!-~]{1,200}", self.paper):
            raise UserError(f"paper is '{self.paper}'; it must be an address that starts with https://")
        if not LABEL.fullmatch(self.router):
            raise UserError(f"router is '{self.router}'; it must be {LABEL_WORDS}")

    def to_toml(self) -> str:
        """The contents of submission.toml."""
        # A JSON string is a TOML string, but for \\u007f, which no key may hold.
        lines = [(name, json.dumps(value)) for name, value in asdict(self).items() if value is not None]
        return "".join(f"{name} = {value}\n" for name, value in lines)


@dataclass(frozen=True)
class Submission:
    """A submission in ``folder``; its rows on a board have the folder's name."""

    folder: Path
    stated: Statement
    size: int  #: bytes of its files

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def file(self) -> Path | None:
        """The router's file; None: it is in a package."""
        return None if self.stated.file is None else self.folder / self.stated.file

    @cached_property
    def records(self) -> Records:
        """Raises UserError: see `modbench.records.store.read_suite`; or there are none."""
        records = read_suite(self.folder)
        if not records.runs:
            raise UserError(
                f"{self.folder / RECORDS}: there is no record of a run; add those of the row"
            )
        return records

    @cached_property
    def results(self) -> Sequence[Result]:
        """The results of its runs, by seed."""
        named = {"name": self.stated.suite, "version": self.stated.version}
        return sorted(
            (
                replace(of, label=self.name, suite={**of.suite, **named})
                for of in results_of(replace(self.records, suites=[]))
            ),
            key=lambda result: result.seed,
        )


def read_submission(folder: Path) -> Submission:
    """The submission in ``folder``; its records are read when they are used. Raises UserError: no
    submission.toml or a wrong one, a link or a special file, or too many bytes."""
    if not LABEL.fullmatch(name := folder.resolve().name):
        raise UserError(f"{folder}: its name '{name}' names the row, so it must be {LABEL_WORDS}")
    total = 0
    for parent, folders, files in os.walk(folder):
        for path in map(Path(parent).joinpath, (*folders, *files)):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                total += found.st_size
            elif not stat.S_ISDIR(found.st_mode):
                raise UserError(f"{path}: it is a link or no regular file; put the file itself there")
    if total > LARGEST:
        raise UserError(
            f"{folder} has {total / 1e6:,.0f} MB, and a submission at most {LARGEST / 1e6:.0f}; keep "
            "its code, its records and submission.toml alone"
        )
    file = folder / STATED
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; write the folder with `modbench submit`")
    try:
        table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} isn't TOML ({error}); fix it there") from error
    submission = Submission(folder, built(f"{file}:", table, Statement), total)
    if submission.file and not submission.file.is_file():
        raise UserError(f"{submission.file}: there is no such file; add it, or change file in {STATED}")
    return submission


def submissions_to(suite: str, folder: Path | None) -> list[Submission]:
    """The submissions to ``suite`` in the folders of ``folder``, by name; None: none. Raises UserError:
    there is no such folder, or one is damaged."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(f"folder of submissions {folder}: there is none; give one that exists")
    every = (read_submission(file.parent) for file in sorted(folder.glob(f"*/{STATED}")))
    return [of for of in every if of.stated.suite == suite]
