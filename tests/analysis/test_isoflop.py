"""Intervals and comparisons on simulated sweeps whose truth is known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from isoflop_points import optimal_size
from scipy import stats
from scipy.interpolate import PchipInterpolator

from modbench.analysis.comparison import _needed, difference, speed_up
from modbench.analysis.curve import scatter
from modbench.analysis.difference import Difference, judge
from modbench.analysis.isoflop import FITS, IsoFlop, analyse
from modbench.analysis.noise import Array, Cell, Run, Spread, bartlett, draw_losses, measure_noise
from modbench.analysis.surface import Surface

BUDGETS = (3e12, 1e13, 3e13)
DENSE = Surface(E=2.0, A=60.0, B=2000.0, alpha=0.34, beta=0.42, huber=0.0)


def optimum(surface: Surface, flops: float) -> tuple[float, float]:
    size = optimal_size(surface, flops)
    return size, float(surface.loss(size, flops / 6 / size))


def sweep(
    schemes: dict[str, Surface],
    *,
    sd: float = 0.0,
    shift: float = 0.0,
    repeats: int = 3,
    width: float = 2.0,
    sizes: int = 5,
    centre: float = 1.0,
    seed: int = 0,
    budgets: Sequence[float] = BUDGETS,
) -> list[Run]:
    """Runs at sizes within ``width`` of each optimum; ``repeats`` seeds at the second budget, else 1."""
    generator = np.random.default_rng(seed)
    shifts = {(flops, one): generator.normal(0, shift) for flops in budgets for one in range(repeats)}
    runs = []
    for name, surface in schemes.items():
        for flops in budgets:
            middle = centre * optimal_size(surface, flops)
            for size in np.geomspace(middle / width, middle * width, sizes):
                for one in range(repeats if flops == budgets[1] else 1):
                    tokens = flops / 6 / size
                    loss = (
                        float(surface.loss(size, tokens)) + shifts[flops, one] + generator.normal(0, sd)
                    )
                    runs.append(
                        Run(
                            scheme=name,
                            budget=flops,
                            size=float(size),
                            tokens=float(tokens),
                            loss=loss,
                            seed=one,
                        )
                    )
    return runs


def verdict_of(difference: Difference) -> str | None:
    """The verdict on one comparison."""
    return judge([difference])[0].verdict


def family(isoflop: IsoFlop, pairs: Sequence[tuple[float, str]]) -> dict[tuple[float, str], Difference]:
    """The judged differences of schemes to the dense one."""
    minus = [difference(isoflop, scheme, "dense", flops) for flops, scheme in pairs]
    return dict(zip(pairs, judge([of for of in minus if of is not None]), strict=True))


def times_cheaper(factor: float) -> Surface:
    """The surface whose optimum at C FLOPs has the dense loss of ``factor`` times C."""
    scale = factor**0.5
    return Surface(
        E=DENSE.E,
        A=DENSE.A * scale**-DENSE.alpha,
        B=DENSE.B * scale**-DENSE.beta,
        alpha=DENSE.alpha,
        beta=DENSE.beta,
        huber=0.0,
    )


def test_bartletts_test_is_that_of_scipy() -> None:
    generator = np.random.default_rng(3)
    groups = [generator.normal(0, sd, count) for sd, count in ((1.0, 5), (1.5, 9), (0.4, 6))]
    spreads = [Spread(float(np.std(group, ddof=1)), len(group) - 1) for group in groups]
    assert bartlett(spreads) == pytest.approx(stats.bartlett(*groups).pvalue)
    assert bartlett(spreads[:1]) is None
    assert bartlett([Spread(0.1 + 0.2, 3), Spread(0.3, 3), Spread(0.3, 7)]) == pytest.approx(1)


def test_each_scheme_has_its_own_noise_only_where_they_differ() -> None:
    schemes = {"dense": DENSE, "other": times_cheaper(2.0)}
    alike = measure_noise(sweep(schemes, sd=0.01, repeats=4))
    assert alike.of("other") == alike.of("dense") == alike.pooled
    runs = [
        replace(run, loss=run.loss + 0.1 * (-1) ** run.seed) if run.scheme == "other" else run
        for run in sweep(schemes, sd=0.01, repeats=4)
    ]
    noise = measure_noise(runs)
    assert noise.p is not None
    assert noise.p < 0.05
    of_other, of_dense = noise.of("other"), noise.of("dense")
    assert of_other is not None
    assert of_dense is not None
    assert of_other.sd > 5 * of_dense.sd
    assert noise.shift.sd == 0
    assert noise.of("one without repeated runs") == noise.pooled


def test_draws_have_the_spread_of_the_mean_of_their_seeds() -> None:
    runs = sweep({"dense": DENSE}, sd=0.01, repeats=40)
    noise = measure_noise(runs)
    drawn = draw_losses(runs, lambda cell: noise.of(cell.scheme), noise.shift, 4000)
    for cell, losses in drawn.items():
        expected = 0.01 / (40**0.5 if cell.budget == BUDGETS[1] else 1)
        assert np.std(losses) == pytest.approx(expected, rel=0.15)


def test_draws_of_a_cell_do_not_depend_on_the_other_runs() -> None:
    runs = sweep({"dense": DENSE, "other": times_cheaper(2.0)}, sd=0.01, shift=0.01)
    noise = measure_noise(runs)

    def draws(of: list[Run]) -> dict[Cell, Array]:
        return draw_losses(of, lambda cell: noise.of(cell.scheme), noise.shift, 50)

    drawn = draws(runs)
    part = [run for run in runs if run.scheme == "other" and run.budget != BUDGETS[0]]
    for cell, losses in draws(part).items():
        assert np.array_equal(losses, drawn[cell])
    first = [drawn[cell] - np.mean(drawn[cell]) for cell in list(drawn)[:2]]
    assert not np.allclose(*first)


@pytest.mark.parametrize(("adjusted", "verdict"), [(0.049, "better"), (0.051, "undecided")])
def test_a_verdict_does_not_depend_on_random_numbers(adjusted: float, verdict: str) -> None:
    """Three comparisons: Holm multiplies the smallest p by three."""
    schemes = {"dense": DENSE, "mod": DENSE, "third": DENSE, "fourth": DENSE}
    runs = sweep(schemes, sd=0.01, shift=0.02)
    pairs = [(BUDGETS[1], scheme) for scheme in ("mod", "third", "fourth")]
    before = family(analyse(runs, draws=10, fits=("parabola",)), pairs)
    error = (before[pairs[0]].interval[1] - before[pairs[0]].value) / stats.t.ppf(  # type: ignore[index]
        0.975, before[pairs[0]].freedom
    )
    aim = -error * stats.t.isf(adjusted / 3 / 2, before[pairs[0]].freedom)
    moved = {pair[1]: (aim if pair is pairs[0] else 0.0) - before[pair].value for pair in pairs}
    made = [replace(run, loss=run.loss + moved.get(run.scheme, 0.0)) for run in runs]
    for seed in range(20):
        judged = family(analyse(made, draws=50, seed=seed, fits=("parabola",)), pairs)
        assert judged[pairs[0]].p_adjusted == pytest.approx(adjusted, rel=1e-6)
        assert [judged[pair].verdict for pair in pairs] == [verdict, "undecided", "undecided"]


def bent_at(runs: list[Run], scheme: str, nats: float) -> list[Run]:
    """``runs`` with a kink: the middle size of ``scheme`` at the second budget is lower by ``nats``."""
    sizes = sorted({run.size for run in runs if (run.scheme, run.budget) == (scheme, BUDGETS[1])})
    is_bent = (run.budget == BUDGETS[1] and run.size == sizes[2] for run in runs)
    return [
        replace(run, loss=run.loss - nats) if bent and run.scheme == scheme else run
        for run, bent in zip(runs, is_bent, strict=True)
    ]


def test_scatter_takes_the_place_of_the_noise_where_parabolas_miss_the_curves() -> None:
    schemes = {"dense": DENSE, "mod": DENSE}
    runs = sweep(schemes, sd=0.002)
    fine, missed = (analyse(of, draws=200) for of in (runs, bent_at(runs, "mod", 0.2)))
    assert not fine.misfits[None, BUDGETS[1]].misfit
    misfit = missed.misfits[None, BUDGETS[1]]
    assert misfit.misfit
    assert misfit.p is not None
    assert misfit.p < 0.001
    assert missed.optimum("dense", BUDGETS[1]).spread == Spread(misfit.scatter, 4)
    assert missed.optimum("dense", BUDGETS[0]).spread == missed.noise.pooled
    minus = difference(missed, "mod", "dense", BUDGETS[1])
    assert minus is not None
    assert minus.freedom == misfit.degrees_of_freedom == 4


@pytest.mark.parametrize(("moved", "untold"), [(0.0, ""), (2.0, "misfit")])
def test_no_verdict_on_a_missed_curve_where_another_fit_disagrees(moved: float, untold: str) -> None:
    runs = bent_at(sweep({"dense": DENSE, "mod": DENSE}, sd=0.002), "mod", 0.2)
    isoflop = analyse(runs, draws=200, fits=("parabola", "akima"))
    optima = {
        key: replace(at, loss=(at.loss or 0.0) + moved)
        if (at.scheme, at.fit) == ("mod", "akima")
        else at
        for key, at in isoflop.optima.items()
    }
    (judged,) = family(replace(isoflop, optima=optima), [(BUDGETS[1], "mod")]).values()
    assert judged.untold == untold
    assert (judged.verdict is None) == bool(untold)
    assert judged.p_adjusted is not None


def test_noise_of_seeds_is_measured_apart_from_the_shift_they_share() -> None:
    schemes = {str(number): DENSE for number in range(20)}
    noise = measure_noise(sweep(schemes, sd=0.01, shift=0.05, repeats=12))
    assert noise.pooled is not None
    assert noise.pooled.sd == pytest.approx(0.01, rel=0.1)
    assert noise.shift.sd == pytest.approx(0.05, rel=0.5)
    assert noise.shift.freedom == 11
    assert noise.pooled.freedom == pytest.approx(11 * 99, abs=1)


@pytest.mark.parametrize("fit", FITS)
def test_optimum_without_noise_is_near_the_truth(fit: str) -> None:
    isoflop = analyse(sweep({"dense": DENSE}), draws=20)
    for flops in BUDGETS:
        size, loss = optimum(DENSE, flops)
        found = isoflop.optimum("dense", flops, fit)
        assert found.minimum == "interior"
        assert found.active_parameters == pytest.approx(size, rel=0.03)
        assert found.loss == pytest.approx(loss, abs=1e-3)
        assert found.train_tokens == pytest.approx(flops / 6 / size, rel=0.03)


@pytest.mark.parametrize(
    ("fit", "least", "most"),
    [
        ("parabola", 0.92, 0.98),
        pytest.param("akima", 0.92, 0.99, marks=pytest.mark.full),
    ],
)
def test_intervals_contain_the_truth_as_often_as_they_say(fit: str, least: float, most: float) -> None:
    hits = []
    sweeps = 400
    for number in range(sweeps):
        runs = sweep({"dense": DENSE}, sd=0.01, seed=number)
        isoflop = analyse(runs, draws=1000 if fit == "akima" else 100, fits=(fit,))
        for flops in BUDGETS:
            found = isoflop.optimum("dense", flops, fit)
            if found.loss_low is not None:
                hits.append(found.loss_low <= optimum(DENSE, flops)[1] <= found.loss_high)
    assert len(hits) > 0.95 * 3 * sweeps
    assert least <= np.mean(hits) <= most


def test_difference_is_paired_by_seed() -> None:
    schemes = {"dense": DENSE, "mod": times_cheaper(1.2)}
    isoflop = analyse(sweep(schemes, sd=0.003, shift=0.2))
    found = difference(isoflop, "mod", "dense", BUDGETS[1])
    alone = isoflop.optimum("mod", BUDGETS[1])
    assert found is not None
    truth = optimum(schemes["mod"], BUDGETS[1])[1] - optimum(DENSE, BUDGETS[1])[1]
    assert found.interval is not None
    assert verdict_of(found) == "better"
    assert found.interval[0] <= truth <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.1 * (alone.loss_high - alone.loss_low)


@pytest.mark.parametrize(
    ("sd", "margin", "verdict"), [(0.001, 0.01, "equivalent"), (0.02, 0.01, "undecided")]
)
def test_no_difference_is_claimed_only_by_an_equivalence_test(
    sd: float, margin: float, verdict: str
) -> None:
    isoflop = analyse(sweep({"dense": DENSE, "same": DENSE}, sd=sd, seed=4))
    found = difference(isoflop, "same", "dense", BUDGETS[1], margin=margin)
    assert found is not None
    assert verdict_of(found) == verdict


def test_a_difference_as_large_as_the_margin_is_rarely_called_equivalent() -> None:
    schemes = {"dense": DENSE, "other": replace(DENSE, E=DENSE.E + 0.01)}
    verdicts = []
    for number in range(200):
        isoflop = analyse(sweep(schemes, sd=0.006, seed=number), draws=100, fits=("parabola",))
        found = difference(isoflop, "other", "dense", BUDGETS[1], margin=0.01)
        assert found is not None
        verdicts.append(verdict_of(found))
    assert verdicts.count("equivalent") <= 0.05 * len(verdicts)


def test_speed_up_at_equal_loss_is_the_true_factor() -> None:
    schemes = {"dense": DENSE, "fast": times_cheaper(1.5), "slow": times_cheaper(0.7)}
    isoflop = analyse(sweep(schemes, sd=1e-4))
    fast = speed_up(isoflop, "fast", "dense", BUDGETS[1], "parabola")
    slow = speed_up(isoflop, "slow", "dense", BUDGETS[1], "parabola")
    assert fast is not None
    assert slow is not None
    assert (fast.bound, slow.bound) == ("", "")
    assert fast.factor == pytest.approx(1.5, rel=0.02)
    assert slow.factor == pytest.approx(0.7, rel=0.02)
    for found in (fast, slow):
        assert found.interval is not None
        assert found.interval[0] < found.factor < found.interval[1]


def test_speed_up_beyond_the_reference_budgets_is_only_a_bound() -> None:
    isoflop = analyse(sweep({"dense": DENSE, "fast": times_cheaper(1.5)}, sd=1e-4))
    last = speed_up(isoflop, "fast", "dense", BUDGETS[2], "parabola")
    assert last is not None
    assert (last.factor, last.bound, last.interval) == (1.0, "at least", (np.inf, np.inf))
    slow = analyse(sweep({"dense": DENSE, "slow": times_cheaper(0.7)}, sd=1e-4))
    first = speed_up(slow, "slow", "dense", BUDGETS[0], "parabola")
    assert first is not None
    assert (first.factor, first.bound, first.interval) == (1.0, "at most", (0.0, 0.0))


@pytest.mark.parametrize("fit", FITS)
def test_grid_off_its_centre_gives_no_number(fit: str) -> None:
    isoflop = analyse(sweep({"dense": DENSE}, sd=0.001, centre=5.0))
    for flops in BUDGETS:
        found = isoflop.optimum("dense", flops, fit)
        assert found.minimum == "edge-low"
        assert found.active_parameters is found.loss is found.loss_low is None
    assert difference(isoflop, "dense", "dense", BUDGETS[1]) is None
    assert speed_up(isoflop, "dense", "dense", BUDGETS[1], fit) is None


def test_surface_gives_no_number_where_the_curve_is_open_down() -> None:
    runs = sweep({"dense": DENSE}, sd=1e-4)
    bent = [
        replace(run, loss=run.loss - 2 * np.log(run.size / optimum(DENSE, run.budget)[0]) ** 2)
        for run in runs
        if run.budget != BUDGETS[1]
    ]
    isoflop = analyse([*bent, *(run for run in runs if run.budget == BUDGETS[1])], draws=20)
    for flops in (BUDGETS[0], BUDGETS[2]):
        found = isoflop.optimum("dense", flops, "surface")
        assert (found.minimum, found.loss, found.active_parameters) == ("open-down", None, None)


@pytest.mark.parametrize("fit", FITS)
def test_one_seed_gives_no_interval_and_says_so(fit: str) -> None:
    isoflop = analyse(sweep({"dense": DENSE, "mod": DENSE}, sd=0.001, repeats=1))
    for flops in BUDGETS:
        found = isoflop.optimum("dense", flops, fit)
        assert found.minimum == "interior"
        assert found.loss_low is found.active_parameters_low is None
        assert found.interval_missing_because
    minus = difference(isoflop, "mod", "dense", BUDGETS[1])
    assert minus is not None
    assert minus.p is minus.interval is None


def test_noise_as_large_as_the_curve_voids_the_interval() -> None:
    reasons = [
        found.interval_missing_because or ""
        for seed in range(10)
        for found in analyse(
            sweep({"dense": DENSE}, sd=0.5, seed=seed), draws=200, fits=("parabola",)
        ).optima.values()
    ]
    assert any("of the draws have an interior optimum" in because for because in reasons)


@pytest.mark.parametrize("sweeps", [100, pytest.param(400, marks=pytest.mark.full)])
def test_verdicts_against_dense_are_rarely_wrong_anywhere_on_the_page(sweeps: int) -> None:
    """Seven schemes without a difference, three budgets: 18 comparisons."""
    schemes = {"dense": DENSE, **{f"scheme {number}": DENSE for number in range(6)}}
    wrong = single = 0
    for number in range(sweeps):
        runs = sweep(schemes, sd=0.01, shift=0.02, seed=number)
        isoflop = analyse(runs, draws=100, fits=("parabola",))
        pairs = [(flops, scheme) for flops in BUDGETS for scheme in list(schemes)[1:]]
        judged = family(isoflop, pairs)
        assert len(judged) == 18
        wrong += any(found.verdict in ("better", "worse") for found in judged.values())
        single += any((found.p or 1.0) <= 0.05 for found in judged.values())
    assert single > 0.3 * sweeps  # without the adjustment
    assert wrong <= 0.05 * sweeps + 2 * (0.05 * 0.95 * sweeps) ** 0.5


def test_a_budget_that_losses_reach_is_interpolated_as_scipy_does() -> None:
    generator = np.random.default_rng(0)
    for count in (2, 3, 4, 6):
        budgets = np.cumsum(generator.exponential(size=count)) + 1
        losses = 5 - np.cumsum(generator.exponential(size=(50, count)) + 1e-3, axis=1)
        wanted = generator.uniform(losses[:, -1], losses[:, 0])
        expected = [
            np.exp(PchipInterpolator(row[::-1], np.log(budgets[::-1]))(loss))
            for row, loss in zip(losses, wanted, strict=True)
        ]
        assert _needed(budgets, losses, wanted) == pytest.approx(expected, rel=1e-12)


def test_a_budget_that_losses_do_not_reach_is_a_bound_or_unknown() -> None:
    budgets = np.array([1.0, 2.0, 4.0])
    losses = np.array(
        [[3.0, 2.0, 1.0]] * 4 + [[3.0, np.nan, 1.0], [3.0, np.nan, np.nan]] + [[1.0, 2.0, 3.0]]
    )
    wanted = np.array([0.5, 3.5, 2.0, np.nan, 2.0, 2.0, 2.0])
    expected = [np.inf, 0.0, 2.0, np.nan, 2.0, np.nan, np.nan]
    assert _needed(budgets, losses, wanted) == pytest.approx(expected, nan_ok=True)


def test_scatter_is_the_distance_from_the_parabola_scaled_to_one_run() -> None:
    sizes = np.array([1.0, 2.0, 4.0, 9.0, 16.0, 30.0]) * 1e5
    losses = np.array([3.2, 3.05, 3.0, 2.98, 3.06, 3.21])
    x = np.log(sizes)
    rest = losses - np.polyval(np.polyfit(x, losses, 2), x)
    found = scatter(sizes, losses, [1] * 6)
    assert found is not None
    assert found.freedom == 3
    assert found.sd == pytest.approx(np.sqrt(np.sum(rest**2) / 3))
    of_three = scatter(sizes, losses, [3] * 6)
    assert of_three is not None
    assert of_three.sd == pytest.approx(3**0.5 * found.sd)
    assert scatter(sizes[:3], losses[:3], [1] * 3) is None


def test_scatter_of_a_true_curve_shows_its_noise() -> None:
    schemes = {str(number): DENSE for number in range(40)}
    isoflop = analyse(sweep(schemes, sd=0.01, width=1.3), draws=20, fits=("parabola",))
    for flops in BUDGETS:  # the middle one has three seeds
        around = [at.around for at in isoflop.best() if at.budget == flops and at.around]
        assert np.mean([spread.sd**2 for spread in around]) ** 0.5 == pytest.approx(0.01, rel=0.2)
