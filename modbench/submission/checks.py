"""The checks of a submission, from its files to a run that is trained again."""

import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from modbench.analysis.difference import Verdict
from modbench.errors import UserError, known_names, several
from modbench.records.probes import leak_verdict
from modbench.records.record import Finding
from modbench.records.run import Run
from modbench.records.submission import STATED, Submission, read_submission
from modbench.routing.registry import code_sha256, installed_modules
from modbench.shipped import shipped_suites
from modbench.submission.isolated import Limits, isolated

#: Arguments of `modbench audit` that state a shape, by the field of the model.
_SHAPE = ("vocabulary", "width", "layers", "heads", "kv_heads", "mlp", "mlp_width", "tied_head")


@dataclass(frozen=True)
class Check:
    """One line: what was checked, how it ended, and what was seen or what to do."""

    check: str
    verdict: Literal["passed", "failed", "not run"]
    said: str


@dataclass
class _Checking:
    """The checks of the submission in ``folder`` to a board with the records in ``board``."""

    folder: Path
    board: Path | None  #: None: results/<suite>
    limits: Limits

    @cached_property
    def submission(self) -> Submission:
        return read_submission(self.folder)

    @property
    def first(self) -> Run:
        return self.submission.results[0].run

    @cached_property
    def plugin(self) -> list[str]:
        file = self.submission.file
        return ["--plugin", str(file)] if file else []

    def files(self) -> str:
        of = self.submission.stated
        return f"{self.submission.size / 1e3:,.0f} kB; {of.title}, by {', '.join(of.authors)}"

    def records(self) -> str:
        """All runs are finished, of one router, measured and audited."""
        found = self.submission.results
        for result in found:
            if result.status != "ok":
                raise UserError(f"seed {result.seed} {result.status}: {result.error}; run it again")
            if "heldout_loss" not in result.metrics:
                raise UserError(f"seed {result.seed} has no validation loss; add its measurement")
            if result.audit_key not in self.submission.records.audits:
                raise UserError(f"seed {result.seed} has no audit; add the audit's record")
        if len({(of.run.router.name, str(of.run.router.options)) for of in found}) > 1:
            raise UserError("the runs have several routers or options; submit one row")
        if (name := self.first.router.name) != self.submission.stated.router:
            raise UserError(f"the records are of router '{name}'; state it in {STATED}")
        return f"{several(len(found), 'run')} of router '{name}', digests right"

    def suite(self) -> str:
        """The runs are those of a row of the shipped suite, but for the router."""
        from modbench.sweep.rows import resolve
        from modbench.sweep.suite import load_suite
        from modbench.sweep.wanted import expand

        stated = self.submission.stated
        if stated.suite not in shipped_suites():
            raise UserError(f"suite '{stated.suite}': {known_names(stated.suite, shipped_suites())}")
        suite = load_suite(stated.suite)
        if stated.version != suite.header.version:
            raise UserError(
                f"{STATED} states version {stated.version} of suite '{stated.suite}', which is at "
                f"version {suite.header.version}; run the row again"
            )
        labels = [scheme.label for scheme in suite.schemes]
        if self.submission.name in labels:
            raise UserError(f"'{self.submission.name}' is a row of the suite; rename the folder")
        wanted = {item.label: item.run for item in reversed(expand(resolve(suite)))}
        ours = _settings(self.first)
        if any(_settings(of.run) != ours for of in self.submission.results):
            raise UserError("the runs differ in more than their seeds; submit one row")
        alike = [label for label, run in wanted.items() if _settings(run) == ours]
        if not alike:
            near = max(wanted.values(), key=lambda run: _equal(_settings(run), ours))
            named = [f"[{part}]" for part, of in _settings(near).items() if of != ours[part]]
            raise UserError(
                f"the runs have other settings than each row of '{stated.suite}', in "
                f"{' and '.join(named)}; run it as it is, --like one of {', '.join(sorted(wanted))}"
            )
        seeds = {*suite.seeds_of(next(of for of in suite.schemes if of.label == alike[-1]))}
        found = [result.seed for result in self.submission.results]
        if {*found} != seeds or len(found) != len(seeds):
            raise UserError(f"the seeds are {found}; the suite demands {sorted(seeds)}, each once")
        return f"{stated.suite}, version {stated.version}; size and rate of row '{alike[-1]}'"

    def code(self) -> str:
        """The code is that of the records."""
        hashes = {result.run.router.plugin_sha256 for result in self.submission.results}
        if (file := self.submission.file) is not None:
            now = code_sha256(file)
        else:
            name, _, stated = str(self.submission.stated.package).partition("==")
            try:
                installed = metadata.version(name)
            except metadata.PackageNotFoundError:
                raise UserError(
                    f"package {name} is not installed; install {name}=={stated} and check again"
                ) from None
            if installed != stated:
                raise UserError(f"package {name} is installed as {installed}; install {stated}")
            now = code_sha256(_source_of(self.submission.stated.router))
        if hashes != {now}:
            raise UserError(
                f"the code's sha256 is {now[:12]}, and that of the records "
                f"{', '.join(str(of)[:12] for of in hashes)}; run the row again with this code"
            )
        return f"sha256 {now[:12]}, as in the records"

    def recorded_audit(self) -> str:
        """The audit on record passed, on random and on trained weights."""
        for result in self.submission.results:
            audit = self.submission.records.audits[str(result.audit_key)]
            _refuse_failed([*audit.audit, *result.audit])
        return f"{len(audit.audit)} probes, none failed"

    def claim(self) -> str:
        """The stated word is that of the comparison with the dense row."""
        board = self.board or Path("results", self.submission.stated.suite)
        if (word := claim_of(board, self.submission)) != self.submission.stated.claim:
            raise UserError(
                f"{STATED} claims '{self.submission.stated.claim}', and the records say '{word}'; state "
                "that"
            )
        return f"'{word}', as the records say"

    def audit(self) -> str:
        """The audit passes here, at the row's shape; its probe 9 compares ledger and counter."""
        run = self.first
        shape = [f"--{name.replace('_', '-')}={getattr(run.model, name)}" for name in _SHAPE]
        options = [
            f"--option={name}={json.dumps(value)}"
            for name, value in run.router.options.items()
            if value is not None
        ]
        shape.append(f"--sequence={run.train.sequence}")
        code, printed, told = isolated(
            ["audit", run.router.name, *shape, *options, *self.plugin, "--format", "json"], self.limits
        )
        if code not in (0, 1) or not printed.strip():
            raise UserError(_last(told, f"`modbench audit` ended with code {code}"))
        probes = [Finding(**of) for of in json.loads(printed.splitlines()[-1])["probes"]]
        _refuse_failed(probes)
        (count,) = [of.verdict for of in probes if of.probe == 9]
        return f"run again: {len(probes)} probes, none failed; count: {count}"

    def verify(self) -> str:
        """One run, drawn at random, gives the recorded numbers."""
        result = random.choice(self.submission.results)
        name = f"{self.folder}/{result.run.router.name}#{result.seed}"
        code, printed, told = isolated(["verify", name, *self.plugin], self.limits)
        if code:
            lines = [*printed.splitlines(), told]
            raise UserError(
                f"seed {result.seed}, trained again: {_last(chr(10).join(lines), 'it failed')}"
            )
        return f"seed {result.seed}, trained again: {printed.splitlines()[-1]}"


