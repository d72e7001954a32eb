"""`modbench verify`: trains recorded runs again, and tells which of their metrics come out equal."""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from modbench.data.token_data import prepare
from modbench.errors import UserError, several
from modbench.evaluate.outside import outside, permit
from modbench.records.line import as_json
from modbench.records.metrics import METRICS
from modbench.records.named import Named, named, run_name
from modbench.records.result import Result
from modbench.records.run import RouterCode
from modbench.records.store import recorded_suites
from modbench.report.compare import Comparison, Paired, means, metrics_of, same_machine, unequal
from modbench.routing.registry import code_sha256, foreign_routers
from modbench.sweep.job import RunJob
from modbench.sweep.local import Local
from modbench.sweep.loop import Loop
from modbench.sweep.progress import clock, say, show_progress
from modbench.sweep.run import run_jobs
from modbench.sweep.wanted import Left, Wanted
from modbench.timing.system_load import parallel

#: Sentences on a run.
EQUAL, WITHIN = "equal in every digit", "not equal, within what another machine explains"
NOT_VERIFIED = "not verified"
#: Largest difference on another machine: of shares and accuracies; of others as a part of the value; of
#: counts of experts; and of exact ones, which may be sums of logarithms, as a part of the value.
_SHARE, _PART, _EXPERTS, _LAST_DIGITS = 0.05, 0.25, 3.0, 1e-9
#: Environment variable that selects kernels.
_KERNELS = "MODBENCH_KERNELS"


def verify(
    names: Sequence[str],
    *,
    results: Path,
    sample: int | None = None,
    within: float,
    plugins: Sequence[Path] = (),
    allow: Sequence[str] = (),
) -> int:
    """Train the runs that ``names`` stand for again and print which metrics come out equal; see
    `modbench.records.named.named`; no names: all suites in ``results``. Nothing is stored. Each run has
    the threads and kernels that its record states. ``sample``: the number of runs, drawn at random;
    None: all. ``allow``: names of texts, data sets and tasks that records may name.

    Returns 0, or 1 if a run could not be trained, an exact metric differs, a machine that is recorded as
    equal gives other digits, or another one gives a loss that differs by more than ``within`` nats per
    token, or another metric beyond its tolerance. Raises UserError: there are no such records, or
    they name what is not allowed."""
    console = Console(stderr=True)
    chosen = _drawn([named(name, results) for name in names or recorded_suites(results)], sample)
    if not chosen:
        raise UserError(f"results folder {results} holds no finished run to verify")
    needed: dict[str, str] = {}
    for side, result in chosen:
        subjects = _measurements([other for other in side.results if other.key == result.key])
        tasks = [of["settings"] for of in subjects if of["measures"] == "downstream"]
        needed |= outside(result.run.data, tasks)
    permit(several(len(chosen), "run"), needed, allow, partial(say, console))
    seconds = sum(sum((result.record.seconds or {}).values()) for _, result in chosen)
    runs = several(len(chosen), "run")
    say(console, f"training {runs} again, which took {clock(seconds)} when recorded")
    found = dict[str, str]()
    for side, result in chosen:
        title = f"{side.folder.name}/{run_name(result)}"
        try:
            found[title] = _compared(side, result, within, plugins, console)
        except UserError as error:  # the others go on
            say(console, f"{title}: {error}")
            found[title] = NOT_VERIFIED
    count = Counter(found.values())
    parts = [f"{count[words]} {words}" for words in (EQUAL, WITHIN) if count[words]]
    failed = [title for title, words in found.items() if words == NOT_VERIFIED]
    parts += [f"not verified: {', '.join(failed)}"] if failed else []
    print(f"{runs}: {'; '.join(parts)}")
    return 1 if failed else 0


def _drawn(sides: Sequence[Named], sample: int | None) -> list[tuple[Named, Result]]:
    """The runs of ``sides``, each once, at its largest budget; at most ``sample`` of them."""
    runs = {
        (side.folder, result.key): (side, result)
        for side in sides
        for result in sorted(side.results, key=lambda result: result.budget)
    }
    chosen = list(runs.values())
    return chosen if sample is None else random.sample(chosen, min(sample, len(chosen)))


def _compared(
    side: Named, result: Result, within: float, plugins: Sequence[Path], console: Console
) -> str:
    """Train the run of ``result`` again and print what comes out: `EQUAL`, `WITHIN` or `NOT_VERIFIED`.
    Raises UserError: it can't be trained here."""
    recorded = [other for other in side.results if other.key == result.key]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / side.folder.resolve().name
        if not _trained(recorded, folder, plugins, console):
            return NOT_VERIFIED
        again = named(str(folder))
    comparison = Comparison(
        replace(side, results=recorded),
        replace(again, results=[replace(other, label=result.label) for other in again.results]),
    )
    agrees = True
    for label, pairs in comparison.matched.items():
        print(f"{side.folder.name}/{label}#{result.seed}: {_sentence(pairs)}")
        agrees &= _agrees(pairs, within)
    if not any(map(unequal, comparison.matched.values())):
        return EQUAL
    for reason in comparison.reasons():
        print(f"  {reason}")
    return WITHIN if agrees else NOT_VERIFIED


