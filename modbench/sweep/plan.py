"""`modbench plan SUITE`: runs, FLOPs, tokens and epochs of a suite before anything is run."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modbench.errors import several
from modbench.model.shape import Shape
from modbench.plan.units import shown
from modbench.records.names import at_depth
from modbench.records.run import Run
from modbench.report.table import Table
from modbench.sweep.isoflop import EXTENSIONS
from modbench.sweep.refuse import refuse_before_preparing, refuse_more_passes, tokens_of
from modbench.sweep.request import SuiteRequest
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.suite import Suite, load_suite
from modbench.sweep.tables import Scheme
from modbench.sweep.wanted import Wanted, chosen, expand_planned

Tell = Callable[[str], None]
StepFlops = dict[str, dict[Shape, int]]  #: by name of the scheme, and shape


@dataclass(frozen=True, kw_only=True)
class Part:
    """The runs of a scheme, at one depth, that end at a budget. ``tokens``: training tokens of the size
    that reads most. ``passes``: these over the training text; None if that is not prepared."""

    scheme: str
    depth: int | None  #: layers, in a suite with curves of several depths
    budget: int
    sizes: tuple[tuple[int, int], ...]  #: width and layers, ascending
    runs: int
    flops: int  #: nominal, of whole steps
    #: of the matmuls of the optimizer's steps, which ``flops`` excludes
    optimizer_flops: int
    optimizer_flops_per_token: float  #: of a training token of these runs
    tokens: int
    passes: float | None


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    suite: Suite
    parts: tuple[Part, ...]
    train_tokens: int | None
    left_out: bool  #: a row has a mistake of its plugin, or a fault of its model
    added: dict[str, str]  #: a sentence for each row that the suite does not name
    flops_of: Sequence[tuple[Wanted, int]]  #: the runs, each with its FLOPs

    @property
    def runs(self) -> int:
        return sum(part.runs for part in self.parts)

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)


def plan_suite(request: SuiteRequest, tell: Tell) -> SuitePlan:
    """Plan the suite of ``request``. Raises UserError: an error in the suite or in the plugins of all
    rows, or a model would read the training text more often than the suite allows."""
    rows = resolve(load_suite(request.name, request.settings), request.plugins, request.like)
    runs = chosen(expand_planned(rows), request.only, rows.mistakes)
    for mistake in rows.mistakes:
        tell(f"{mistake}; the other rows are planned")
    refuse_before_preparing(rows, rows.resolved)
    text = text_tokens(rows.suite, tell)
    if text is not None:
        refuse_more_passes(rows, rows.resolved, text)
    flops = _step_flops(rows)
    steps = [(wanted, flops[wanted.name][wanted.run.model]) for wanted in runs]
    spent = [(wanted, wanted.budget // of_step * of_step) for wanted, of_step in steps]
    return SuitePlan(
        suite=rows.suite,
        parts=tuple(_parts(rows, spent, flops, text)),
        train_tokens=text,
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
        if row is None:  # it was left out
            continue
        by_scheme[scheme.name] = {rows.suite.shape_of(scheme): row.flops}
        for models, flops in zip(row.grids, row.grid_flops, strict=True):
            by_scheme[scheme.name] |= zip(models, flops, strict=True)
    return by_scheme


def _parts(
    rows: Rows,
    runs: Sequence[tuple[Wanted, int]],
    flops: StepFlops,
    text: int | None,
) -> Iterator[Part]:
    """The parts in the suite's order. ``runs``: with their FLOPs."""
    by_part: dict[tuple[str, int], list[tuple[Wanted, int]]] = defaultdict(list)
    for wanted, spent in runs:
        by_part[wanted.name, wanted.budget].append((wanted, spent))
    for scheme in rows.suite.schemes:
        for budget in rows.suite.axes.budgets:
            if part := by_part.get((scheme.name, budget)):
                yield _part(scheme, part, flops[scheme.name], text)


