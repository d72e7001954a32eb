"""Expands a suite into the runs that it wants, under labels, and tells which of them are left: wanted
minus recorded."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import log
from typing import Any

from modbench.analysis.learning_rate import rate_at
from modbench.errors import UserError, known_names
from modbench.model.config import ModelConfig
from modbench.records.finished import Finished
from modbench.records.line import key_of
from modbench.records.record import DONE
from modbench.records.run import RouterCode, Run
from modbench.records.run_name import RunName, shortest
from modbench.sweep.isoflop import (
    Point,
    chosen_rate,
    ends,
    law_of,
    middle_of,
    points,
    shift_of,
    stated,
    trials,
)
from modbench.sweep.rows import Resolved, Rows
from modbench.sweep.suite import Scheme, Suite
from modbench.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run under the label of its row."""

    label: str  #: the scheme's, in suites of several shapes with its shape's
    run: Run

    @property
    def scheme(self) -> str:
        """The label of its scheme."""
        return self.label.partition("/")[0]

    @property
    def budget(self) -> int:
        """The largest budget, which the run ends at."""
        return self.run.schedule.budgets[-1]


def expand(rows: Rows, done: Mapping[str, float | None] | None = None) -> list[Wanted]:
    """Return the runs of ``rows`` in the suite's order. A plugin's router that can't take a shape is
    added to the mistakes of ``rows``, and its runs are left out. isoFLOP runs come in blocks
    (`_in_blocks`). ``done``: loss by key of the runs that are done, which tells the learning rates of
    isoFLOP grids; None: diverged. Raises UserError: a built-in router can't take a shape, or a budget is
    smaller than one training step; the sentence starts with the suite."""
    suite = rows.suite
    if suite.isoflop is None:
        return _grid_runs(rows)
    known = (scheme for scheme in suite.schemes if scheme.label in rows.resolved)
    runs = [wanted for scheme in known for wanted in _isoflop_runs(rows, scheme, done or {})]
    return _in_blocks(suite, runs)


def expand_planned(rows: Rows) -> list[Wanted]:
    """The runs of ``rows`` once all are known; of isoFLOP grids, as if the middle learning rate is best
    and its law holds. Raises UserError: see `expand`."""
    suite = rows.suite
    if suite.isoflop is None:
        return expand(rows)
    known = (scheme for scheme in suite.schemes if scheme.label in rows.resolved)
    return _in_blocks(
        suite, [wanted for scheme in known for wanted in _isoflop_runs(rows, scheme, None)]
    )


