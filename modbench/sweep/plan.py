"""`modbench plan SUITE`: runs, FLOPs, tokens and time of a suite before anything is run."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modbench.errors import several
from modbench.model.config import ModelConfig
from modbench.model.shape import Shape
from modbench.plan.units import shown
from modbench.records.names import at_depth
from modbench.records.run import Timed
from modbench.report.table import Table
from modbench.sweep.progress import clock
from modbench.sweep.refuse import refuse_before_preparing, refuse_more_passes, tokens_of
from modbench.sweep.request import SuiteRequest
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.step_times import Speed, recorded_speeds, speeds, timing_spec
from modbench.sweep.suite import Suite, load_suite
from modbench.sweep.wanted import Wanted, chosen, expand_planned
from modbench.timing.system_load import LoadMonitor, parallel

Tell = Callable[[str], None]
StepFlops = dict[str, dict[Shape, int]]  #: by name of the scheme, and shape


@dataclass(frozen=True, kw_only=True)
class Part:
    """The runs of a scheme, at one depth, that end at a budget. ``tokens``: training tokens of the size
    that reads most. ``passes``: these over the training text; None if that is not prepared.
    ``seconds``: of all training steps, one run after another; None if a size could not be timed."""

    scheme: str
    depth: int | None  #: layers, in a suite with curves of several depths
    budget: int
    sizes: tuple[tuple[int, int], ...]  #: width and layers, ascending
    runs: int
    flops: int  #: nominal; of a trapezoid with the decays of its smaller budgets
    tokens: int
    passes: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """``speeds``: by name of the scheme; empty if nothing was timed. ``at_a_time``: runs that `modbench
    run` trains at the same time. ``busy``: other work took part of the machine while steps were
    timed."""

    suite: Suite
    parts: tuple[Part, ...]
    train_tokens: int | None
    at_a_time: int
    threads: int
    speeds: dict[str, Speed]
    busy: bool
    left_out: bool  #: a row has a mistake of its plugin
    added: dict[str, str]  #: a sentence for each row that the suite does not name
    flops_of: Sequence[tuple[Wanted, int]]  #: the runs, each with its FLOPs

    @property
    def runs(self) -> int:
        return sum(part.runs for part in self.parts)

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)

    @property
    def seconds(self) -> float | None:
        """Wall time of all training steps; None if a part has none."""
        known = [part.seconds for part in self.parts if part.seconds is not None]
        return sum(known) / self.at_a_time if len(known) == len(self.parts) else None


def plan_suite(request: SuiteRequest, *, time: bool = True, tell: Tell) -> SuitePlan:
    """Plan the suite of ``request``. ``time``: use the step times in its results, where `modbench time`
    took them on this machine with the threads of a run; measure others. Raises UserError: an error in
    the suite or in the plugins of all rows, or a model would read the training text more often than the
    suite allows."""
    rows = resolve(load_suite(request.name, request.settings), request.plugins)
    runs = chosen(expand_planned(rows), request.only, rows.mistakes)
    for mistake in rows.mistakes:
        tell(f"{mistake}; the other rows are planned")
    refuse_before_preparing(rows, rows.resolved)
    text = text_tokens(rows.suite, tell)
    if text is not None:
        refuse_more_passes(rows, rows.resolved, text)
    at_a_time, threads = parallel()
    flops = _step_flops(rows)
    spent = [(wanted, _spent(wanted, flops[wanted.name][wanted.run.model])) for wanted in runs]
    busy = False
    scheme_speeds = dict[str, Speed]()
    if time:
        shapes = _shapes_of(runs, flops)
        folder = request.results / rows.suite.header.name
        if scheme_speeds := recorded_speeds(folder, shapes, threads):
            tell(f"step times of {', '.join(scheme_speeds)}: as recorded by modbench time")
        specs = {
            label: timing_spec(targets, rows.suite.time, rows.plugins_of(targets[0][0].router), threads)
            for label, targets in shapes.items()
            if label not in scheme_speeds
        }
        abreast = min(at_a_time, len(specs))
        if specs:
            tell(f"timing training steps of {several(len(specs), 'scheme')}, {abreast} at a time")
            load = LoadMonitor()
            scheme_speeds |= speeds(specs, at_a_time)
            busy = load.state(abreast * threads, all_at_work=False)["overloaded"]
    return SuitePlan(
        suite=rows.suite,
        parts=tuple(_parts(rows, spent, flops, text, scheme_speeds)),
        train_tokens=text,
        at_a_time=at_a_time,
        threads=threads,
        speeds=scheme_speeds,
        busy=busy,
        left_out=bool(rows.mistakes),
        added=rows.added,
        flops_of=spent,
    )


def text_tokens(suite: Suite, tell: Tell) -> int | None:
    """Tokens of the training text, which is prepared if it is the embedded one; None for other text that
    is not prepared: it may be streamed from elsewhere."""
    from modbench.data.token_data import is_prepared, prepare

    if suite.data.source != "pypi-en-v1" and not is_prepared(suite.data):
        return None
    return len(prepare(suite.data, say=tell).train_N)


def _step_flops(rows: Rows) -> StepFlops:
    """The nominal FLOPs of a training step of each scheme's shapes."""
    by_scheme: StepFlops = {}
    for scheme in rows.suite.schemes:
        row = rows.resolved.get(scheme.name)
        if row is None:  # its plugin has a mistake
            continue
        shapes = [*zip(rows.suite.shapes_of(scheme).values(), row.flops, strict=False)]
        for models, flops in zip(row.grids, row.grid_flops, strict=True):
            shapes += zip((ModelConfig(**model) for model in models), flops, strict=True)
        by_scheme[scheme.name] = {
            model: of_step for model, of_step in shapes if isinstance(of_step, int)
        }
    return by_scheme