def _trained(
    recorded: Sequence[Result], folder: Path, plugins: Sequence[Path], console: Console
) -> bool:
    """Train the run of ``recorded`` (one entry per budget) in ``folder`` with all measurements that are
    recorded; return False if that failed, and say why."""
    first = recorded[0]
    run, environment = first.run, first.record.environment
    try:
        data = prepare(run.data, say=lambda text: say(console, text)).summary()
    except UserError as error:
        where = "; a relative path is one from the folder in which the suite was run"
        raise UserError(f"{error}{where if run.data.path else ''}") from error
    if data["sha256"] != (text := first.record.data["sha256"]):
        raise UserError(
            f"{run_name(first)} was trained on other text (sha256 {text[:12]}) than "
            f"{run.data.source} is now ({data['sha256'][:12]}); restore that text"
        )
    left = Left(
        wanted=Wanted(label=first.label, run=run), train=True, measurements=_measurements(recorded)
    )
    threads = environment.get("threads") or parallel()[1]
    make = partial(RunJob, suite=folder.name, data=data, threads=threads)
    names = {run.key: f"{first.label}#{first.seed}"}
    (job,) = run_jobs([left], names, make, folder, partial(_files_of, plugins=plugins))
    with _kernels_of(environment), show_progress(console) as progress:
        progress.begin(folder.name, total=1, done=0, unit="run")
        failures = Loop(folder, Local(), progress).run([job])
    for failure in failures:
        say(console, f"{failure.title} {failure.status}: {failure.error}")
    return not failures


def _measurements(recorded: Sequence[Result]) -> tuple[dict[str, Any], ...]:
    """The measurements of ``recorded``, each once."""
    subjects = {
        record.key: as_json(record.measurement)
        for result in recorded
        for record in result.measurements
        if record.status == "ok" and record.measurement.measures != "audit"
    }
    return tuple(subjects.values())


@contextmanager
def _kernels_of(environment: Mapping[str, Any]) -> Iterator[None]:
    """Use the kernels of ``environment`` in jobs, unless the user has chosen some."""
    kernels = environment.get("kernels")
    if kernels is None or _KERNELS in os.environ:
        yield
        return
    os.environ[_KERNELS] = kernels
    try:
        yield
    finally:
        del os.environ[_KERNELS]


def _files_of(router: RouterCode, plugins: Sequence[Path]) -> list[str]:
    """The file among ``plugins`` with the recorded code of ``router``; none for one of modbench or of an
    installed package. Raises UserError: no file has that code."""
    if router.plugin_sha256 is None or (not plugins and router.name in foreign_routers()):
        return []
    for file in plugins:
        if file.is_file() and code_sha256(file) == router.plugin_sha256:
            return [str(file.resolve())]
    raise UserError(
        f"router '{router.name}' was recorded with a plugin file of sha256 {router.plugin_sha256[:12]}; "
        "give that file, as it was then, with --plugin"
    )


def _sentence(pairs: Paired) -> str:
    """Which metrics of ``pairs`` came out equal, and by how much the others differ."""
    parts = []
    for kind, equal in (("exact", "equal"), ("quality", "equal to the bit")):
        of_kind = [name for name in metrics_of(pairs) if METRICS[name].kind == kind]
        others = [name for name in of_kind if name in unequal(pairs)]
        count = f"{len(of_kind) - len(others)} of {len(of_kind)}" if others else f"{len(of_kind)}"
        parts.append(f"{count} {kind} metrics {equal}")
        for name in others:
            recorded, again = means(pairs, name)
            part = abs(again - recorded) / max(abs(recorded), abs(again))
            parts.append(f"{name} {recorded:.6g} | {again:.6g} (relative difference {part:.1g})")
    return "; ".join(parts)


def _agrees(pairs: Paired, within: float) -> bool:
    """Return True if the differences of ``pairs`` are those that another machine explains."""
    differ = unequal(pairs)
    if differ and same_machine(pairs):
        return False
    return all(_is_within(name, pairs, within) for name in differ)


def _is_within(metric: str, pairs: Paired, within: float) -> bool:
    """Return True if another machine explains the difference in ``metric``."""
    recorded, again = means(pairs, metric)
    unit = METRICS[metric].unit
    most = _PART * abs(recorded)
    if METRICS[metric].kind == "exact":
        most = _LAST_DIGITS * abs(recorded)
    elif unit == "nats/token":
        most = within
    elif unit == "bits/byte" and "heldout_loss" in metrics_of(pairs):
        most = within * recorded / means(pairs, "heldout_loss")[0]
    elif unit in ("share", "accuracy"):
        most = _SHARE
    elif unit == "experts":
        most = max(most, _EXPERTS)
    return abs(again - recorded) <= most
