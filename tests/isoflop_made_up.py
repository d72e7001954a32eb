"""Made-up isoFLOP sweeps of known curves."""

from collections.abc import Callable, Sequence
from functools import partial
from math import log
from typing import Any

from modbench.records.result import Result
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.markdown import Page
from modbench.report.suite import suite_of
from modbench.report.table import Table

BUDGETS = (10**12, 3 * 10**12, 10**13)
WIDTHS = (32, 48, 64, 96, 128)
PLAN = {
    "learning_rates": [0.0025, 0.005, 0.01],
    "extensions": 2,
    "exponent": -0.5,
    "margin": 0.01,
    "middle_width": 64,
    "middle_budget": BUDGETS[1],
    "seed": 0,
    "sizes": 5,
}
RATES = {32: 0.00707, 48: 0.00577, 64: 0.005, 96: 0.00408, 128: 0.00354}
TRIALS = ((64, 0.0025), (64, 0.01), (128, 0.00177), (128, 0.00708))
Make = Callable[..., Result]


def curve_loss(scheme: str, width: int, budget: int) -> float:
    best = 64 * (budget / BUDGETS[1]) ** 0.2
    lead = 0.3 if scheme == "mod" else 0.0
    return 4 - 0.3 * log(budget / BUDGETS[1]) + 0.1 * log(width / best) ** 2 - lead


def run(make: Make, scheme: str, width: int, budget: int, *, loss: float = 4.0, **fields: Any) -> Result:
    """A run with noise between seeds, at the rate that the law gives unless ``rate`` does; ``depth``:
    in a suite of several."""
    of_depth = f"x{fields['depth']}" if fields.get("depth") else ""
    seed, rate = fields.pop("seed", 0), fields.pop("rate", RATES[width])
    metrics = {
        "active_parameters": 12 * width**2,
        "parameters": 13 * width**2,
        "forward_flops_per_token": 24 * width**2,
        "train_flops": budget - 10,
    }
    return make(
        f"{scheme}/w{width}{of_depth}",
        router=scheme,
        seed=seed,
        loss=loss + ((7 * width + 5 * seed + 3 * (scheme == "mod") * (width + seed)) % 11 - 5) / 5000,
        train={"budget": budget, "learning_rate": rate, "precision": "auto"},
        metrics={} if "status" in fields else metrics,
        model_width=width,
        **fields,
    )


def sweep_records(
    make: Make,
    scheme: str,
    curve: Callable[[int, int], float],
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    widths: tuple[int, ...] = WIDTHS,
    rate_seed: int | None = None,
    **others: Any,
) -> list[Result]:
    """The finished sweep of a scheme whose loss is ``curve`` of width and budget: all ``seeds`` at the
    middle budget, and trials of rates, with the first seed or ``rate_seed``."""
    seed, chosen = seeds[0], ()
    if rate_seed is not None:  # it also runs the rates that win
        seed, chosen = rate_seed, ((64, RATES[64]), (128, RATES[128]))
    found = [
        run(make, scheme, width, budget, seed=seed, loss=curve(width, budget), **others)
        for budget in BUDGETS
        for width in widths
        for seed in (seeds if budget == BUDGETS[1] else seeds[:1])
    ]
    for width, rate in (*TRIALS, *chosen):
        if width in widths:
            loss = curve(width, BUDGETS[1]) + 0.1 * ((width, rate) in TRIALS)
            found.append(run(make, scheme, width, BUDGETS[1], seed=seed, rate=rate, loss=loss, **others))
    return found


def records(make: Make, schemes: tuple[str, ...] = ("vanilla", "mod"), **others: Any) -> list[Result]:
    """The finished sweeps of ``schemes``."""
    return [
        record
        for scheme in schemes
        for record in sweep_records(make, scheme, partial(curve_loss, scheme), **others)
    ]


def analysed(found: Sequence[Result]) -> IsoFlopSuite:
    """The curves of the results of a suite."""
    sweep = suite_of(found).sweep
    assert sweep is not None
    return sweep


def table_under(page: Page, heading: str) -> list[list[str]]:
    """The cells of the first table under ``heading``."""
    texts = [f"{part}\n" if isinstance(part, str) else "" for part in page.parts]
    number = next(number for number, text in enumerate(texts) if f"# {heading}\n" in text)
    table = next(part for part in page.parts[number:] if isinstance(part, Table))
    return [["-" if cell is None else str(cell) for cell in row] for row in table.rows]
