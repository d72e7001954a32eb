"""`modbench plan SUITE`: cells, FLOPs, tokens and time of a suite before anything is run."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modbench.errors import several
from modbench.sweep.cells import Cell, chosen, expand_planned, scheme_of
from modbench.sweep.passes import refuse_more_passes, tokens_of
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.run import parallel
from modbench.sweep.step_times import Speed, speeds, timing_spec
from modbench.sweep.suite import Suite, load_suite
from modbench.train.config import TrainConfig

Tell = Callable[[str], None]
Shape = frozenset[tuple[str, Any]]  #: the fields of a model
StepFlops = dict[str, dict[Shape, int]]  #: by scheme and shape


@dataclass(frozen=True, kw_only=True)
class Part:
    """The cells of a scheme at a budget. ``tokens``: training tokens of the size that reads most.
    ``passes``: these over the training text; None if that is not prepared. ``seconds``: of all training
    steps, one cell after another; None if a size could not be timed."""

    scheme: str
    budget: int
    sizes: tuple[tuple[int, int], ...]  #: width and layers, ascending
    cells: int
    flops: int  #: nominal
    tokens: int
    passes: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """``speeds``: by scheme; empty if nothing was timed. ``at_a_time``: cells that `modbench run` runs
    at the same time. ``busy``: other work took part of the machine while steps were timed."""

    suite: Suite
    parts: tuple[Part, ...]
    train_tokens: int | None
    at_a_time: int
    threads: int
    speeds: dict[str, Speed]
    busy: bool
    left_out: bool  #: a row has a mistake of its plugin

    @property
    def cells(self) -> int:
        return sum(part.cells for part in self.parts)

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)

    @property
    def seconds(self) -> float | None:
        """Wall time of all training steps; None if a part has none."""
        known = [part.seconds for part in self.parts if part.seconds is not None]
        return sum(known) / self.at_a_time if len(known) == len(self.parts) else None


def plan_suite(name: str, *, plugins: Sequence[Path] = (), time: bool = True, tell: Tell) -> SuitePlan:
    """Plan the suite ``name`` with the routers of ``plugins``. ``time``: measure training steps. Raises
    UserError: an error in the suite or in the plugins of all rows, or a model would read the training
    text more often than the suite allows."""
    rows = resolve(load_suite(name), plugins)
    cells = chosen(expand_planned(rows), (), rows.mistakes)
    for mistake in rows.mistakes:
        tell(f"{mistake}; the other rows are planned")
    text = _train_tokens(rows.suite, tell)
    if text is not None:
        refuse_more_passes(rows, rows.resolved, text)
    at_a_time, threads = parallel()
    flops, busy, found = _step_flops(rows), False, dict[str, Speed]()
    if time:
        from modbench.timing.system_load import LoadMonitor

        specs = _timing_specs(rows, cells, flops, threads)
        abreast = min(at_a_time, len(specs))
        tell(f"timing training steps of {several(len(specs), 'scheme')}, {abreast} at a time")
        load = LoadMonitor()
        found = speeds(specs, at_a_time)
        busy = load.state(min(at_a_time, len(specs)) * threads, all_at_work=False)["overloaded"]
    return SuitePlan(
        suite=rows.suite,
        parts=tuple(_parts(rows, cells, flops, text, found)),
        train_tokens=text,
        at_a_time=at_a_time,
        threads=threads,
        speeds=found,
        busy=busy,
        left_out=bool(rows.mistakes),
    )


def _train_tokens(suite: Suite, tell: Tell) -> int | None:
    """Tokens of the training text, which is prepared if it is the embedded one; None for other text that
    is not prepared: it may be streamed from elsewhere."""
    from modbench.data.token_data import is_prepared, prepare

    if suite.data.source != "pypi-en-v1" and not is_prepared(suite.data):
        return None
    return len(prepare(suite.data, say=tell).train_N)


def _step_flops(rows: Rows) -> StepFlops:
    """The nominal FLOPs of a training step of each scheme's shapes."""
    found: StepFlops = {}
    for scheme in rows.suite.schemes:
        label, row = scheme.label, rows.resolved.get(scheme.label)
        if row is None:  # its plugin has a mistake
            continue
        models_of = map(asdict, rows.suite.shapes_of(scheme).values())
        shapes = [*zip(models_of, row.flops, strict=False)]
        for models, flops in zip(row.grids, row.grid_flops, strict=True):
            shapes += zip(models, flops, strict=True)
        found[label] = {_shape(model): of_step for model, of_step in shapes if isinstance(of_step, int)}
    return found


def _shape(model: Mapping[str, Any]) -> Shape:
    return frozenset(model.items())


def _timing_specs(
    rows: Rows, cells: Sequence[Cell], flops: StepFlops, threads: int
) -> dict[str, dict[str, Any]]:
    """The specifications of what to time, by scheme."""
    by_scheme: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_scheme[scheme_of(cell)].append(cell)
    specs = {}
    for label, own in by_scheme.items():
        models = {_shape(cell["model"]): cell["model"] for cell in own}
        shapes = [(model, flops[label][shape]) for shape, model in models.items()]
        specs[label] = timing_spec(own[0], shapes, rows.plugins_of(own[0]), threads)
    return specs


def _parts(
    rows: Rows, cells: Sequence[Cell], flops: StepFlops, text: int | None, found: Mapping[str, Speed]
) -> Iterator[Part]:
    """The parts in the suite's order."""
    by_part: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_part[scheme_of(cell), cell["train"]["budget"]].append(cell)
    for scheme in rows.suite.schemes:
        for budget in rows.suite.axes.budgets:
            if own := by_part.get((scheme.label, budget)):
                yield _part(own, flops[scheme.label], text, found.get(scheme.label, Speed()))


def _part(cells: Sequence[Cell], flops: Mapping[Shape, int], text: int | None, speed: Speed) -> Part:
    sizes: dict[tuple[int, int], int] = {}
    total, tokens, seconds = 0, 0, list[float | None]()
    for cell in cells:
        train, model = TrainConfig(**cell["train"]), cell["model"]
        of_step = flops[_shape(model)]
        spent = train.budget // of_step * of_step
        sizes[model["width"], model["layers"]] = of_step
        total += spent
        tokens = max(tokens, tokens_of(train.budget, of_step, train))
        seconds.append(speed.seconds(spent, of_step))
    known = [one for one in seconds if one is not None]
    return Part(
        scheme=scheme_of(cells[0]),
        budget=cells[0]["train"]["budget"],
        sizes=tuple(sorted(sizes, key=sizes.__getitem__)),
        cells=len(cells),
        flops=total,
        tokens=tokens,
        passes=None if text is None else tokens / text,
        seconds=sum(known) if len(known) == len(seconds) else None,
    )
