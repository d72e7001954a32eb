"""Tables and sentences of ``docs/depth.md`` that are made from the records of the suite isoflop-depth:
misfit, learning rates, processors, what the differences would be without them, and what is missing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from results_prose import budget_name, listed

from modbench.analysis.comparison import difference
from modbench.analysis.difference import Difference, drawn_difference
from modbench.analysis.isoflop import IsoFlop, analyse
from modbench.analysis.noise import Noise, Run, Spread, pooled
from modbench.records.finished import finished
from modbench.records.result import Place, Result, results_of
from modbench.records.store import read_suite
from modbench.report.isoflop.sweep import DENSE, HEADLINE, Sweep, sweep_of
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.table import Table
from modbench.sweep.rows import resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.wanted import Wanted, expand, expand_planned, losses_of

RESULTS = Path(__file__).parents[1] / "results"
FOLDER = RESULTS / "isoflop-depth"
#: Dense runs of four layers that were trained again on the processor type of most other runs.
AGAIN = RESULTS / "isoflop-cpu-again"
MOST = "Intel(R) Xeon(R) Processor"
MOD, RANDOM = "mod", "mod:gaussian"


@cache
def sweep() -> Sweep:
    records = read_suite(FOLDER)
    found = results_of(records)
    built = sweep_of(found, Leaderboard.of(found, "heldout_loss", records.audits))
    if built is None:
        raise SystemExit(f"{FOLDER} has no isoFLOP run")
    return built


def again() -> list[Run]:
    """The dense runs of four layers that were trained again."""
    return [replace(run_of(result), depth=4) for result in results_of(read_suite(AGAIN))]


def run_of(result: Result) -> Run:
    return Run(
        scheme=result.scheme,
        budget=result.budget,
        size=result.metrics["active_parameters"],
        tokens=result.metrics["train_tokens"],
        loss=result.metrics["heldout_loss"],
        seed=result.seed,
        depth=result.depth,
    )


def is_most(result: Result) -> bool:
    return result.environment["cpu"] == MOST


#: The depth at which schemes are compared besides their own best one.
DEEP = 8
#: What is compared: two schemes, and the depth of both; None: each at its best depth.
WHAT_IFS = ((MOD, DENSE, None), (MOD, DENSE, DEEP), (MOD, RANDOM, None), (MOD, RANDOM, DEEP))
#: The choices whose differences are compared; the first one is the published one.
ALL, ONE_TYPE = "as published", f"only runs on {MOST}"
BEST_RATES = "best rate tried where the law was checked"
SCATTER = f"noise as large as the scatter with {DEEP} layers"

Differences = dict[float, list[Difference | None]]


def what_if(runs: Sequence[Run], noise: Noise | None = None) -> Differences:
    """The differences `WHAT_IFS` of ``runs`` by budget, by parabolas; None: there is no such curve,
    or no choice of depths. ``noise``: measured from ``runs`` if it is not given."""
    analysis = analyse(runs, fits=(HEADLINE,), noise=noise)
    return {
        budget: [_of(analysis, *one, budget) for one in WHAT_IFS]
        for budget in sorted({run.budget for run in runs})
    }


def _of(
    analysis: IsoFlop, scheme: str, other: str, depth: int | None, budget: float
) -> Difference | None:
    try:
        both = [analysis.optimum(name, budget, HEADLINE, depth) for name in (scheme, other)]
    except KeyError:  # no such curve
        return None
    if depth is None and any(len(at.depths) < 2 for at in both):
        return None  # one that stands alone is no best depth
    return difference(analysis, scheme, other, budget, HEADLINE, depth=depth)


@cache
def what_ifs() -> dict[str, Differences]:
    """The published differences, with one processor type, with the best rate at the ends, and with the
    scatter around the deeper curves as noise. The second and third have the noise of all runs."""
    results, noise = sweep().curve_records(), sweep().analysis.noise
    runs = [run_of(result) for result in results]
    one_type = [*(run_of(result) for result in results if is_most(result)), *again()]
    found = {
        ALL: what_if(runs),
        ONE_TYPE: what_if(one_type, noise),
        BEST_RATES: what_if([*corrected()], noise),
        SCATTER: {},
    }
    for budget in found[ALL]:
        if budget not in {budget for _, budget, _ in lost_by_law()}:
            found[BEST_RATES].pop(budget)
        if around := scatters(budget).get(DEEP):
            wide = Noise(residuals={}, pooled=around, shift=noise.shift)
            found[SCATTER][budget] = what_if(runs, wide)[budget]
    return found


def scatters(budget: float) -> dict[int, Spread]:
    """The scatter around the parabolas by depth, all schemes together."""
    found: dict[int, list[Spread]] = {}
    for at in sweep().analysis.by_depth:
        if (at.fit, at.budget) == (HEADLINE, budget) and at.scatter is not None:
            found.setdefault(at.depth or 0, []).append(at.scatter)
    each = {depth: pooled(of) for depth, of in sorted(found.items())}
    return {depth: spread for depth, spread in each.items() if spread is not None}


def misfit() -> str:
    """The scatter around the parabolas by depth, next to the noise between seeds."""
    sentences = []
    for budget in sweep().budgets:
        each = [f"{spread.sd:.4f} with {depth}" for depth, spread in scatters(budget).items()]
        if each:
            sentences.append(f"{listed(each)} layers at {budget_name(budget)} FLOPs")
    return (
        f"The scatter of one run around the parabolas, all schemes together, is {'; '.join(sentences)}. "
        f"The noise between seeds is {noise():.4f} nats. Where the scatter is much larger, a parabola "
        "misses the curve, and the intervals above are too narrow."
    )


def fitted(scheme: str, other: str, budget: float, fit: str, depth: int) -> Difference | None:
    """The difference of two schemes at ``depth`` layers by ``fit``."""
    return difference(sweep().analysis, scheme, other, budget, fit, depth=depth)


def depth_effect(budget: float, low: int, high: int) -> Difference:
    """The change of MoD minus dense from ``low`` to ``high`` layers."""
    value, drawn = 0.0, 0.0
    for depth, sign in ((high, 1), (low, -1)):
        for scheme, side in ((MOD, 1), (DENSE, -1)):
            at = sweep().analysis.optimum(scheme, budget, HEADLINE, depth)
            value += sign * side * (at.loss or 0.0)
            drawn = drawn + sign * side * at.drawn_losses
    drawn = drawn[np.isfinite(drawn)]
    return drawn_difference(value, drawn, drawn)


def what_if_table() -> str:
    """One row per budget and choice."""
    heads = ("FLOPs", "runs", *(f"{a} minus {b}, {_at(depth)}" for a, b, depth in WHAT_IFS))
    shown = what_ifs()
    rows = [
        (budget_name(budget), name, *map(in_cell, of[budget]))
        for budget in shown[ALL]
        for name, of in shown.items()
        if budget in of
    ]
    return Table(heads, rows, left=(1,)).to_markdown()


def _at(depth: int | None) -> str:
    return "own best depth" if depth is None else f"{depth} layers"


def in_cell(found: Difference | None) -> str:
    if found is None or found.interval is None:
        return "-"
    return f"{found.value:+.4f} [{found.interval[0]:+.4f}, {found.interval[1]:+.4f}]"


def what_if_in_words() -> str:
    """The largest change of a difference by each choice, and the intervals that it moves onto or off
    zero."""
    shown = what_ifs()
    sentences = []
    for name in (ONE_TYPE, BEST_RATES, SCATTER):
        changes, crossed = [0.0], []
        for budget, others in shown[name].items():
            pairs = zip(WHAT_IFS, shown[ALL][budget], others, strict=True)
            for (scheme, other, depth), first, second in pairs:
                if first is None or second is None:
                    continue
                changes.append(abs(second.value - first.value))
                if _side(first) != _side(second):
                    place = f"{_at(depth)}, {budget_name(budget)} FLOPs"
                    crossed.append(f"{scheme} minus {other} ({place})")
        moved = f"changes these differences by {max(changes):.4f} nats at most"
        if name == SCATTER:
            moved = "widens the intervals"
        zero = (
            f"moves an interval over zero for {listed(crossed)}"
            if crossed
            else "moves no interval over zero"
        )
        sentences.append(f"*{name[0].upper()}{name[1:]}* {moved} and {zero}.")
    return "\n".join(sentences)


def _side(found: Difference) -> int:
    """0: the interval contains zero; otherwise the sign of the difference."""
    low, high = found.interval or (0.0, 0.0)
    return 0 if low <= 0 <= high else 1 if low > 0 else -1


@cache
def lost_by_law() -> dict[tuple[Place, float, int], float]:
    """The loss that the best rate tried gains over the law's, by curve, budget and width."""
    lost = {}
    for place, rates in sweep().rates.items():
        for check in sweep().laws(place):
            lost[place, float(check.budget or rates.plan["middle_budget"]), check.width] = check.lost
    return lost


