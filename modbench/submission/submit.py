"""`modbench submit`: writes the folder of a submission, and refuses what its checks would refuse."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from modbench.errors import UserError
from modbench.records.named import named
from modbench.records.store import RECORDS
from modbench.records.submission import STATED, Statement, read_submission
from modbench.routing.registry import installed_modules, package_of
from modbench.submission.checks import checks, claim_of
from modbench.submission.isolated import Limits
from modbench.sweep.suite import load_suite

_LIMITS = Limits(minutes=30, gigabytes=16)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `modbench submit` is asked for."""

    row: str  #: its label in the results
    suite: str
    results: Path  #: folder that holds one folder per suite
    board: Path  #: folder of the board's records
    plugin: Path | None  #: the router's file; None: it is in an installed package
    title: str | None
    authors: Sequence[str]
    licence: str
    paper: str | None
    out: Path


def submit(request: Request, say: Callable[[str], object]) -> int:
    """Write the submission; `say` is called with a line on each check. Returns 0. Raises UserError: a
    check fails, and then nothing is written; there are no such records; or the folder exists."""
    out = request.out
    if os.path.lexists(out):
        raise UserError(f"{out} exists; remove it, or give another folder with --out")
    suite = load_suite(request.suite).header
    side = named(f"{request.results / request.suite}/{request.row}")
    chosen = [of for of in side.results if of.in_suite] or [*side.results]
    if not chosen:
        raise UserError(f"row '{request.row}' has no finished run in {side.folder}; run the suite first")
    first = chosen[0]
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".submit.") as temporary:
        made = Path(temporary, out.absolute().name)
        (made / RECORDS).mkdir(parents=True)
        audits = {str(of.audit_key) for of in chosen} & side.records.audits.keys()
        lines = {of.record.line() for of in chosen}
        lines |= {record.line() for of in chosen for record in of.measurements}
        lines |= {side.records.audits[key].line() for key in audits}
        text = "".join(f"{line}\n" for line in sorted(lines))
        (made / RECORDS / "runs.jsonl").write_text(text, encoding="utf-8")
        name = first.run.router.name
        file = _copied(request.plugin, made) if request.plugin else None
        stated = Statement(
            title=request.title or request.row,
            authors=tuple(request.authors),
            licence=request.licence,
            paper=request.paper,
            suite=suite.name,
            version=suite.version,
            router=name,
            file=file,
            package=None if file else _package_of(name),
            claim="undecided",
        )
        (made / STATED).write_text(stated.to_toml(), encoding="utf-8")
        for check in checks(made, request.board, _LIMITS, leave_out=("claim", "a run")):
            if check.verdict == "failed":
                raise UserError(f"nothing is written: {check.check}: {check.said}")
            say(f"{check.check}: {check.said}")
        claim = claim_of(request.board, read_submission(made))
        (made / STATED).write_text(replace(stated, claim=claim).to_toml(), encoding="utf-8")
        say(f"claim: {claim}, compared with the dense row of {request.board}")
        os.replace(made, out)
    return 0


def _copied(plugin: Path, folder: Path) -> str:
    """Copy the file ``plugin``, with all Python files of the package that it is in, into ``folder``;
    return its path there. Raises UserError: there is none."""
    if not plugin.is_file():
        raise UserError(f"plugin {plugin}: there is no such file; give the router's file")
    file = plugin.resolve()
    package = package_of(file)
    for source in sorted(package.rglob("*.py")) if package else [file]:
        target = folder / source.relative_to((package or file).parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return file.relative_to((package or file).parent).as_posix()


def _package_of(router: str) -> str:
    """The installed package of ``router`` as NAME==VERSION. Raises UserError: none has it."""
    module = installed_modules().get(router, "")
    names = metadata.packages_distributions().get(module.partition(".")[0])
    if not names or module.startswith("modbench."):
        raise UserError(
            f"router '{router}' is of no installed package; give its file with --plugin, as it was when "
            "the runs were made"
        )
    return f"{names[0]}=={metadata.version(names[0])}"
