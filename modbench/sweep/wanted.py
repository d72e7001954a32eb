"""Expands a suite into the runs that it wants, under labels, and tells which of them are left: wanted
minus recorded."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from modbench.errors import UserError, known_names
from modbench.records.finished import Finished
from modbench.records.line import key_of
from modbench.records.record import DONE
from modbench.records.run import Run
from modbench.records.run_name import RunName, shortest
from modbench.sweep.isoflop import isoflop_runs, router_code
from modbench.sweep.rows import Rows
from modbench.sweep.suite import Suite
from modbench.sweep.tables import Scheme


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run under the label of its row."""

    label: str  #: the scheme's, in isoFLOP suites with its width
    run: Run
    name: str = ""  #: `modbench.sweep.suite.Scheme.name`
    depth: int | None = None  #: layers, in a suite with curves of several depths

    @property
    def scheme(self) -> str:
        """The label of its scheme, without its size."""
        return self.label.partition("/")[0]

    @property
    def budget(self) -> int:
        """The largest budget, which the run ends at."""
        return self.run.schedule.budget


def expand(rows: Rows, done: Mapping[str, float | None] | None = None) -> list[Wanted]:
    """Return the runs of ``rows`` in the order in which they are run: seed by seed, in the suite's
    order. isoFLOP runs come in blocks (`_in_blocks`). ``done``: loss by key of the runs that are done,
    which tells the learning rates of isoFLOP grids; None: diverged. Raises UserError: a budget is
    smaller than one training step; the sentence starts with the suite."""
    suite = rows.suite
    if suite.isoflop is None:
        runs = _grid_runs(rows)
        seeds = list(dict.fromkeys(chain(*map(suite.seeds_of, suite.schemes))))
        return sorted(runs, key=lambda wanted: seeds.index(wanted.run.seed))
    return _in_blocks(suite, _isoflop_wanted(rows, done or {}))


def expand_planned(rows: Rows) -> list[Wanted]:
    """The runs of ``rows`` in the suite's order once all are known; of isoFLOP grids, as if the middle
    learning rate is best and its law holds. Raises UserError: see `expand`."""
    suite = rows.suite
    if suite.isoflop is None:
        return _grid_runs(rows)
    return _in_blocks(suite, _isoflop_wanted(rows, None))


def _isoflop_wanted(rows: Rows, done: Mapping[str, float | None] | None) -> list[Wanted]:
    """The runs of `isoflop_runs` of all schemes and depths, each with its label."""
    return [
        Wanted(label=_label_of(scheme, run), run=run, name=scheme.name, depth=scheme.depth)
        for scheme in rows.suite.schemes
        if scheme.name in rows.resolved
        for run in isoflop_runs(rows, scheme, done)
    ]


def _label_of(scheme: Scheme, run: Run) -> str:
    """The row of an isoFLOP ``run``: scheme and width, and depth if the suite has several."""
    of_depth = "" if scheme.depth is None else f"x{scheme.depth}"
    return f"{scheme.label}/w{run.model.width}{of_depth}"


