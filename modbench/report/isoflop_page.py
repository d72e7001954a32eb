"""leaderboard.md of an isoFLOP suite: a table per budget with each scheme at its optimum, its sizes
listed underneath, learning rates, the three fits, and what was not finished."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.isoflop import FITS, Interval
from modbench.report.isoflop import Line, Sweep, scheme_of
from modbench.report.record import CellRecord
from modbench.report.routing_cases import cases_of_sweep, routing_section
from modbench.report.table import escaped, made_by, markdown_table

_INTRODUCTION = (
    "Each scheme at its own optimal size, at equal training FLOPs. Intervals hold 95 % of draws of the "
    "measured noise between seeds; schemes whose intervals overlap share a rank. The difference and the "
    "speed-up compare with the dense model at its optimum: better, worse, equivalent within the margin, "
    "or undecided. How to read this page: docs/isoflop.md."
)


def isoflop_page(sweep: Sweep, downstream: Sequence[str] = ()) -> str:
    """The page. ``downstream``: paragraphs of its section on downstream tasks."""
    suites = sorted({(record.suite["name"], record.suite["version"]) for record in sweep.cells})
    named = ", ".join(f"{escaped(name)}, version {version}" for name, version in suites)
    parts = [f"# Suite {named}", _INTRODUCTION]
    if sweep.has_curves:
        parts.append("![isoFLOP curves](isoflop_curves.png)")
        for budget in sweep.budgets:
            parts += [f"## {budget:.3g} training FLOPs", *_budget(sweep, budget)]
        parts += ["## Three fits", _fits(sweep)]
    else:
        parts.append("No scheme has a learning rate yet, so there are no curves.")
    parts += ["## Learning rates", _rates(sweep)]
    parts += [*downstream, *routing_section(cases_of_sweep(sweep))]
    if unfinished := _unfinished(sweep):
        parts += ["## Not finished", "\n".join(unfinished)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in _notes(sweep))]
    return "\n\n".join(parts) + "\n"


def _budget(sweep: Sweep, budget: int) -> Iterable[str]:
    """The table of the optima, and the sizes underneath."""
    heads = (
        "rank",
        "scheme",
        "loss at the optimum (nats/token)",
        "bits/byte",
        "minus dense (nats/token)",
        "speed-up at equal loss (FLOPs)",
        "speed-up at equal loss (seconds)",
        "active parameters",
        "forward FLOP/token",
        "noise floor",
        "verdict",
    )
    lines = sweep.lines(budget)
    yield markdown_table(heads, [_optimum(sweep, line) for line in lines], left=(1, 10))
    if reasons := dict.fromkeys(reason for line in lines for reason in line.seconds_missing):
        yield f"No speed-up in seconds: {'; '.join(map(escaped, reasons))}."
    of_sizes = ("scheme", "shape", "active", "learning rate", "steps", "budget spent", "seeds", "loss")
    yield markdown_table(of_sizes, _sizes(sweep, budget), left=(0, 1))


def _optimum(sweep: Sweep, line: Line) -> Sequence[object]:
    one = line.optimum
    verdict = one.verdict if not one.void else f"{one.verdict}; no interval: {one.void}"
    rates = sweep.rates[one.scheme].choice.verdict
    if rates != "interior":
        verdict += f"; learning rate: {rates}"
    if reason := sweep.unranked.get(one.scheme):
        verdict += f"; not ranked: {reason}"
    flops, floor, compared = sweep.forward_flops(one), sweep.noise_floor(one.scheme), "-"
    if found := line.difference:
        compared = f"{_with(found.nats, found.interval, '+.4f')} {found.verdict}"
    bits = None if one.loss is None else one.loss * sweep.bits_per_nat_and_byte
    return (
        line.rank or "-",
        one.scheme,
        _with(one.loss, one.loss_interval, ".4f"),
        "-" if bits is None else f"{bits:.4f}",
        compared,
        _speed_up(line.speed_up),
        _in_seconds(line),
        _with(one.size, one.size_interval, ".3g"),
        "-" if flops is None else f"{flops:.3g}",
        "-" if floor is None else f"{floor:.4f}",
        verdict,
    )


def _with(value: float | None, interval: Interval | None, form: str) -> str:
    """``value`` with its interval."""
    if value is None:
        return "-"
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} ({interval[0]:{form}} to {interval[1]:{form}})"


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


def _sizes(sweep: Sweep, budget: int) -> Iterable[Sequence[object]]:
    groups: dict[tuple[str, int, float], list[CellRecord]] = defaultdict(list)
    for record in sweep.curve_records():
        if record.cell["train"]["budget"] == budget:
            model = record.cell["model"]
            key = scheme_of(record), model["width"], record.cell["train"]["learning_rate"]
            groups[key].append(record)
    for (scheme, width, rate), records in sorted(groups.items()):
        losses = [record.metrics["heldout_loss"] for record in records]
        between = f" ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else ""
        first = records[0]
        spent = fmean(record.metrics["train_flops"] for record in records) / budget
        yield (
            scheme,
            f"{width} x {first.cell['model']['layers']}",
            f"{first.metrics['active_parameters']:.3g}",
            f"{rate:g}",
            round(fmean(record.metrics["train_steps"] for record in records)),
            f"{spent:.2%}",
            len(records),
            f"{fmean(losses):.4f}{between}",
        )


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
    heads = ("FLOPs", "scheme", *(f"{fit}: loss" for fit in FITS), *(f"{fit}: size" for fit in FITS))
    rows = []
    for budget in sweep.budgets:
        for scheme in sweep.rates:
            found = [sweep.optimum(scheme, budget, fit) for fit in FITS]
            losses = [one.verdict if one.loss is None else f"{one.loss:.4f}" for one in found if one]
            sizes = ["-" if one.size is None else f"{one.size:.3g}" for one in found if one]
            if losses:
                rows.append((f"{budget:.3g}", scheme, *losses, *sizes))
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
        "Fit of the first tables: a parabola in the logarithm of active parameters. Noise floor: two "
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
    codes = sorted({made_by(record.code) for record in sweep.cells})
    yield f"Code: {'; '.join(codes)}."
    yield "All figures at full precision: optima.csv, learning_rates.csv, leaderboard.csv."
