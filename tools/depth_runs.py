"""Tables and sentences of ``docs/depth.md`` that are made from the records of the suite isoflop-depth:
learning rates, processors, and what the differences would be without either.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from results_prose import budget_name, listed

from modbench.analysis.comparison import difference
from modbench.analysis.difference import Difference
from modbench.analysis.isoflop import IsoFlop, analyse
from modbench.analysis.noise import Run
from modbench.records.result import Result, results_of
from modbench.records.store import read_suite
from modbench.report.isoflop.sweep import DENSE, HEADLINE, Sweep, sweep_of
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.table import Table

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


#: What is compared: two schemes, and the depth of both; None: each at its best depth.
WHAT_IFS = ((MOD, DENSE, None), (MOD, DENSE, 8), (MOD, RANDOM, None), (MOD, RANDOM, 8))
#: The choices of runs whose differences are compared; the first one is the published one.
ALL, ONE_TYPE, BEST_RATES = (
    "all runs",
    f"only runs on {MOST}",
    "best rate tried where the law was checked",
)


def what_if(runs: Sequence[Run]) -> dict[float, list[Difference | None]]:
    """The differences `WHAT_IFS` of ``runs`` by budget, by parabolas; None: there is no such curve."""
    analysis = analyse(runs, fits=(HEADLINE,))
    return {
        budget: [_of(analysis, *one, budget) for one in WHAT_IFS]
        for budget in sorted({run.budget for run in runs})
    }


def _of(
    analysis: IsoFlop, scheme: str, other: str, depth: int | None, budget: float
) -> Difference | None:
    try:
        return difference(analysis, scheme, other, budget, HEADLINE, depth=depth)
    except KeyError:  # no such curve
        return None


@cache
def what_ifs() -> dict[str, dict[float, list[Difference | None]]]:
    """The differences with all runs, with one processor type, and with the best rate at the ends."""
    results = sweep().curve_records()
    runs = {
        ALL: [run_of(result) for result in results],
        ONE_TYPE: [*(run_of(result) for result in results if is_most(result)), *again()],
        BEST_RATES: [*corrected()],
    }
    return {name: what_if(of) for name, of in runs.items()}


def what_if_table() -> str:
    """One row per budget and choice of runs."""
    heads = ("FLOPs", "runs", *(f"{a} minus {b}, {_at(depth)}" for a, b, depth in WHAT_IFS))
    shown = what_ifs()
    rows = [
        (budget_name(budget), name, *map(_in_cell, shown[name].get(budget, [None] * len(WHAT_IFS))))
        for budget in shown[ALL]
        for name in shown
    ]
    return Table(heads, rows, left=(1,)).to_markdown()


def _at(depth: int | None) -> str:
    return "own best depth" if depth is None else f"{depth} layers"


def _in_cell(found: Difference | None) -> str:
    if found is None or found.interval is None:
        return "-"
    return f"{found.value:+.4f} [{found.interval[0]:+.4f}, {found.interval[1]:+.4f}]"


def what_if_in_words() -> str:
    """The intervals that contain zero with one choice of runs only."""
    shown = what_ifs()
    changes = []
    for name in (ONE_TYPE, BEST_RATES):
        for budget, found in shown[ALL].items():
            others = shown[name].get(budget, [None] * len(WHAT_IFS))
            for (scheme, other, depth), first, second in zip(WHAT_IFS, found, others, strict=True):
                sides = [_side(of) for of in (first, second)]
                if None not in sides and sides[0] != sides[1]:
                    place = f"{_at(depth)}, {budget_name(budget)} FLOPs"
                    changes.append(f"{scheme} minus {other}, {place}, {name}")
    if not changes:
        return "Every interval contains zero, or leaves it out, as that of all runs does."
    return (
        "Only here does an interval contain zero where that of all runs does not, or the other way "
        f"round: {'; '.join(changes)}."
    )


def _side(found: Difference | None) -> int | None:
    """0: the interval contains zero; otherwise the sign of the difference."""
    if found is None or found.interval is None:
        return None
    low, high = found.interval
    return 0 if low <= 0 <= high else 1 if low > 0 else -1


def corrected() -> Iterator[Run]:
    """The runs of the curves; where a better learning rate than the law's is known, the loss is lower by
    what the law lost there."""
    lost = {}
    for place in sweep().rates:
        for check in sweep().laws(place):
            budget = check.budget or sweep().rates[place].plan["middle_budget"]
            lost[place, budget, check.width] = check.lost
    for result in sweep().curve_records():
        run = run_of(result)
        yield replace(run, loss=run.loss - lost.get((result.place, result.budget, result.width), 0.0))


def rates_table() -> str:
    """The rate of each scheme and depth, its margin over the next best, and what the law loses."""
    heads = ("scheme", "layers", "rates tried", "chosen", "next best loses (nats)")
    heads += ("law of the width", "law loses at the largest size (nats)")
    rows = []
    for (scheme, depth), rates in sorted(sweep().rates.items()):
        losses = sorted(loss for loss in rates.losses.values() if loss is not None)
        checks = [check for check in sweep().laws((scheme, depth)) if check.budget is None]
        settled = rates.choice.verdict == "interior"
        rows.append(
            (
                scheme,
                depth,
                ", ".join(f"{rate:g}" for rate in rates.losses),
                f"{rates.choice.best:g}" if settled else f"not settled ({rates.choice.verdict})",
                f"{losses[1] - losses[0]:.4f}" if settled else "-",
                f"width^{rates.exponent:g}",
                f"{max(check.lost for check in checks):.4f}" if checks else "not checked",
            )
        )
    return Table(heads, rows, left=(0,)).to_markdown()


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


def missing() -> str:
    """The curves that are planned and not finished."""
    sentences = []
    for budget in sweep().budgets:
        without = sweep().without_curve(budget)
        names = []
        for scheme in sweep().schemes:
            depths = [str(depth) for of, depth in sorted(without) if of == scheme]
            names += [f"{scheme} at {listed(depths)} layers"] if depths else []
        for scheme, depth in sorted(sweep().rates):
            if (scheme, depth) not in without and (sizes := sweep().sizes((scheme, depth), budget)):
                names.append(f"{scheme} at {depth} layers ({sizes})")
        if names:
            sentences.append(f"at {budget_name(budget)} FLOPs {', '.join(names)}")
    return f"Not finished: {'; '.join(sentences)}." if sentences else "All planned curves are finished."
