"""leaderboard.md of an isoFLOP suite: a table per budget with each scheme at its optimum; in the details
the sizes, the three fits, learning rates, and what was not finished."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from math import inf
from statistics import fmean

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.difference import Interval
from modbench.analysis.isoflop import FITS
from modbench.analysis.pairs import pair_row
from modbench.errors import several
from modbench.records.names import at_depth
from modbench.records.result import Place, Result
from modbench.report.isoflop.comparison_page import below_tables, pair_section, scatter_section
from modbench.report.isoflop.depth_page import (
    below_depths,
    columns_of,
    depth_remarks,
    depth_table,
    fixed_note,
    layers_cell,
    with_interval,
)
from modbench.report.isoflop.pairs import tested_pairs
from modbench.report.isoflop.sweep import DENSE, HEADLINE, Line, Rates, Sweep
from modbench.report.leaderboard.audited import idle_layers
from modbench.report.leaderboard.metric_cells import difference_text, interim_text, si
from modbench.report.leaderboard.rows import shape_name
from modbench.report.sections import Heading, Items, Page, Part, suite_page
from modbench.report.table import Number, Table, escaped

_SIZES = (
    "scheme",
    "size",
    "active parameters",
    "learning rate",
    "steps",
    "budget spent",
    "seeds",
    "loss",
)


def isoflop_page(sweep: Sweep, downstream: Sequence[Part] = (), drawn: Collection[str] = ()) -> Page:
    """The page. ``downstream``: its section on downstream tasks; ``drawn``: names of the files with
    figures."""
    interim = interim_text(sweep.cells[0].suite)
    tables: list[Part] = [*([interim] if interim else ()), _compared(sweep)]
    details: list[Part] = []
    tested = tested_pairs(sweep) if sweep.has_curves else []
    if sweep.has_curves:
        for budget in sweep.budgets:
            tables += [Heading(f"{budget:.3g} training FLOPs"), *_optima(sweep, budget)]
            tables += [depth_table(sweep, budget, tested)] if sweep.depths else []
            details += [Heading(f"Sizes at {budget:.3g} training FLOPs", 3), _sizes(sweep, budget)]
        tables += [*below_tables(sweep, tested), *(below_depths(sweep, tested) if sweep.depths else ())]
        details += scatter_section(sweep)
        details += [Heading("Three fits", 3), _fits(sweep)]
    else:
        tables.append("No scheme has a learning rate yet, so there are no curves.")
    details += pair_section(sweep, tested) if sweep.has_curves else []
    details += [Heading("Learning rates", 3), _rates(sweep)]
    if unfinished := _unfinished(sweep):
        details += [Heading("Not finished", 3), Items(unfinished)]
    return suite_page(
        sweep.cells,
        tables,
        downstream=downstream,
        drawn=drawn,
        columns=columns_of(sweep),
        manual="isoflop",
        details=details,
        notes=[*_notes(sweep)],
    )


def _compared(sweep: Sweep) -> str:
    """The sentences on what the page compares."""
    depth = f" and depth (of {', '.join(map(str, sweep.depths))} layers)" if sweep.depths else ""
    text = (
        f"{several(len(sweep.schemes), 'scheme')}, each at its own optimal size{depth}, at equal "
        f"training FLOPs: {several(len(sweep.budgets), 'budget')}."
    )
    layers = {record.model["layers"] for record in sweep.points}
    if sweep.depths or len(layers) != 1:
        return text
    return (
        f"{text} All shapes have {several(layers.pop(), 'layer')}, so a comparison here also compares "
        "the depth: at its own best depth, a scheme may stand elsewhere (`modbench docs depth`)."
    )


def _optima(sweep: Sweep, budget: int) -> Iterable[Part]:
    """The table of the optima, and sentences on it."""
    lines = sweep.lines(budget)
    columns = columns_of(sweep)
    rows = [_optimum(sweep, line) for line in lines]
    missing: dict[str, list[str]] = defaultdict(list)
    for (scheme, depth), why in sweep.without_curve(budget).items():
        if sweep.optimum(scheme, budget, HEADLINE) is None:
            missing[scheme].append(why if depth is None else f"{several(depth, 'layer')}: {why}")
    for scheme, whys in missing.items():
        rows.append(("not ranked", scheme, *("-" * (len(columns) - 3)), "; ".join(whys)))
    yield Table(
        [column.heading for column in columns],
        rows,
        left=(0, 1, len(columns) - 1),
        caption=f"Schemes at their optima, {budget:.3g} training FLOPs",
    )
    yield from _reasons(sweep, budget)
    if reasons := dict.fromkeys(reason for line in lines for reason in line.seconds_missing):
        yield f"No speed-up in seconds: {'; '.join(map(escaped, reasons))}."


def _reasons(sweep: Sweep, budget: int) -> Iterable[str]:
    """Sentences on schemes that are not ranked, and on comparisons that are missing or doubtful."""
    lines = sweep.lines(budget)
    dense = sweep.optimum(DENSE, budget, HEADLINE)
    edges = [line.optimum.place for line in lines if not sweep.is_interior(line.optimum.place)]
    if edges:
        names = (escaped(at_depth(*place)) for place in edges)
        yield (
            f"Not ranked: {', '.join(names)}. The best learning rate is the first or the "
            "last of those tried, so another one may give a lower loss."
        )
    if DENSE in [scheme for scheme, _ in edges]:
        yield "All comparisons rest on a dense model whose learning rate is at the edge."
    compared = [line for line in lines if line.optimum.loss and line.optimum.scheme != DENSE]
    if compared and (dense is None or dense.loss is None):
        why = "it has no finished run" if dense is None else f"its curve is {dense.verdict}"
        yield f"No difference to {DENSE}: {why} at this budget."
    if any(line.speed_up is None for line in compared):
        optima = [sweep.optimum(DENSE, other, HEADLINE) for other in sweep.budgets]
        few = sum(optimum is not None and optimum.loss is not None for optimum in optima) < 2
        why = "it has an interior optimum at fewer than two" if few else "its loss rises between two"
        yield f"No speed-up over {DENSE}: {why} budgets."


def _optimum(sweep: Sweep, line: Line) -> Sequence[object]:
    optimum = line.optimum
    scheme, place = optimum.scheme, optimum.place
    verdict = [str(optimum.verdict)]
    if optimum.void:
        verdict.append(f"no interval: {optimum.void}")
    elif (share := f"{100 * (optimum.interior_share or 1.0):.3g}") != "100":
        verdict = [f"interior in {share} % of draws"]
    verdict.append(sweep.sizes(place, int(optimum.budget)))
    verdict += depth_remarks(sweep, optimum) if sweep.depths else ()
    if not sweep.is_interior(place):
        verdict.append(f"learning rate: {sweep.rates[place].choice.verdict}")
    if reason := sweep.unranked.get(scheme):
        verdict.append(f"not ranked: {reason}")
    if check := sweep.law_fails(place):
        verdict.append(f"the learning rate's law loses more than the noise floor ({check})")
    compared = "-"
    if minus := line.difference:
        compared = difference_text(pair_row({"same_processor": line.same_processor}, minus))
    return (
        (line.group or "-") if line.position else "not ranked",
        scheme,
        *((layers_cell(optimum),) if sweep.depths else ()),
        with_interval(optimum.loss, optimum.loss_interval, ".4f"),
        compared,
        _factor(line.speed_up.factor, line.speed_up, line.speed_up.interval) if line.speed_up else "-",
        *((_in_seconds(line),) if sweep.times.measured else ()),
        with_interval(optimum.size, optimum.size_interval, "si"),
        "; ".join(filter(None, verdict)),
    )


def _in_seconds(line: Line) -> str:
    if line.seconds is None or line.speed_up is None:
        return "-"
    return _factor(line.seconds.factor, line.speed_up, line.seconds.interval)


def _factor(factor: float, in_flops: SpeedUp, interval: Interval | None) -> str:
    """A factor with its interval, ``?`` for an end beyond the dense model's budgets; without one if all
    of it lies beyond the bound."""
    text = f"{in_flops.bound} {factor:.2f}".strip()
    if interval is None or (in_flops.bound and interval[0] == interval[1]):
        return Number(text, factor)
    low, high = (f"{end:.2f}" if 0 < end < inf else "?" for end in interval)
    return Number(f"{text} ({low} to {high})", factor)


def _sizes(sweep: Sweep, budget: int) -> Table:
    """The table of the runs behind the curves of ``budget``."""
    rows = []
    groups: dict[tuple[str, int, int, float], list[Result]] = defaultdict(list)
    for record in sweep.points:
        if record.budget == budget:
            curve = record.scheme, record.depth or 0
            groups[*curve, record.width, record.learning_rate].append(record)
    for (scheme, *_, rate), records in sorted(groups.items()):
        done = [record for record in records if record.status == "ok"]
        active = steps = spent = None
        if done:
            active = si(done[0].metrics["active_parameters"], 3)
            steps = f"{fmean(record.metrics['train_steps'] for record in done):.0f}"
            flops = fmean(record.metrics["train_flops"] for record in done)
            spent = f"{100 * (flops / budget):.2f} %"
        size, loss = shape_name(records[0].model), _loss_text(records)
        rows.append((scheme, size, active, f"{rate:g}", steps, spent, len(done), loss))
    return Table(_SIZES, rows, (0, 1), f"Sizes at {budget:.3g} training FLOPs")


def _loss_text(records: Sequence[Result]) -> str:
    """Mean and range of the seeds of one size, and the status of those without a loss."""
    losses = [record.metrics["heldout_loss"] for record in records if record.status == "ok"]
    between = f" ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else ""
    lost = Counter(record.status for record in records if record.status != "ok")
    words = [f"{number} {status}" if len(records) > 1 else status for status, number in lost.items()]
    if not losses:
        return ", ".join(words)
    return Number(", ".join([f"{fmean(losses):.4f}{between}", *words]), fmean(losses))


def _rates(sweep: Sweep) -> Table:
    rows = []
    for place, rates in sweep.rates.items():
        tried = (
            f"{rate:g}: {rates.statuses[rate] if loss is None else f'{loss:.4f}'}"
            for rate, loss in rates.losses.items()
        )
        best = rates.choice.best
        plan = rates.plan
        row = {
            "scheme": at_depth(*place),
            "tried at": f"width {plan['middle_width']}, {plan['middle_budget']:.3g} FLOPs",
            "loss by learning rate": ", ".join(tried),
            "chosen": "-" if best is None else f"{best:g}",
            "verdict": rates.choice.verdict,
            "law": _law(rates),
            "check of the law": _checks(sweep, place),
        }
        rows.append(row)
    return Table.of(rows, left=range(7)).about("Learning rates tried")


def _checks(sweep: Sweep, place: Place) -> str:
    """The checks of the law, and those that led to its refined exponent."""
    checks = "; ".join(map(str, sweep.laws(place)))
    if before := "; ".join(map(str, sweep.laws_stated(place))):
        return f"before it was refined: {before}" + f"; then {checks}" * bool(checks)
    return checks or "not checked"


def _law(rates: Rates) -> str:
    """The law, with the exponent that the suite states if it was refined."""
    stated = rates.plan["exponent"]
    refined = "" if rates.exponent == stated else f" (refined from {stated:g})"
    return f"width^{rates.exponent:g}{refined}"


def _fits(sweep: Sweep) -> Table:
    """The table of all fits, with further figures of the first one's optimum."""
    rows = []
    for budget in sweep.budgets:
        for scheme in sweep.schemes:
            fits = {fit: optimum for fit in FITS if (optimum := sweep.optimum(scheme, budget, fit))}
            if not fits:
                continue
            first = fits[HEADLINE]
            bits = None if first.loss is None else first.loss * sweep.bits_per_nat_and_byte
            row = {"FLOPs": f"{budget:.3g}", "scheme": scheme}
            if sweep.depths:
                row |= {f"{fit}: layers": layers_cell(at) for fit, at in fits.items()}
            for fit, at in fits.items():
                row[f"{fit}: loss"] = str(at.verdict) if at.loss is None else f"{at.loss:.4f}"
            row |= {f"{fit}: size": with_interval(at.size, None, "si") for fit, at in fits.items()}
            row["bits/byte"] = with_interval(bits, None, ".4f")
            row["nominal forward FLOP/token"] = with_interval(sweep.forward_flops(first), None, "si")
            row["noise floor (nats)"] = with_interval(sweep.noise_floor(scheme), None, ".4f")
            rows.append(row)
    return Table.of(rows, left=(1,)).about("Optima by three fits")


