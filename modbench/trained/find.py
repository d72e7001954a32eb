"""Finds the record of a trained run by its name, RESULTS/SUITE/LABEL@BUDGET#SEED or
RESULTS/SUITE/KEY."""

import sys
from collections.abc import Sequence
from pathlib import Path

from modbench.errors import UserError, known_names
from modbench.records.result import Result, results_of
from modbench.records.run_name import RunName, shortest
from modbench.records.store import read_suite, recorded_suites


def find_result(run: str | Path, results: Path | None = None) -> tuple[Path, Result]:
    """Return the suite's folder and the result of ``run``: the path RESULTS/SUITE/NAME, or SUITE/NAME in
    the folder ``results``. A NAME is that of `modbench.records.run_name`, or has the first characters of
    a key in place of its label; parts that tell nothing apart may be left out. Of runs that differ in
    their seed only, the first is taken, and standard error says so. Raises UserError: no such run,
    several, or one that failed."""
    path = Path(run)
    if results is not None and _suite_of(path) is None:
        path = results / run
    suite = _suite_of(path)
    known = results_of(read_suite(suite)) if suite else []
    if suite is None or not known:
        raise UserError(_not_a_run(run, path, results))
    name = "" if path == suite else path.relative_to(suite).as_posix()
    before = str(run).removesuffix("/")
    before = before[: len(before) - len(name)] if name else f"{before}/"
    named = _named(name, known)
    trained = [result for result in named if result.status == "ok"]
    if len({(result.key, result.budget) for result in trained}) == 1:
        return suite, trained[-1]
    first = [result for result in trained if result.seed == min(of.seed for of in trained)]
    if len(first) == 1 and {result.label for result in trained} == {RunName.parsed(name).row}:
        words = f"seed {first[0].seed} is taken, the first of {len(trained)}"
        another = f"{before}{_names_of(trained[-1:], known)[0]}"
        print(f"modbench: run '{run}': {words}; another is {another}", file=sys.stderr)
        return suite, first[0]
    if trained:
        names = ", ".join(before + shown for shown in _names_of(trained, known))
        raise UserError(f"run '{run}' is one of {len(trained)} trained runs; name one of {names}")
    if named:
        status, error = named[0].status, named[0].error
        raise UserError(f"run '{run}' has no trained model, it is recorded as {status} ({error})")
    of_row = [result for result in known if result.label == RunName.parsed(name).row]
    others = _names_of(of_row, known) or {result.label for result in known}
    raise UserError(f"run '{run}' is not known; {known_names(run, [before + row for row in others])}")


def _named(name: str, known: Sequence[Result]) -> list[Result]:
    """The results of ``known`` that ``name`` may mean."""
    if labelled := [result for result in known if result.label == name]:
        return labelled
    parts = RunName.parsed(name)
    fitting = [result for result in known if name and parts.names(_full_name(result))]
    labelled = [result for result in fitting if result.label == parts.row]
    return labelled or [result for result in fitting if result.key.startswith(parts.row)]


def _full_name(result: Result) -> RunName:
    return RunName(
        row=result.label,
        budget=result.budget,
        seed=result.seed,
        learning_rate=result.learning_rate,
    )


def _names_of(results: Sequence[Result], known: Sequence[Result]) -> list[str]:
    """The names of ``results``, which tell them apart from all of ``known``."""
    names = shortest([_full_name(result) for result in known], [result.key for result in known])
    return [name for name, result in zip(names, known, strict=True) if result in results]


def _suite_of(path: Path) -> Path | None:
    """Return the folder of the suite that ``path`` names a run of; labels may hold one slash."""
    for folder in (path, *path.parents[:2]):
        if any((folder / "records").glob("*.jsonl")):
            return folder
    return None


def _not_a_run(run: str | Path, path: Path, results: Path | None) -> str:
    if results is not None:
        suites = recorded_suites(results)
        return (
            f"run '{run}' must be SUITE/LABEL, such as quick/mod, with records in {results}; "
            f"{known_names(str(run).partition('/')[0], suites)}"
        )
    results = path.parent.parent
    suites = [str(results / suite) for suite in recorded_suites(results)]
    return (
        f"'{run}' must be a run, RESULTS/SUITE/LABEL such as my-results/quick/mod, or a folder with "
        f"model.safetensors; suites {known_names(path.parent, suites)}"
    )