def corrected() -> Iterator[Run]:
    """The runs of the curves; where a better learning rate than the law's is known, the loss is lower by
    what the law lost there."""
    for result in sweep().curve_records():
        run = run_of(result)
        lost = lost_by_law().get((result.place, float(result.budget), result.width), 0.0)
        yield replace(run, loss=run.loss - lost)


def rates_table() -> str:
    """The rate of each scheme and depth, its margin over its neighbours, and what the law loses."""
    heads = ("scheme", "layers", "loss by rate tried", "chosen", "better than its neighbours by (nats)")
    heads += ("law of the width", "law loses at the largest size (nats)")
    rows = []
    for (scheme, depth), rates in sorted(sweep().rates.items()):
        tried = [(rate, loss) for rate, loss in sorted(rates.losses.items()) if loss is not None]
        settled = rates.choice.verdict == "interior"
        margin = "-"
        if settled:
            losses = [loss for _, loss in tried]
            best = losses.index(min(losses))
            margin = f"{min(losses[best - 1], losses[best + 1]) - losses[best]:.4f}"
        checks = [check for check in sweep().laws((scheme, depth)) if check.budget is None]
        rows.append(
            (
                scheme,
                depth,
                ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in tried),
                f"{rates.choice.best:g}" if settled else f"not settled ({rates.choice.verdict})",
                margin,
                f"width^{rates.exponent:g}",
                f"{max(check.lost for check in checks):.4f}" if checks else "not checked",
            )
        )
    return Table(heads, rows, left=(0, 2)).to_markdown()


