"""Fitting an isoFLOP suite: every curve by three fits, and its intervals."""

import time

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach

from modbench.analysis.isoflop import FITS, analyse
from modbench.analysis.noise import Run

SCHEMES, BUDGETS, SIZES, SEEDS, DRAWS = 7, (3e12, 1e13, 3e13), 5, 3, 1000


def sweep() -> list[Run]:
    """Runs on a known surface, with noise between seeds."""
    noise = np.random.default_rng(0).normal(0, 0.005, (SCHEMES, len(BUDGETS), SIZES, SEEDS))
    found = []
    for scheme, row, column, seed in np.ndindex(*noise.shape):
        budget = BUDGETS[row]
        size = (budget / 120) ** 0.5 * 1.7 ** (column - SIZES // 2)
        tokens = budget / (6 * size)
        loss = 1.7 - 0.02 * scheme + 40 * size**-0.3 + 60 * tokens**-0.3
        run = Run(
            scheme=f"scheme {scheme}",
            budget=budget,
            size=size,
            tokens=tokens,
            seed=seed,
            loss=float(loss + noise[scheme, row, column, seed]),
        )
        found.append(run)
    return found


def test_fitting_a_suite(benchmark: BenchmarkFixture, reach: Reach) -> None:
    runs, began = sweep(), time.process_time()
    found = benchmark.pedantic(analyse, args=(runs,), kwargs={"draws": DRAWS}, rounds=1, iterations=1)
    assert len(found.optima) == SCHEMES * len(BUDGETS) * len(FITS)
    assert all(optimum.loss_low for optimum in found.best())
    what = f"fitting {SCHEMES} schemes x {len(BUDGETS)} budgets x {SIZES} sizes x {SEEDS} seeds"
    reach(f"{what}, {DRAWS} draws", benchmark.stats.stats.total, 20, "s")
    reach.shown(f"{what}, processor time", time.process_time() - began, "s")