def _part(
    scheme: Scheme, runs: Sequence[tuple[Wanted, int]], flops: Mapping[Shape, int], text: int | None
) -> Part:
    sizes: dict[tuple[int, int], int] = {}
    tokens = read = spent_on_updates = 0
    updates: dict[Shape, int] = {}
    for wanted, _ in runs:
        model, train = wanted.run.model, wanted.run.train
        of_step = sizes[model.width, model.layers] = flops[model]
        reads = tokens_of(wanted.budget, of_step, train)
        if model not in updates:
            updates[model] = _update(wanted.run)
        tokens, read = max(tokens, reads), read + reads
        spent_on_updates += wanted.budget // of_step * updates[model]
    return Part(
        scheme=scheme.label,
        depth=scheme.depth,
        budget=runs[0][0].budget,
        sizes=tuple(sorted(sizes, key=sizes.__getitem__)),
        runs=len(runs),
        flops=sum(spent for _, spent in runs),
        optimizer_flops=spent_on_updates,
        optimizer_flops_per_token=spent_on_updates / read,
        tokens=tokens,
        passes=None if text is None else tokens / text,
    )


def _update(run: Run) -> int:
    """The FLOPs of the optimizer's matmuls in a step of ``run``, in all processes."""
    if run.train.optimizer == "adamw":  # none, and nothing is built
        return 0
    from modbench.hf.models import outline_of
    from modbench.train.optimizer import optimizer_ledger

    model = outline_of(run.model, run.router.name, run.router.options)
    return run.train.ranks * optimizer_ledger(model, run.train).total("executed")


_HEADS = ("scheme", "budget", "sizes", "runs", "FLOPs", "tokens", "epochs")


def as_table(plan: SuitePlan) -> str:
    """A row per scheme and budget; the totals; and what the figures are."""
    heads, rows = [*_HEADS], [[*_row(part)] for part in plan.parts]
    if any(part.optimizer_flops for part in plan.parts):
        heads.append("optimizer")
        for part, row in zip(plan.parts, rows, strict=True):
            share = part.optimizer_flops / part.flops
            row.append(f"{shown(part.optimizer_flops_per_token)} ({share:.1%})")
    table = Table(heads, rows, left=(0, 2)).to_text()
    total = f"{several(plan.runs, 'run', ',')}, {plan.flops:.3g} FLOPs"
    return "\n\n".join([f"{plan.suite.header.name}: {total}", table, "\n".join(_notes(plan))])


def _row(part: Part) -> tuple[str, ...]:
    return (
        at_depth(part.scheme, part.depth),
        f"{part.budget:.3g}",
        " ".join(f"{width}x{layers}" for width, layers in part.sizes),
        f"{part.runs:,}",
        f"{part.flops:.3g}",
        shown(part.tokens),
        "-" if part.passes is None else f"{part.passes:.2f}",
    )


def _notes(plan: SuitePlan) -> Iterator[str]:
    suite = plan.suite
    yield from plan.added.values()
    yield "sizes: width x layers"
    if suite.isoflop is not None:
        yield (
            "runs: as if the middle learning rate is best: its trials, all sizes, and the check of its "
            f"law; a best rate at an end of the list adds up to {EXTENSIONS} to a scheme"
        )
        if len(suite.axes.seeds) == 1:
            yield (
                "seeds: one, so the report will have no intervals, ranks or differences; give two or "
                "more in [sweep] seeds"
            )
    yield "FLOPs: convention model, nominal routing, whole training steps"
    if any(part.optimizer_flops for part in plan.parts):
        yield (
            "optimizer: FLOPs of its matmuls per training token, and over FLOPs, which exclude them as "
            "budgets do"
        )
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


def as_json(plan: SuitePlan) -> dict[str, Any]:
    """The plan as a JSON document."""
    isoflop = plan.suite.isoflop
    return {
        "suite": plan.suite.header.name,
        "isoflop": isoflop is not None,
        "runs": plan.runs,
        "flops": plan.flops,
        "train_tokens": plan.train_tokens,
        "most_passes": None if isoflop is None else isoflop.passes,
        "parts": [
            asdict(part)
            | {"sizes": [{"width": width, "layers": layers} for width, layers in part.sizes]}
            for part in plan.parts
        ],
        "added": plan.added,
    }
