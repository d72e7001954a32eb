"""Made-up isoFLOP sweeps of known curves."""

from collections.abc import Callable
from math import log
from typing import Any

from modbench.report.record import CellRecord

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
}
RATES = {32: 0.00707, 48: 0.00577, 64: 0.005, 96: 0.00408, 128: 0.00354}
Make = Callable[..., CellRecord]


def curve_loss(scheme: str, width: int, budget: int, seed: int) -> float:
    best = 64 * (budget / BUDGETS[1]) ** 0.2
    lead = 0.3 if scheme == "mod" else 0.0
    noise = ((7 * width + 5 * seed) % 11 - 5) / 5000
    return 4 - 0.3 * log(budget / BUDGETS[1]) + 0.1 * log(width / best) ** 2 - lead + noise


def records(
    make: Make, schemes: tuple[str, ...] = ("vanilla", "mod"), **others: Any
) -> list[CellRecord]:
    """The finished sweep of ``schemes``: three seeds at the middle budget, and trials of rates."""
    found = []

    def add(scheme: str, width: int, budget: int, seed: int, rate: float, worse: float = 0.0) -> None:
        found.append(
            make(
                f"{scheme}/w{width}",
                router=scheme,
                seed=seed,
                loss=curve_loss(scheme, width, budget, seed) + worse,
                train={"budget": budget, "learning_rate": rate, "precision": "auto"},
                metrics={
                    "active_parameters": 12 * width**2,
                    "parameters": 13 * width**2,
                    "forward_flops_per_token": 24 * width**2,
                    "train_flops": budget - 10,
                },
                model_width=width,
                **others,
            )
        )

    for scheme in schemes:
        for budget in BUDGETS:
            for width in WIDTHS:
                for seed in range(3 if budget == BUDGETS[1] else 1):
                    add(scheme, width, budget, seed, RATES[width])
        for rate in (0.0025, 0.01):
            add(scheme, 64, BUDGETS[1], 0, rate, 0.1)
        for rate in (0.00177, 0.00708):
            add(scheme, 128, BUDGETS[1], 0, rate, 0.1)
    return found


def table_under(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under ``heading``."""
    lines = page[page.index(heading) :].split("\n\n")
    table = next(part for part in lines if part.startswith("| rank"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
