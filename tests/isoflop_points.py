"""IsoFLOP points of known surfaces, and the public sets."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modbench.analysis.surface import Surface

#: Of Hoffmann et al. 2022.
CHINCHILLA = Surface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, huber=0.0)
BUDGETS = (1e17, 1e18, 1e19, 1e20, 1e21)


def optimal_size(surface: Surface, flops: float) -> float:
    """Size of least loss when training takes C = 6 N D FLOPs (Hoffmann et al. 2022, equation 4)."""
    ratio = surface.alpha * surface.A / (surface.beta * surface.B)
    power: float = (ratio * (flops / 6) ** surface.beta) ** (1 / (surface.alpha + surface.beta))
    return power


def points_of(
    surface: Surface = CHINCHILLA,
    *,
    budgets: Sequence[float] = BUDGETS,
    sizes: int = 15,
    width: float = 4.0,
) -> pd.DataFrame:
    """Points within ``width`` of the optimum of each budget, without noise."""
    points = []
    for flops in budgets:
        best = optimal_size(surface, flops)
        for size in np.geomspace(best / width, best * width, sizes):
            tokens = flops / 6 / size
            points.append((size, flops, tokens, float(surface.loss(size, tokens))))
    return pd.DataFrame(points, columns=["size", "FLOPs", "tokens", "loss"])


def public_sets() -> pd.DataFrame:
    """isoflops.csv of github.com/Open-Athena/scaling-law-analysis. It states no licence, so there is no
    copy in this repository; without one, the test is skipped."""
    file = Path(os.environ.get("MODBENCH_ISOFLOPS", ""))
    if not file.is_file():
        pytest.skip("MODBENCH_ISOFLOPS names no copy of scaling-law-analysis' isoflops.csv")
    names = {"experiment": "group", "params": "size", "budget": "FLOPs"}
    return pd.read_csv(file).rename(columns=names)
