"""Minima of isoFLOP curves: exact where the fit is, the parabola's known bias, verdicts elsewhere."""

import numpy as np
import pytest
from isoflop_points import optimal_size

from modbench.analysis.curve import CURVE_FITS, VERDICTS, akima, parabola
from modbench.analysis.surface import Surface

BUDGETS = (1e17, 1e18, 1e19, 1e20, 1e21)
#: Error in percent of the tokens at 1e24 FLOPs, extrapolated from parabolas over sizes within a factor W
#: of the optimum (arXiv 2603.22339): surface (alpha, beta, A, B), points, {W: error}.
BIAS = [
    ((0.31, 0.31, 400.0, 400.0), 15, {2: 0.0, 4: 0.0, 8: 0.0, 16: 0.0}),
    ((0.34, 0.28, 406.4, 410.7), 15, {2: -0.33, 4: -1.30, 8: -2.90, 16: -5.10}),
    ((0.34, 0.28, 406.4, 410.7), 5, {2: -0.41, 4: -1.62, 8: -3.61, 16: -6.33}),
    ((0.465, 0.155, 406.4, 410.7), 15, {2: -1.67, 4: -6.50, 8: -13.91, 16: -23.12}),
]


@pytest.mark.parametrize(("numbers", "points", "errors"), BIAS)
def test_parabola_has_its_published_bias(
    numbers: tuple[float, ...], points: int, errors: dict[int, float]
) -> None:
    alpha, beta, a, b = numbers
    surface = Surface(E=1.69, A=a, B=b, alpha=alpha, beta=beta, huber=0.0)

    def best_tokens(flops: float) -> float:
        return flops / 6 / optimal_size(surface, flops)

    for width, error in errors.items():
        found = []
        for flops in BUDGETS:
            tokens = np.geomspace(best_tokens(flops) / width, best_tokens(flops) * width, points)
            found.append(parabola(tokens, surface.loss(flops / 6 / tokens, tokens)).sizes[0])
        line = np.polyfit(np.log(BUDGETS), np.log(found), 1)
        extrapolated = np.exp(np.polyval(line, np.log(1e24)))
        assert 100 * (extrapolated / best_tokens(1e24) - 1) == pytest.approx(error, abs=0.01)


@pytest.mark.parametrize("fit", CURVE_FITS)
def test_minimum_of_an_exact_parabola_is_found(fit: str) -> None:
    sizes = np.geomspace(1e6, 1.6e7, 5)
    lowest = np.array([np.log(3.1e6), np.log(9e6)])
    losses = 3 + 0.2 * (np.log(sizes) - lowest[:, None]) ** 2
    found = CURVE_FITS[fit](sizes, losses)
    assert found.interior.all()
    tolerance = 1e-9 if fit == "parabola" else 0.05
    assert found.sizes == pytest.approx(np.exp(lowest), rel=tolerance)
    assert found.losses == pytest.approx(np.full(2, 3.0), abs=0.002)


@pytest.mark.parametrize("fit", CURVE_FITS)
@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([3.0, 3.1, 3.3, 3.6, 4.0], "edge-low"),
        ([4.0, 3.6, 3.3, 3.1, 3.0], "edge-high"),
        ([3.0, 3.3, 3.4, 3.3, 3.0], "open-down"),
        ([3.0, 2.9], "too-few"),
        ([3.1, 3.0, 3.05, 3.2, 3.4], "interior"),
    ],
)
def test_curve_gets_a_verdict_and_a_number_only_if_interior(
    fit: str, losses: list[float], verdict: str
) -> None:
    found = CURVE_FITS[fit](np.geomspace(1, 4, len(losses)), losses)
    assert VERDICTS[found.verdicts[0]] == verdict
    assert np.isfinite(found.sizes[0]) == np.isfinite(found.losses[0]) == (verdict == "interior")


def test_akima_minimum_is_the_least_value_of_the_interpolation() -> None:
    from scipy.interpolate import Akima1DInterpolator

    generator = np.random.default_rng(3)
    sizes = np.geomspace(1, 16, 7)
    losses = 3 + 0.1 * np.log(sizes / 4) ** 2 + generator.normal(0, 0.01, (50, 7))
    found = akima(sizes, losses)
    fine = np.linspace(0, np.log(sizes[-1]), 20_001)
    assert found.interior.all()
    for row, size, loss in zip(losses, found.sizes, found.losses, strict=True):
        curve = Akima1DInterpolator(np.log(sizes), row)(fine)
        assert loss == pytest.approx(curve.min(), abs=1e-8)
        assert np.log(size) == pytest.approx(fine[curve.argmin()], abs=2e-4)
