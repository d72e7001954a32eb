"""leaderboard.md of an isoFLOP suite: a table per budget with each scheme at its optimum; in the details
the sizes, the three fits, learning rates, and what was not finished."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.isoflop import FITS, Interval
from modbench.errors import several
from modbench.report.columns import OPTIMA
from modbench.report.isoflop import HEADLINE, Line, Sweep, scheme_of
from modbench.report.metric_cells import si
from modbench.report.record import CellRecord
from modbench.report.scheme import shape_name
from modbench.report.sections import page
from modbench.report.table import escaped, markdown_table

_INTERVALS = (
    "In parentheses: 95 % intervals, from draws of the measured noise between seeds. Schemes whose "
    "intervals overlap share a rank."
)
_UNRANKED = (
    "No scheme can be ranked yet. The column verdict says why; the losses so far are under Details."
)


def isoflop_page(
    sweep: Sweep, downstream: Sequence[str] = (), drawn: Collection[str] = (), notes: Sequence[str] = ()
) -> str:
    """The page. ``downstream``: paragraphs of its section on downstream tasks; ``drawn``: names of the
    files with figures; ``notes``: further ones, as text."""
    tables, details = [_compared(sweep)], []
    if sweep.has_curves:
        for budget in sweep.budgets:
            tables += [f"## {budget:.3g} training FLOPs", *_optima(sweep, budget)]
            details += [f"### Sizes at {budget:.3g} training FLOPs", _sizes(sweep, budget)]
        ranked = any(line.rank for budget in sweep.budgets for line in sweep.lines(budget))
        tables.append(_INTERVALS if ranked else _UNRANKED)
        details += ["### Three fits", _fits(sweep)]
    else:
        tables.append("No scheme has a learning rate yet, so there are no curves.")
    details += ["### Learning rates", _rates(sweep)]
    if unfinished := _unfinished(sweep):
        details += ["### Not finished", "\n".join(unfinished)]
    return page(
        sweep.cells,
        tables,
        downstream=downstream,
        drawn=drawn,
        columns=OPTIMA,
        manual="docs/isoflop.md",
        details=details,
        notes=[*_notes(sweep), *map(escaped, notes)],
    )


def _compared(sweep: Sweep) -> str:
    """The sentence on what the page compares."""
    return (
        f"{several(len(sweep.rates), 'scheme')}, each at its own optimal size, at equal training FLOPs: "
        f"{several(len(sweep.budgets), 'budget')}."
    )


def _optima(sweep: Sweep, budget: int) -> Iterable[str]:
    """The table of the optima."""
    lines = sweep.lines(budget)
    heads = [column.heading for column in OPTIMA]
    yield markdown_table(heads, [_optimum(sweep, line) for line in lines], left=(1, 7))
    if reasons := dict.fromkeys(reason for line in lines for reason in line.seconds_missing):
        yield f"No speed-up in seconds: {'; '.join(map(escaped, reasons))}."


def _optimum(sweep: Sweep, line: Line) -> Sequence[object]:
    one = line.optimum
    verdict = one.verdict if not one.void else f"{one.verdict}; no interval: {one.void}"
    rates = sweep.rates[one.scheme].choice.verdict
    if rates != "interior":
        verdict += f"; learning rate: {rates}"
    if reason := sweep.unranked.get(one.scheme):
        verdict += f"; not ranked: {reason}"
    compared = "-"
    if found := line.difference:
        compared = f"{_with(found.nats, found.interval, '+.4f')} {found.verdict}"
    return (
        line.rank or "-",
        one.scheme,
        _with(one.loss, one.loss_interval, ".4f"),
        compared,
        _speed_up(line.speed_up),
        _in_seconds(line),
        _with(one.size, one.size_interval, "si"),
        verdict,
    )


def _with(value: float | None, interval: Interval | None, form: str) -> str:
    """``value`` with its interval; ``form``: si or one of Python's."""

    def text(number: float) -> str:
        return si(number, 3) if form == "si" else f"{number:{form}}"

    if value is None:
        return "-"
    return text(value) + (f" ({text(interval[0])} to {text(interval[1])})" if interval else "")


def _speed_up(found: SpeedUp | None) -> str:
    if found is None:
        return "-"
    return f"{found.bound} {_factor(found.factor, found.interval)}".strip()


def _in_seconds(line: Line) -> str:
    if line.seconds is None or line.speed_up is None:
        return "-"
    doubts = f" ({line.seconds.marks})" if line.seconds.marks else ""
    factor = _factor(line.seconds.factor, line.seconds.interval)
    return f"{line.speed_up.bound} {factor}{doubts}".strip()


def _factor(factor: float, interval: tuple[float | None, float | None]) -> str:
    low, high = ("?" if end is None else f"{end:.2f}" for end in interval)
    return f"{factor:.2f}" + ("" if interval == (None, None) else f" ({low} to {high})")