def _shapes_of(runs: Sequence[Wanted], flops: StepFlops) -> dict[str, list[tuple[Timed, int]]]:
    """Schemes and shapes that can be timed, with the FLOPs of a step, by name of the scheme."""
    by_scheme: dict[str, dict[str, tuple[Timed, int]]] = defaultdict(dict)
    for wanted in runs:
        timed = wanted.run.timed
        by_scheme[wanted.name][timed.key] = (timed, flops[wanted.name][wanted.run.model])
    return {scheme: list(shapes.values()) for scheme, shapes in by_scheme.items()}


def _spent(wanted: Wanted, of_step: int) -> int:
    """FLOPs of a run of whole steps, with the decays of smaller budgets, which branch off its trunk."""
    schedule = wanted.run.schedule
    decays = sum(budget - schedule.trunk(budget) for budget in schedule.budgets[:-1])
    return wanted.budget // of_step * of_step + decays


def _parts(
    rows: Rows,
    runs: Sequence[tuple[Wanted, int]],
    flops: StepFlops,
    text: int | None,
    scheme_speeds: Mapping[str, Speed],
) -> Iterator[Part]:
    """The parts in the suite's order. ``runs``: with their FLOPs."""
    by_part: dict[tuple[str, int], list[tuple[Wanted, int]]] = defaultdict(list)
    for wanted, spent in runs:
        by_part[wanted.name, wanted.budget].append((wanted, spent))
    for scheme in rows.suite.schemes:
        for budget in rows.suite.axes.budgets:
            if part := by_part.get((scheme.name, budget)):
                yield _part(part, flops[scheme.name], text, scheme_speeds.get(scheme.name, Speed()))


def _part(
    runs: Sequence[tuple[Wanted, int]], flops: Mapping[Shape, int], text: int | None, speed: Speed
) -> Part:
    sizes: dict[tuple[int, int], int] = {}
    tokens = 0
    seconds = list[float | None]()
    for wanted, spent in runs:
        model = wanted.run.model
        of_step = sizes[model.width, model.layers] = flops[model]
        tokens = max(tokens, tokens_of(wanted.budget, of_step, wanted.run.train))
        seconds.append(speed.seconds(spent, of_step))
    first, _ = runs[0]
    known = [duration for duration in seconds if duration is not None]
    return Part(
        scheme=first.scheme,
        depth=first.depth,
        budget=first.budget,
        sizes=tuple(sorted(sizes, key=sizes.__getitem__)),
        runs=len(runs),
        flops=sum(spent for _, spent in runs),
        tokens=tokens,
        passes=None if text is None else tokens / text,
        seconds=sum(known) if len(known) == len(seconds) else None,
    )


_HEADS = ("scheme", "budget", "sizes", "runs", "FLOPs", "tokens", "epochs", "time")


