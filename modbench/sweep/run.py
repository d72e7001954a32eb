"""`modbench run`: a suite file to records, table and plots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from modbench import kernels
from modbench.errors import UserError, several
from modbench.records.finished import Finished, finished
from modbench.records.record import TimingKind
from modbench.records.run import RouterCode
from modbench.records.store import remove_leftovers
from modbench.sweep.command import end_of_command, run_all, store_suite
from modbench.sweep.executor import AT_ONCE, Executor, refuse_few_gpus
from modbench.sweep.job import Job, RunJob, folder_of, has_weights
from modbench.sweep.lease import make_folder, suite_lease
from modbench.sweep.local import (
    Devices,
    Local,
    refuse_machine,
    refuse_missing_devices,
    refuse_used_devices,
)
from modbench.sweep.loop import Failure
from modbench.sweep.progress import say
from modbench.sweep.ray import Ray
from modbench.sweep.refuse import (
    check_tasks,
    check_unchanged,
    refuse_before_preparing,
    refuse_more_passes,
)
from modbench.sweep.request import RunRequest
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.slurm import Slurm
from modbench.sweep.suite import Suite, load_suite
from modbench.sweep.timings import TimingPlan, refuse_blocking_launches
from modbench.sweep.track import check_trackers
from modbench.sweep.wanted import (
    Left,
    Wanted,
    chosen,
    expand,
    expand_planned,
    is_chosen,
    left_of,
    losses_of,
    titles,
)
from modbench.timing.system_load import parallel


def run_suite(request: RunRequest) -> int:
    """Do what is left of the suite of ``request``, and write its report into its folder of results.
    Returns the exit code of `modbench.sweep.command.end_of_command`.
    Raises UserError: an error in the suite, the data or the folder, or in the plugins of all rows, or an
    engine that isn't there or can't do what is requested, before anything has run."""
    workers, engine, only = request.workers, request.engine, request.only
    measure, resources = request.measure, request.resources
    if workers < 0:
        raise UserError(f"--workers is {workers}; it must be 1 or more, or 0 for one per core")
    kernels.mode()  # a wrong name is refused before anything runs
    suite = load_suite(request.name, request.settings)
    tasks = [suite.measure.task(task) for task in measure]
    if measure:
        steps = dict.fromkeys((*suite.measure.steps, "downstream"))
        suite_tasks = suite.measure.downstream if "downstream" in suite.measure.steps else ()
        named = tuple(dict.fromkeys((*suite_tasks, *measure)))
        asked = replace(suite.measure, steps=tuple(steps), downstream=named)
        suite = replace(suite, measure=asked)
    check_trackers(suite.track)
    rows = resolve(suite, request.plugins, request.like)
    # A wrong name is refused before anything runs.
    runs = chosen([*expand(rows), *expand_planned(rows)], only, rows.mistakes)
    ranks = max(item.run.train.ranks for item in runs)
    if request.rehearse:
        from modbench.sweep.rehearse import rehearse

        return rehearse(rows, only, partial(say, Console(stderr=True)))
    folder = request.results / suite.header.name
    if request.dry_run and engine != "slurm":
        raise UserError(f"--dry-run prints the script of --engine slurm; --engine {engine} has none")
    if resources and engine not in ("slurm", "ray"):
        raise UserError(
            f"--request {' '.join(resources)} is for --engine slurm or ray; --engine {engine} has "
            "--workers"
        )
    executor: Local | Slurm | Ray
    if engine in ("local", "inline"):
        refuse_machine(suite.axes.device, suite.train.precision)
        refuse_missing_devices(ranks)
        refuse_used_devices(ranks)
        if not measure and {"timing", "memory"} & {*suite.measure.steps}:
            refuse_blocking_launches()
        workers = 1 if engine == "inline" else workers or max(1, parallel()[0] // ranks)
        executor = Local(workers, Devices.here(), inline=engine == "inline")
    else:  # each task has an allocation of its own
        refuse_few_gpus(resources, ranks)
        if engine == "slurm":
            executor = Slurm(folder, resources, workers)
        else:
            executor = Ray(resources, workers, ranks)
        if not request.dry_run:
            executor.check()
    command = _Command(
        rows=rows,
        folder=folder,
        only=only,
        workers=workers,
        retry=request.retry,
        tasks=tasks,
        executor=executor,
    )
    return command.print_script() if request.dry_run else command.run()


@dataclass(kw_only=True)
class _Command:
    """One call of `modbench run` on ``folder`` (results/<suite>). ``tasks``: settings of the only tasks
    to score trained runs on; empty: all that is left is done."""

    rows: Rows
    folder: Path
    only: Sequence[str]
    workers: int  #: jobs at the same time; 0: as many as the engine grants
    retry: bool
    tasks: Sequence[dict[str, Any]]
    executor: Executor
    err: Console = field(default_factory=lambda: Console(stderr=True))

    def tell(self, sentence: str) -> None:
        say(self.err, sentence)

    def run_all(self, jobs: Sequence[Job], total: int, unit: str, on: Executor) -> list[Failure]:
        return run_all(self.rows, self.folder, jobs, total, unit, on, self.err)

    def run(self) -> int:
        """Run all that is left; write the report and show its first table; see
        `modbench.sweep.command.end_of_command`."""
        name = self.rows.suite.header.name
        failures = list[Failure]()
        for mistake in self.rows.mistakes:
            self.tell(f"{mistake}; the other rows are run")
        for sentence in self.rows.additions(self.only):
            self.tell(sentence)
        make_folder(self.folder)
        remove_leftovers(self.folder)
        tried = set[str]()
        jobs, total = self.jobs_left()
        if not jobs:
            self.tell(f"{name}: {total} of {several(total, 'run')} done")
        while jobs:
            failures += self.run_all(jobs, total, "run", self.executor)
            tried |= {job.key for job in jobs}
            # Losses tell the learning rates of an isoFLOP suite's next runs, and another process may
            # have ended in the middle of a run that it worked on.
            left, total = self.jobs_left()
            jobs = [job for job in left if job.key not in tried]
        of_step: dict[str, TimingKind] = {"timing": "training", "memory": "training_memory"}
        steps = () if self.tasks else self.rows.suite.measure.steps
        kinds = [kind for step, kind in of_step.items() if step in steps]
        if kinds and self.executor.here:
            plan = TimingPlan.of(self.rows, self.folder, self.only)
            if plan.left(kinds, repetitions=1):
                with suite_lease(self.folder, self.tell):
                    if timed := plan.left(kinds, repetitions=1):  # another command may have some
                        failures += self.run_all(timed, len(timed), "process", Local())
        if kinds and not self.executor.here:
            self.tell(
                f"times and memory are not measured by this engine; run `modbench time {name}` on the "
                "machine that is to be measured"
            )
        return end_of_command(self.rows, self.folder, failures, "leaderboard.md", self.tell)

    def print_script(self) -> int:
        """Print the script of Slurm for the jobs that are left. Returns 0."""
        assert isinstance(self.executor, Slurm)
        jobs, total = self.jobs_left(store=False)
        self.tell(f"{several(len(jobs), 'task')} of {several(total, 'run')} left; nothing is submitted")
        if jobs:
            print(self.executor.script(jobs[:AT_ONCE]), end="")
        return 0

    def jobs_left(self, *, store: bool = True) -> tuple[list[RunJob], int]:
        """Record what the suite wants, unless ``store`` is False; prepare the data once; return the jobs
        that are left of the runs with the labels ``only``, and the number of all of these runs."""
        rows = self.rows
        suite = self.rows.suite
        records = finished(self.folder)
        wanted = expand(rows, losses_of(records)) if suite.isoflop else expand(rows)
        check_unchanged(rows, wanted, records, self.folder)
        measures = suite.measure.wanted()
        runs = [item for item in wanted if is_chosen(item, self.only)]
        names = titles(wanted)
        if self.tasks:
            asked = [("downstream", task) for task in self.tasks]
            left = left_of(runs, asked, records, audit=False, retry=self.retry)
            left = self.measurable(left, names)
        else:
            audit = "audit" in suite.measure.steps
            left = left_of(runs, measures, records, audit=audit, retry=self.retry, every=wanted)
        if left:
            refuse_before_preparing(rows, {item.wanted.name for item in left})
        embedded = suite.data.source == "pypi-en-v1"  # pinned; other text may have changed since
        if left or not embedded:
            from modbench.data.token_data import prepare

            data = prepare(suite.data, say=self.tell).summary()
            _refuse_other_text(runs, records, self.folder, data["sha256"])
        if left:
            refuse_more_passes(rows, {item.wanted.name for item in left}, data["train_tokens"])
            if "downstream" in suite.measure.steps:
                check_tasks(suite, embedded)
        if store:
            store_suite(rows, wanted, expand_planned(rows), measures, self.folder, records)
        total = len({item.run.key for item in runs})
        if not left:
            return [], total
        left = [self.with_weights(item, names) for item in left]
        make = jobs_of(
            suite,
            data=data,
            threads=self.executor.threads,
            workers=max(1, self.workers),
        )
        return run_jobs(left, names, make, self.folder, rows.plugins_of), total

    def has_weights(self, item: Left) -> bool:
        run = item.wanted.run
        return has_weights(folder_of(self.folder, run.key), item.measurements)

    def with_weights(self, item: Left, names: Mapping[str, str]) -> Left:
        """``item``; it is trained again if the weights to be measured are gone."""
        if item.train or self.has_weights(item):
            return item
        kinds = sorted({str(subject["measures"]) for subject in item.measurements})
        needed = "routing at earlier points" if "routing" in kinds else "weights"
        self.tell(
            f"{names[item.wanted.run.key]}: {' and '.join(kinds)} is to be measured and its {needed} "
            "are not here; it is trained again"
        )
        return replace(item, train=True)

    def measurable(self, left: Sequence[Left], names: Mapping[str, str]) -> list[Left]:
        """Those of ``left`` whose weights are stored; the others are named by ``names``."""
        known = [item for item in left if not item.train and self.has_weights(item)]
        if lacking := [names[item.wanted.run.key] for item in left if item not in known]:
            self.tell(
                f"{several(len(lacking), 'run')} without stored weights not measured: "
                f"{', '.join(lacking)}"
            )
        return known


def jobs_of(suite: Suite, **others: Any) -> "partial[RunJob]":
    """Return a maker of jobs of ``suite``; ``others``: fields that it does not state."""
    return partial(
        RunJob,
        suite=suite.header.name,
        audit="audit" in suite.measure.steps,
        curve_tokens=suite.measure.curve_tokens,
        keep=suite.keep.weights,
        track=suite.track,
        timeout=suite.axes.cell_timeout,
        device=suite.axes.device,
        **others,
    )


def run_jobs(
    left: Sequence[Left],
    names: Mapping[str, str],
    make: "partial[RunJob]",
    folder: Path,
    plugins_of: Callable[[RouterCode], Sequence[str]],
) -> list[RunJob]:
    """A job for each run of ``left``, in ``folder`` (results/<suite>). ``names``: displayed, by key;
    ``plugins_of``: the files that register a router."""
    results = folder.resolve()
    return [
        make(
            label=item.wanted.label,
            title=names[item.wanted.run.key],
            folder=folder_of(results, item.wanted.run.key),
            results=results,
            plugins=tuple(plugins_of(item.wanted.run.router)),
            run=item.wanted.run,
            train=item.train,
            measurements=item.measurements,
        )
        for item in left
    ]


def _refuse_other_text(
    runs: Sequence[Wanted], records: Sequence[Finished], folder: Path, sha256: str
) -> None:
    keys = {item.run.key for item in runs}
    for record in records:
        if record.kind == "run" and record.key in keys and record.text != sha256:
            raise UserError(
                f"{folder} holds records of this suite made from other text (sha256 "
                f"{str(record.text)[:12]}) than it is now ({sha256[:12]}); restore that "
                "text, or give --results another folder"
            )