def _in_blocks(suite: Suite, runs: Sequence[Wanted]) -> list[Wanted]:
    """isoFLOP ``runs`` in the order in which they are run. All schemes of one budget, seed and size
    stand together, so that one machine runs them. A sweep that takes days compares all schemes with one
    seed at the middle budget, then at smaller ones; further seeds and larger budgets follow. Runs that
    only check a learning rate of another size come last."""
    budgets = sorted(suite.axes.budgets)
    middle = budgets[len(budgets) // 2]
    widths: dict[tuple[str, int], set[int]] = defaultdict(set)
    for wanted in runs:
        widths[wanted.scheme, wanted.budget].add(wanted.run.model.width)

    def turn(wanted: Wanted) -> tuple[bool, int, bool, int]:
        budget = wanted.budget
        seeds = suite.axes.seeds
        sizes = sorted(widths[wanted.scheme, budget])
        size = sizes.index(wanted.run.model.width)
        chooses_rate = size == len(sizes) // 2
        turn_of_seed = -1 if chooses_rate else len(seeds)
        if wanted.run.seed in seeds:
            turn_of_seed = seeds.index(wanted.run.seed)
        return budget > middle, turn_of_seed, budget != middle, size

    return sorted(runs, key=turn)


def _grid_runs(rows: Rows) -> list[Wanted]:
    """The runs of a suite without isoFLOP grids: schemes times shapes times budgets times seeds. A
    trapezoid spends all budgets in one run."""
    suite = rows.suite
    runs = list[Wanted]()
    for number, size in enumerate(suite.shapes):
        for scheme in suite.schemes:
            row = rows.resolved.get(scheme.label)
            if row is None:  # its plugin has a mistake
                continue
            label = f"{scheme.label}/{size}" if size else scheme.label
            flops = row.flops[number]
            if isinstance(flops, str):
                mistake = UserError(f"suite {suite.source}: row '{label}': {flops}")
                if row.plugin is None:
                    raise mistake
                if str(mistake) not in map(str, rows.mistakes):
                    rows.mistakes.append(mistake)
                continue
            table = suite.training_of(scheme)
            for budget in suite.axes.budgets:
                if budget < flops:
                    raise UserError(
                        f"suite {suite.source}: [sweep] budgets: budget {budget:g} is smaller than one "
                        f"training step of '{label}', which takes {flops:g} FLOPs; raise it there, or "
                        "shrink batch, sequence or model"
                    )
            together = table.schedule == "trapezoid"
            for budgets in [suite.axes.budgets] if together else [(b,) for b in suite.axes.budgets]:
                for seed in suite.axes.seeds:
                    run = Run(
                        router=_router(row),
                        model=suite.shapes_of(scheme)[size],
                        data=suite.data,
                        train=table.config(),
                        schedule=table.schedule_of(budgets),
                        seed=seed,
                    )
                    runs.append(Wanted(label=label, run=run))
    return runs


def _router(row: Resolved) -> RouterCode:
    options = json.loads(json.dumps(row.options))  # lists for tuples, as records have them
    return RouterCode(name=row.name, options=options, plugin_sha256=row.plugin_sha256)


def _isoflop_runs(rows: Rows, scheme: Scheme, done: Mapping[str, float | None] | None) -> list[Wanted]:
    """The runs of ``scheme`` that are known now that those of ``done`` are; None: as if the middle
    learning rate is best and its law holds."""
    suite = rows.suite
    row = rows.resolved[scheme.label]
    config = suite.family_of(scheme)
    seeds = suite.axes.seeds
    grids = grids_of(rows, scheme)
    table = suite.training_of(scheme)
    router = _router(row)

    @cache
    def wanted(point: Point) -> Wanted:
        run = Run(
            router=router,
            model=point.shape,
            data=suite.data,
            train=replace(table, learning_rate=point.learning_rate).config(),
            schedule=_on_curve(table.schedule_of((point.budget,)), min(grids)),
            seed=point.seed,
        )
        return Wanted(label=f"{scheme.label}/w{point.shape.width}", run=run)

    def loss(point: Point, expected: float) -> float | None:
        """That of a run that is done, or as if ``expected`` is the best rate."""
        distance = abs(log(point.learning_rate / expected))
        return distance if done is None else done[wanted(point).run.key]

    def known(points: Sequence[Point]) -> list[Point]:
        return [point for point in points if done is None or wanted(point).run.key in done]

    middle_rate = config.learning_rates[len(config.learning_rates) // 2]
    losses: dict[float, float | None] = {}
    while True:
        tried = trials(config, grids, seeds, losses)
        fresh = [point for point in known(tried) if point.learning_rate not in losses]
        if not fresh:
            break
        losses |= {point.learning_rate: loss(point, middle_rate) for point in fresh}
    checks: dict[tuple[int, float], float | None] = {}
    best = chosen_rate(config, losses).best
    width = middle_of(grids).shape.width
    if best is not None:
        for point in known(law := ends(config, grids, seeds, best)):
            rate = rate_at(best, width, point.shape.width, config.exponent)
            checks[point.shape.width, point.learning_rate] = loss(point, rate)
        tried += law if config.refine else []
    grid_points = points(config, grids, seeds, losses, checks)
    if config.recentre and done is not None and best is not None:
        middle = middle_of(grids)
        exponent = law_of(config, grids, seeds, best, checks) or 0.0
        curve = {
            point.shape: done[wanted(point).run.key]
            for point in known(grid_points)
            if (point.budget, point.seed) == (middle.budget, seeds[0])
            and point.learning_rate == rate_at(best, width, point.shape.width, exponent)
        }
        if len(curve) < config.sizes:  # the other budgets wait for the middle one
            grid_points = [point for point in grid_points if point.budget == middle.budget]
        else:
            sizes = row.grid_sizes[suite.axes.budgets.index(middle.budget)]
            of_sizes = [curve[shape] for shape in grids[middle.budget]]
            moved = grids_of(rows, scheme, shift_of(sizes, of_sizes, config.spacing))
            grid_points = points(config, moved, seeds, losses, checks)
    if table.schedule == "cosine":
        return [wanted(point) for point in grid_points]
    rates = [wanted(point) for point in grid_points if point in tried]
    curves = [wanted(point) for point in grid_points if point not in tried]
    return [*rates, *_on_trunks(curves)]


def _on_curve(schedule: Schedule, smallest: int) -> Schedule:
    """``schedule`` of a run of one budget. That of a trapezoid warms up for as many FLOPs as at the
    ``smallest`` budget, so that all points are alike, whether they share a trunk or not."""
    if schedule.kind == "cosine":
        return schedule
    return replace(schedule, warmup=round(schedule.warmup * smallest / schedule.budgets[0], 12))


def _on_trunks(runs: Sequence[Wanted]) -> list[Wanted]:
    """``runs`` of trapezoids, those that differ in their budget only as one."""
    trunks: dict[str, Wanted] = {}
    for wanted in runs:
        run = wanted.run
        alike = key_of(run.as_json() | {"schedule": None})
        others = trunks[alike].run.schedule.budgets if alike in trunks else ()
        budgets = tuple(sorted({*others, *run.schedule.budgets}))
        warm_up = run.schedule.warmup * run.schedule.budgets[0]  # FLOPs
        schedule = replace(run.schedule, budgets=budgets, warmup=round(warm_up / budgets[0], 12))
        trunks[alike] = Wanted(label=wanted.label, run=replace(run, schedule=schedule))
    return list(trunks.values())


def grids_of(rows: Rows, scheme: Scheme, shift: int = 0) -> dict[int, list[ModelConfig]]:
    """The isoFLOP grid of ``scheme`` at each budget; those of other budgets than the middle one moved by
    ``shift`` steps, if there are such grids."""
    row = rows.resolved[scheme.label]
    budgets = rows.suite.axes.budgets
    middle = sorted(budgets)[len(budgets) // 2]
    grids = {}
    for number, budget in enumerate(budgets):
        shapes = row.grids[number]
        if budget != middle and str(shift) in row.shifted:
            shapes = row.shifted[str(shift)][number]
        grids[budget] = [ModelConfig(**shape) for shape in shapes]
    return grids


def plan_of(rows: Rows, label: str) -> dict[str, Any] | None:
    """The learning rates of isoFLOP grids that the suite's record states for scheme ``label``."""
    suite = rows.suite
    if suite.isoflop is None:
        return None
    scheme = next(scheme for scheme in suite.schemes if scheme.label == label)
    return stated(suite.family_of(scheme), middle_of(grids_of(rows, scheme)), suite.axes.seeds)


def losses_of(records: Iterable[Finished]) -> dict[str, float | None]:
    """The held-out loss by key of the runs that are done; None if the run is lost. Of several records
    that one counts which a report would show (`modbench.records.store.latest`)."""
    ordered = sorted(records, key=lambda record: (record.status == "ok", record.finished))
    ended = {r.key: r.status for r in ordered if r.kind == "run" and r.status != "failed"}
    losses: dict[str, float | None] = {key: None for key, status in ended.items() if status != "ok"}
    for record in ordered:
        is_loss = record.kind == "measurement" and record.measures == "heldout"
        if is_loss and record.run and ended.get(record.run) == "ok" and record.status != "failed":
            losses[record.run] = record.loss if record.status == "ok" else None
    return losses


def chosen(
    runs: Sequence[Wanted], names: Sequence[str], mistakes: Sequence[UserError] = ()
) -> list[Wanted]:
    """The runs that `is_chosen`. A label without a row may be of a row that was left out for
    ``mistakes``. Raises UserError: no row has one of the labels, or no run one of the names; or all
    chosen rows were left out, with the mistake."""
    known = {wanted.label for wanted in runs} | {wanted.scheme for wanted in runs}
    for name in names:
        row = RunName.parsed(name).row
        if not known & {name, row} and not mistakes:
            raise UserError(f"--only: no row of the suite is called '{row}'; {known_names(row, known)}")
        if known & {name, row} and not any(is_chosen(wanted, [name]) for wanted in runs):
            of_row = {wanted.run.key: wanted for wanted in runs if is_chosen(wanted, [row])}
            shown = shortest(*_full_names(of_row.values()))
            raise UserError(f"--only: the suite has no run '{name}'; {known_names(name, shown)}")
    fitting = [wanted for wanted in runs if is_chosen(wanted, names)]
    if mistakes and not fitting:
        raise mistakes[0]
    return fitting


def is_chosen(wanted: Wanted, names: Sequence[str]) -> bool:
    """Return True if one of ``names`` is the label of ``wanted`` or of its scheme, or is one of its
    names (`RunName`); also if ``names`` is empty."""
    rows = wanted.label, wanted.scheme
    if not names or any(name in rows for name in names):
        return True
    parts = [RunName.parsed(name) for name in names]
    full = _names_of(wanted)
    return any(part.row in rows and part.names(name) for part in parts for name in full)


def _names_of(wanted: Wanted) -> list[RunName]:
    """The full name of the run at each of its budgets."""
    run = wanted.run
    return [
        RunName(row=wanted.label, budget=budget, seed=run.seed, learning_rate=run.train.learning_rate)
        for budget in run.schedule.budgets
    ]


def _full_names(runs: Iterable[Wanted]) -> tuple[list[RunName], list[str]]:
    """The full name of each run at its largest budget, and its key."""
    runs = list(runs)
    return [_names_of(wanted)[-1] for wanted in runs], [wanted.run.key for wanted in runs]


def titles(runs: Iterable[Wanted]) -> dict[str, str]:
    """The displayed names of ``runs``, by key: the shortest that tell them apart."""
    names: dict[str, str] = {}
    full, keys = _full_names(runs)
    for key, name in zip(keys, shortest(full, keys), strict=True):
        names.setdefault(key, name)
    return names


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions under which a job that ran out of memory is tried again: fewer ``workers`` at a time,
    another ``gpu``, or ``retry``, the user's wish."""

    workers: int = 1
    gpu: str | None = None
    retry: bool = False

    def is_done(self, record: Finished) -> bool:
        """Return True if ``record`` need not be made again."""
        if record.status != "oom":
            return record.status in DONE
        crowded = record.workers is not None and self.workers < record.workers
        return not (self.retry or crowded or record.gpu != self.gpu)


@dataclass(frozen=True, kw_only=True)
class Left:
    """Work left for one run: the training, unless it is done; and measurements, each at a budget."""

    wanted: Wanted
    train: bool
    measurements: tuple[dict[str, Any], ...] = field(default=())  #: subjects of `MeasurementRecord`


def left_of(
    runs: Iterable[Wanted],
    measures: Sequence[tuple[str, dict[str, Any]]],
    records: Iterable[Finished],
    conditions: Conditions,
    *,
    audit: bool,
) -> list[Left]:
    """Return the work left for ``runs``, each once; ``measures``: kinds and settings of what is wanted
    of each; ``audit``: of its scheme, too."""
    records = list(records)
    audits = {record.key for record in records if record.kind == "audit"}
    ended = [record for record in records if conditions.is_done(record)]
    done = {record.key for record in ended if record.kind == "measurement"}
    # Of several records of a run, one that is ok counts.
    runs_ended = sorted((r for r in ended if r.kind == "run"), key=lambda r: r.status == "ok")
    trained = {record.key: record for record in runs_ended}
    left: dict[str, Left] = {}
    for wanted in runs:
        run = wanted.run
        record = trained.get(run.key)
        if record is not None and record.status != "ok":
            continue  # diverged, or out of memory for good: there is nothing to measure
        kinds = [*measures]
        if audit and record is not None and record.audit_key not in audits:
            kinds.insert(0, ("audit", {}))
        subjects = [
            {"run": run.key, "budget": budget, "measures": kind, "settings": settings}
            for budget in run.schedule.budgets
            for kind, settings in kinds
        ]
        missing = tuple(subject for subject in subjects if key_of(subject) not in done)
        if record is None or missing:
            left[run.key] = Left(wanted=wanted, train=record is None, measurements=missing)
    return list(left.values())