#: The checks by name, in order; the last ones run the submission's code.
_CHECKS: Mapping[str, Callable[[_Checking], str]] = {
    "files": _Checking.files,
    "records": _Checking.records,
    "suite": _Checking.suite,
    "code": _Checking.code,
    "audit on record": _Checking.recorded_audit,
    "claim": _Checking.claim,
    "audit": _Checking.audit,
    "a run": _Checking.verify,
}
#: That run the submission's code.
_RUN_CODE = ("audit", "a run")


def checks(
    folder: Path, board: Path | None, limits: Limits, leave_out: Collection[str] = ()
) -> Iterator[Check]:
    """The outcomes of the checks of the submission in ``folder``, but for those in ``leave_out``, to a
    board with the records in ``board``, by default results/<suite>. After a failure the code isn't
    run, and without readable files and records nothing more is checked."""
    checking, failed = _Checking(folder, board, limits), set[str]()
    for name, check in _CHECKS.items():
        if name in leave_out:
            continue
        if failed & {"files", "records"} or (failed and name in _RUN_CODE):
            yield Check(name, "not run", "an earlier check failed")
            continue
        try:
            yield Check(name, "passed", check(checking))
        except UserError as error:
            failed.add(name)
            yield Check(name, "failed", " ".join(str(error).split()))


def claim_of(board: Path, submission: Submission) -> Verdict:
    """The verdict on the row of ``submission`` minus the dense row of ``board``, in one family with the
    rows there. Raises UserError: there is none."""
    from modbench.report.api import pairs

    frame = pairs(board, [submission])
    word = frame[(frame["family"] == "dense") & (frame["scheme"] == submission.name)]
    if word.empty:
        raise UserError(f"the row can't be compared with the dense row of {board}: it is not ranked")
    verdict, why = word.iloc[0][["verdict", "no_verdict_because"]]
    if pd.isna(verdict):
        raise UserError(f"the difference to the dense row has no verdict ({why}); complete {board}")
    return cast("Verdict", verdict)


def _source_of(router: str) -> Path:
    """The file of an installed ``router``, which isn't imported. Raises UserError: no package has it."""
    package, *parts = installed_modules().get(router, "").split(".")
    spec = util.find_spec(package) if package else None
    if spec is None:
        raise UserError(f"no installed package has router '{router}'; state the one that has it")
    if not parts:
        return Path(str(spec.origin))
    path = Path((spec.submodule_search_locations or [""])[0], *parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _settings(run: Run) -> dict[str, Any]:
    """What all rows of a size share."""
    return {name: of for name, of in run.as_json().items() if name not in ("router", "seed")}


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    return sum(one[part] == other[part] for part in one)


def _refuse_failed(findings: list[Finding]) -> None:
    verdict = leak_verdict(findings)
    failed = [of for of in findings if of.verdict == "failed"]
    if verdict != "passed" and not failed:
        raise UserError(f"audit: leaks {verdict}; run the row with the audit's step")
    for of in failed:
        raise UserError(f"the audit failed probe {of.probe} {of.name}: {of.figure}")


def _last(told: str, otherwise: str) -> str:
    lines = [line for line in told.splitlines() if line.strip()]
    return (lines[-1] if lines else otherwise).removeprefix("modbench: ")[:400]