def rates_in_words() -> str:
    """The rates that noise could have chosen otherwise; where learned and random routing differ."""
    close, differ = [], []
    settled = set(filter(sweep().is_interior, sweep().rates))
    for (scheme, depth), rates in sorted(sweep().rates.items()):
        losses = sorted(loss for loss in rates.losses.values() if loss is not None)
        if (scheme, depth) in settled and losses[1] - losses[0] < 2**0.5 * noise():
            close.append(f"{scheme} at {depth} layers")
        if scheme == MOD and settled >= {(MOD, depth), (RANDOM, depth)}:
            of_both = [sweep().rates[name, depth].choice.best for name in (MOD, RANDOM)]
            if of_both[0] != of_both[1]:
                differ.append(f"at {depth} layers ({of_both[0]:g} and {of_both[1]:g})")
    text = (
        "The second best rate lies within the noise of two runs of the best one for "
        f"{listed(close)}, so noise could have chosen it."
        if close
        else ""
    )
    if differ:
        text += f" {MOD} and {RANDOM} run at different rates {listed(differ)}."
    return text.strip()


def processors() -> str:
    """The points of the curves by the processor that ran them."""
    heads = ("layers", "scheme", "points of curves by processor")
    found: dict[tuple[int, str], Counter[str]] = {}
    for result in sweep().curve_records():
        found.setdefault((result.depth or 0, result.scheme), Counter())[result.environment["cpu"]] += 1
    rows = [
        (*place, ", ".join(f"{cpu}: {count}" for cpu, count in sorted(of.items())))
        for place, of in sorted(found.items())
    ]
    return Table(heads, rows, left=(1, 2)).to_markdown()


def same_runs() -> str:
    """The distance of runs trained again on another processor from the first ones."""
    first = {result.key: result.metrics["heldout_loss"] for result in sweep().cells}
    shifts = [
        result.metrics["heldout_loss"] - first[result.key] for result in results_of(read_suite(AGAIN))
    ]
    root = (sum(shift**2 for shift in shifts) / len(shifts)) ** 0.5
    return (
        f"{len(shifts)} dense runs of four layers, trained on an AMD EPYC at first, were trained again "
        f"on an {MOST}: their losses differ by {min(shifts):+.4f} to {max(shifts):+.4f} nats, a root "
        f"mean square of {root:.4f}; two seeds differ by {2**0.5 * noise():.4f}."
    )


def noise() -> float:
    pooled = sweep().analysis.noise.pooled
    return float(pooled.sd) if pooled else float("nan")


@cache
def unfinished() -> dict[tuple[float, str, int], tuple[int, int]]:
    """Runs that are left and that are planned, by budget, scheme and depth. While a learning rate is
    open, the runs of its curves are those of its middle rate."""
    done = losses_of(finished(FOLDER))
    rows = resolve(load_suite(FOLDER.name))
    settled = {place for place, rates in sweep().rates.items() if sweep().is_interior(place)}
    wanted = [of for of in expand(rows, done) if (_scheme(of), of.depth) in settled]
    wanted += [of for of in expand_planned(rows) if (_scheme(of), of.depth) not in settled]
    counts: dict[tuple[float, str, int], tuple[int, int]] = {}
    for one in wanted:
        at = float(one.budget), _scheme(one), one.depth or 0
        left, planned = counts.get(at, (0, 0))
        counts[at] = left + (one.run.key not in done), planned + 1
    return {at: of for at, of in sorted(counts.items()) if of[0]}


def _scheme(wanted: Wanted) -> str:
    return wanted.label.partition("/")[0]


def missing() -> str:
    """The runs that are left of each scheme and depth, by budget."""
    if not unfinished():
        return "All planned runs are finished."
    budgets = sweep().budgets
    heads = ("layers", "scheme", *(f"left at {budget_name(budget)}" for budget in budgets))
    rows = []
    for depth, scheme in sorted({(depth, scheme) for _, scheme, depth in unfinished()}):
        counts = [unfinished().get((budget, scheme, depth)) for budget in budgets]
        rows.append((depth, scheme, *(f"{of[0]} of {of[1]}" if of else "-" for of in counts)))
    return Table(heads, rows, left=(1,)).to_markdown()


def left() -> str:
    """The runs that complete the suite."""
    runs = sum(left for left, _ in unfinished().values())
    flops = sum(budget * left for (budget, *_), (left, _) in unfinished().items())
    return (
        f"{runs} runs are left, {flops:.2g} training FLOPs, and those that further learning rates may "
        f"need; `modbench plan {FOLDER.name}` measures the time of the whole suite on your machine."
    )
