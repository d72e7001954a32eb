"""Finds the record of a trained run by its name, RESULTS/SUITE/LABEL or RESULTS/SUITE/KEY."""

from collections.abc import Sequence
from pathlib import Path

from modbench.errors import UserError, known_names
from modbench.records.result import Result, results_of
from modbench.records.store import read_suite, recorded_suites

#: What may differ between the runs of one label.
_AXES = ("budget", "learning_rate", "seed")


def find_result(run: str | Path, results: Path | None = None) -> tuple[Path, Result]:
    """Return the suite's folder and the result of ``run``: the path RESULTS/SUITE/LABEL or
    RESULTS/SUITE/KEY, where the first characters of a key suffice; or SUITE/LABEL or SUITE/KEY in the
    folder ``results``. Raises UserError: no such run, several, or one that failed."""
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
    named = [result for result in known if result.label == name]
    named = named or [result for result in known if name and result.key.startswith(name)]
    trained = [result for result in named if result.status == "ok"]
    if len({result.key for result in trained}) == 1:
        return suite, trained[-1]  # of several budgets of one run, the largest
    if trained:
        keys = ", ".join(f"{before}{result.key[:8]}{_axes(result, trained)}" for result in trained)
        raise UserError(f"run '{run}' is one of {len(trained)} trained runs; name one of {keys}")
    if named:
        status, error = named[0].status, named[0].error
        raise UserError(f"run '{run}' has no trained model, it is recorded as {status} ({error})")
    runs = {f"{before}{result.label}" for result in known}
    raise UserError(f"run '{run}' is not known; {known_names(run, runs)}")


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


def _axes(result: Result, others: Sequence[Result]) -> str:
    """Return in brackets where ``result`` differs from ``others``."""
    varied = [axis for axis in _AXES if len({getattr(other, axis) for other in others}) > 1]
    words = ", ".join(f"{axis.replace('_', ' ')} {getattr(result, axis):g}" for axis in varied)
    return f" ({words})" if words else ""