def _in_blocks(suite: Suite, runs: Sequence[Wanted]) -> list[Wanted]:
    """isoFLOP ``runs`` in the order in which they are run. All schemes of one budget, seed, depth and
    size stand together, so that one machine runs them. A sweep that takes days compares all schemes with
    one seed at the middle budget, then at smaller ones; further seeds and larger budgets follow. Runs
    that only check a learning rate of another size come last."""
    budgets = sorted(suite.axes.budgets)
    middle = budgets[len(budgets) // 2]
    widths: dict[tuple[str, int], set[int]] = defaultdict(set)
    for wanted in runs:
        widths[wanted.name, wanted.budget].add(wanted.run.model.width)

    def turn(wanted: Wanted) -> tuple[bool, int, bool, int, int]:
        budget = wanted.budget
        seeds = suite.axes.seeds
        sizes = sorted(widths[wanted.name, budget])
        size = sizes.index(wanted.run.model.width)
        chooses_rate = size == len(sizes) // 2
        turn_of_seed = -1 if chooses_rate else len(seeds)
        if wanted.run.seed in seeds:
            turn_of_seed = seeds.index(wanted.run.seed)
        return budget > middle, turn_of_seed, budget != middle, wanted.depth or 0, size

    return sorted(runs, key=turn)


def _grid_runs(rows: Rows) -> list[Wanted]:
    """The runs of a suite without isoFLOP grids: schemes times budgets times seeds."""
    suite = rows.suite
    runs = list[Wanted]()
    for scheme in suite.schemes:
        row = rows.resolved.get(scheme.name)
        if row is None:  # its plugin has a mistake
            continue
        table = suite.training_of(scheme)
        for budget in suite.axes.budgets:
            if budget < row.flops:
                raise UserError(
                    f"suite {suite.source}: [sweep] budgets: budget {budget:g} is smaller than one "
                    f"training step of '{scheme.label}', which takes {row.flops:g} FLOPs; raise it "
                    "there, or shrink batch, sequence or model"
                )
        router, model, config = router_code(row), suite.shape_of(scheme), table.config()
        for budget in suite.axes.budgets:
            for seed in suite.seeds_of(scheme):
                run = Run(
                    router=router,
                    model=model,
                    data=suite.data,
                    train=config,
                    schedule=table.schedule_of(budget),
                    seed=seed,
                )
                runs.append(Wanted(label=scheme.label, run=run, name=scheme.name))
    return runs


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
    return any(part.row in rows and part.names(_name_of(wanted)) for part in parts)


def _name_of(wanted: Wanted) -> RunName:
    """The full name of the run."""
    run = wanted.run
    rate = run.train.learning_rate
    return RunName(row=wanted.label, budget=wanted.budget, seed=run.seed, learning_rate=rate)


def _full_names(runs: Iterable[Wanted]) -> tuple[list[RunName], list[str]]:
    """The full name of each run, and its key."""
    runs = list(runs)
    return [*map(_name_of, runs)], [wanted.run.key for wanted in runs]


def titles(runs: Iterable[Wanted]) -> dict[str, str]:
    """The displayed names of ``runs``, by key: the shortest that tell them apart."""
    names: dict[str, str] = {}
    full, keys = _full_names(runs)
    for key, name in zip(keys, shortest(full, keys), strict=True):
        names.setdefault(key, name)
    return names


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
    *,
    audit: bool,
    retry: bool = False,
    every: Sequence[Wanted] = (),
) -> list[Left]:
    """Return the work left for ``runs``, each once; ``measures``: kinds and settings of what is wanted
    of each; ``audit``: of its scheme, too. What failed is left; what ran out of memory, with ``retry``.
    ``every``: all runs of the suite: ``rules`` of a run are left once the routing of its dense run is
    recorded, or that run is lost or not in the suite."""
    runs, records = list(runs), list(records)
    done_as = DONE if retry else {*DONE, "oom"}
    audits = {record.key for record in records if record.kind == "audit"}
    ended = [record for record in records if record.status in done_as]
    done = {record.key for record in ended if record.kind == "measurement"}
    # Of several records of a run, one that is ok counts.
    runs_ended = sorted((r for r in ended if r.kind == "run"), key=lambda r: r.status == "ok")
    trained = {record.key: record for record in runs_ended}
    left: dict[str, Left] = {}
    dense = {_shape_of(of.run): of.run for of in reversed(every or runs) if _is_dense(of.run)}
    routing = [settings for kind, settings in measures if kind == "routing"]
    for wanted in runs:
        run = wanted.run
        record = trained.get(run.key)
        if record is not None and record.status != "ok":
            continue  # diverged, or out of memory: there is nothing to measure
        kinds = [*measures]
        if audit and record is not None and record.audit_key not in audits:
            kinds.insert(0, ("audit", {}))
        if routing:
            other = dense.get(_shape_of(run))
            recorded = other and key_of(_subject(other, "routing", routing[0]))
            kinds = [of for of in kinds if of[0] != "rules"]
            if other is None or (other.key in trained and trained[other.key].status != "ok"):
                kinds.append(("rules", {}))
            elif recorded in done and not _is_dense(run):
                kinds.append(("rules", {"dense": recorded}))
        subjects = [_subject(run, *of) for of in kinds]
        missing = tuple(subject for subject in subjects if key_of(subject) not in done)
        if record is None or missing:
            left[run.key] = Left(wanted=wanted, train=record is None, measurements=missing)
    return list(left.values())


def _subject(run: Run, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    budget = run.schedule.budget
    return {"run": run.key, "budget": budget, "measures": kind, "settings": settings}


def _is_dense(run: Run) -> bool:
    return run.router.name == "vanilla"


def _shape_of(run: Run) -> tuple[Any, ...]:
    """What is equal in a run and in the dense run that it is compared with."""
    return run.model, run.data, run.schedule.budget, run.seed, run.train.sequence