def _unfinished(sweep: Sweep) -> list[str]:
    lost = [record for record in sweep.cells if record.status != "ok"]
    lost.sort(key=lambda r: (r.scheme, r.budget, r.width, r.learning_rate, r.seed))
    return [
        f"**{escaped(record.label)}**, {record.budget:.3g} FLOPs, learning rate "
        f"{record.learning_rate:g}, seed {record.seed}: {record.status} ({escaped(record.error)})"
        for record in lost
    ]


def _notes(sweep: Sweep) -> Iterable[str]:
    if sweep.depths and sweep.has_curves:
        yield fixed_note(sweep)
    yield "FLOPs: convention `model`; active parameters are those of a token routed at every layer."
    yield (
        "Fit of the first table: a parabola in the logarithm of active parameters. Noise floor: twice "
        "the standard deviation of one run's loss over seeds; the difference of two runs has 1.4 times "
        "as much."
    )
    if any(line.seconds for budget in sweep.budgets for line in sweep.lines(budget)):
        yield (
            "Speed-up in seconds: the one in FLOPs times the dense model's seconds per FLOP over the "
            "scheme's, of training steps that `modbench time` measured, interpolated between the timed "
            "shapes. Its interval is that of the FLOPs and does not contain the spread of the times."
        )
    for place, surface in sweep.analysis.surfaces.items():
        edge = ", an exponent or a term at the edge of its range" if surface.at_edge else ""
        yield (
            f"Surface of {escaped(at_depth(*place))}: E {surface.E:.3f}, A {surface.A:.4g}, B "
            f"{surface.B:.4g}, alpha {surface.alpha:.3f}, beta {surface.beta:.3f}; mean Huber loss "
            f"{surface.huber:.2e}{edge}."
        )
    done = [record for record in sweep.cells if record.status == "ok"]
    runs = Counter(record.scheme for record in done)
    idle = Counter(record.scheme for record in done if idle_layers([record]))
    for scheme in sorted(idle):
        yield (
            f"In {idle[scheme]} of {several(runs[scheme], 'run')} of {escaped(scheme)} a routed layer "
            "adds next to nothing; the column note of leaderboard.csv names it."
        )
    by_depth = "depths.csv, " if sweep.depths else ""
    yield (
        f"All figures at full precision: optima.csv, {by_depth}differences.csv, learning_rates.csv and "
        "leaderboard.csv."
    )
