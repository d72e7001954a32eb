"""The surface fit recovers known surfaces."""

import numpy as np
import pytest
from isoflop_points import optimal_size

from modbench.analysis.surface import Surface, fit_surface

SURFACES = {
    "symmetric": Surface(E=1.69, A=400.0, B=400.0, alpha=0.31, beta=0.31, huber=0.0),
    "Chinchilla": Surface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, huber=0.0),
    "asymmetric": Surface(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155, huber=0.0),
}


def grid(budgets: tuple[float, ...] = (1e18, 1e19, 1e20)) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.tile(np.geomspace(1e8, 4e9, 5), len(budgets))
    return sizes, np.repeat(budgets, 5) / 6 / sizes


@pytest.mark.parametrize("name", SURFACES)
def test_surface_without_noise_is_recovered_to_a_millionth(name: str) -> None:
    truth = SURFACES[name]
    sizes, tokens = grid()
    found = fit_surface(sizes, tokens, truth.loss(sizes, tokens))
    for field in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, field) == pytest.approx(getattr(truth, field), rel=1e-6)
    assert not found.at_edge
    assert optimal_size(found, 1e19) == pytest.approx(optimal_size(truth, 1e19), rel=1e-6)


def test_optimal_size_has_the_least_loss_of_its_budget() -> None:
    surface = SURFACES["asymmetric"]
    best = optimal_size(surface, 1e21)
    sizes = best * np.array([0.99, 1.0, 1.01])
    assert surface.loss(sizes, 1e21 / 6 / sizes).argmin() == 1


def test_one_outlier_moves_the_surface_little() -> None:
    truth = SURFACES["Chinchilla"]
    sizes, tokens = grid()
    losses = truth.loss(sizes, tokens)
    losses[7] += 0.5
    found = fit_surface(sizes, tokens, losses)
    assert found.alpha == pytest.approx(truth.alpha, rel=1e-2)