def _sizes(sweep: Sweep, budget: int) -> str:
    """The table of the runs behind the curves of ``budget``."""
    heads = (
        "scheme",
        "size",
        "active parameters",
        "learning rate",
        "steps",
        "budget spent",
        "seeds",
        "loss",
    )
    rows = []
    groups: dict[tuple[str, int, float], list[CellRecord]] = defaultdict(list)
    for record in sweep.curve_records():
        if record.cell["train"]["budget"] == budget:
            model = record.cell["model"]
            key = scheme_of(record), model["width"], record.cell["train"]["learning_rate"]
            groups[key].append(record)
    for (scheme, _, rate), records in sorted(groups.items()):
        losses = [record.metrics["heldout_loss"] for record in records]
        between = f" ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else ""
        first = records[0]
        spent = fmean(record.metrics["train_flops"] for record in records) / budget
        rows.append(
            (
                scheme,
                shape_name(first.cell["model"]),
                si(first.metrics["active_parameters"], 3),
                f"{rate:g}",
                round(fmean(record.metrics["train_steps"] for record in records)),
                f"{100 * spent:.2f} %",
                len(records),
                f"{fmean(losses):.4f}{between}",
            )
        )
    return markdown_table(heads, rows, left=(0, 1))


def _rates(sweep: Sweep) -> str:
    heads = (
        "scheme",
        "tried at",
        "loss by learning rate",
        "chosen",
        "verdict",
        "law at the largest size",
    )
    rows = []
    for scheme, rates in sweep.rates.items():
        tried = (
            f"{rate:g}: {'diverged' if loss is None else f'{loss:.4f}'}"
            for rate, loss in rates.losses.items()
        )
        best = rates.choice.best
        plan = rates.plan
        rows.append(
            (
                scheme,
                f"width {plan['middle_width']}, {plan['middle_budget']:.3g} FLOPs",
                ", ".join(tried),
                "-" if best is None else f"{best:g}",
                rates.choice.verdict,
                sweep.law(scheme),
            )
        )
    return markdown_table(heads, rows, left=range(6))


def _fits(sweep: Sweep) -> str:
    """The table of all fits, with further figures of the first one's optimum."""
    more = ("bits/byte", "forward FLOP/token", "noise floor (nats)")
    heads = ("FLOPs", "scheme", *(f"{fit}: {of}" for of in ("loss", "size") for fit in FITS), *more)
    rows = []
    for budget in sweep.budgets:
        for scheme in sweep.rates:
            found = [one for fit in FITS if (one := sweep.optimum(scheme, budget, fit))]
            if not found:
                continue
            first = next(one for one in found if one.fit == HEADLINE)
            bits = None if first.loss is None else first.loss * sweep.bits_per_nat_and_byte
            rows.append(
                (
                    *(f"{budget:.3g}", scheme),
                    *(one.verdict if one.loss is None else f"{one.loss:.4f}" for one in found),
                    *(_with(one.size, None, "si") for one in found),
                    _with(bits, None, ".4f"),
                    _with(sweep.forward_flops(first), None, "si"),
                    _with(sweep.noise_floor(scheme), None, ".4f"),
                )
            )
    return markdown_table(heads, rows, left=(1,))


def _unfinished(sweep: Sweep) -> list[str]:
    return [
        f"- **{escaped(record.cell['router']['label'])}**, {record.cell['train']['budget']:.3g} FLOPs, "
        f"learning rate {record.cell['train']['learning_rate']:g}, seed {record.cell['seed']}: "
        f"{record.status} ({escaped(record.error)})"
        for record in sweep.cells
        if record.status != "ok"
    ]


def _notes(sweep: Sweep) -> Iterable[str]:
    noise = sweep.analysis.noise
    yield "FLOPs: convention `model`; active parameters are those of a token routed at every layer."
    yield (
        "Fit of the first table: a parabola in the logarithm of active parameters. Noise floor: two "
        "standard deviations of one run between seeds."
    )
    if any(line.seconds for budget in sweep.budgets for line in sweep.lines(budget)):
        yield (
            "Speed-up in seconds: the one in FLOPs times the dense model's seconds per FLOP over the "
            "scheme's, of training steps that `modbench time` measured, interpolated between the timed "
            "shapes. Its interval is that of the FLOPs and does not contain the spread of the times."
        )
    if noise.pooled is not None:
        yield (
            f"Measured noise: {noise.pooled.sd:.4f} nats between seeds (pooled, {noise.pooled.freedom} "
            f"degrees of freedom), and {noise.shift.sd:.4f} that all cells of a seed share, which "
            "cancels in differences."
        )
    for scheme, surface in sweep.analysis.surfaces.items():
        edge = ", an exponent or a term at the edge of its range" if surface.at_edge else ""
        yield (
            f"Surface of {escaped(scheme)}: E {surface.E:.3f}, A {surface.A:.4g}, B {surface.B:.4g}, "
            f"alpha {surface.alpha:.3f}, beta {surface.beta:.3f}; mean Huber loss "
            f"{surface.huber:.2e}{edge}."
        )
    yield "All figures at full precision: optima.csv, learning_rates.csv, leaderboard.csv."