def as_table(plan: SuitePlan) -> str:
    """A row per scheme and budget; the totals; what the figures are, and what was measured."""
    columns = len(_HEADS) if plan.speeds else len(_HEADS) - 1  # no time without a measurement
    rows = [_row(part)[:columns] for part in plan.parts]
    table = Table(_HEADS[:columns], rows, left=(0, 2)).to_text()
    total = f"{several(plan.runs, 'run', ',')}, {plan.flops:.3g} FLOPs"
    if plan.speeds:
        total += f", {_clock(plan.seconds)} with {several(plan.at_a_time, 'run')} at a time"
    parts = [f"{plan.suite.header.name}: {total}", table, "\n".join(_notes(plan))]
    if plan.speeds:
        parts.append("\n".join(_measured(plan)))
    return "\n\n".join(parts)


def _row(part: Part) -> tuple[str, ...]:
    return (
        at_depth(part.scheme, part.depth),
        f"{part.budget:.3g}",
        " ".join(f"{width}x{layers}" for width, layers in part.sizes),
        f"{part.runs:,}",
        f"{part.flops:.3g}",
        shown(part.tokens),
        "-" if part.passes is None else f"{part.passes:.2f}",
        _clock(part.seconds),
    )


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else clock(seconds)


def _notes(plan: SuitePlan) -> Iterator[str]:
    suite = plan.suite
    yield from plan.added.values()
    yield "sizes: width x layers"
    if suite.isoflop is not None:
        more = suite.isoflop.extensions
        yield (
            "runs: as if the middle learning rate is best: its trials, all sizes, and the check of its "
            f"law; a best rate at an end of the list adds up to {more} to a scheme"
        )
        if len(suite.axes.seeds) == 1:
            yield (
                "seeds: one, so the report will have no intervals, ranks or differences; give two or "
                "more in [sweep] seeds"
            )
    yield "FLOPs: convention model, nominal routing, whole training steps"
    if plan.train_tokens is None:
        yield (
            f"epochs: unknown, since text '{suite.data.source}' is not prepared; to prepare it, run "
            "`modbench data prepare` with the settings of [data]"
        )
    else:
        most = "" if suite.isoflop is None else f"; at most {suite.isoflop.passes:g} ([isoflop] passes)"
        yield (
            f"tokens and epochs: of the size that reads most; the training text has "
            f"{several(plan.train_tokens, 'token', ',')}{most}"
        )
    if plan.speeds:
        yield (
            "time: training steps only, without start, audit and evaluation; in the table one run "
            "after another"
        )
        if any(part.seconds is None for part in plan.parts):
            yield "-: a size lies outside those that were timed"
        if plan.busy:
            yield "other work took part of this machine while steps were timed: times are too long"


def _measured(plan: SuitePlan) -> Iterator[str]:
    threads = several(plan.threads, "thread")
    yield f"FLOP/s of training steps, measured with {threads}, and interpolated between these sizes:"
    rows = []
    for scheme, speed in plan.speeds.items():
        steps = (f"{step.width}x{step.layers} {step.rate:.3g}" for step in speed.steps)
        rows.append((scheme, "; ".join([*steps, *speed.missing])))
    yield Table((), rows).to_text()


def as_json(plan: SuitePlan) -> dict[str, Any]:
    """The plan as a JSON document."""
    speeds: dict[str, Any] = {}
    for scheme, speed in plan.speeds.items():
        steps = [asdict(step) | {"flops_per_second": step.rate} for step in speed.steps]
        speeds[scheme] = {"steps": steps, "missing": list(speed.missing)}
    isoflop = plan.suite.isoflop
    return {
        "suite": plan.suite.header.name,
        "isoflop": isoflop is not None,
        "runs": plan.runs,
        "flops": plan.flops,
        "seconds": plan.seconds,
        "runs_at_a_time": plan.at_a_time,
        "threads": plan.threads,
        "train_tokens": plan.train_tokens,
        "most_passes": None if isoflop is None else isoflop.passes,
        "parts": [
            asdict(part)
            | {"sizes": [{"width": width, "layers": layers} for width, layers in part.sizes]}
            for part in plan.parts
        ],
        "measured": speeds,
        "busy": plan.busy,
        "added": plan.added,
    }
