"""Differences paired by seed, their adjusted verdicts, and how often these are wrong."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from modbench.analysis.curve import scatter
from modbench.analysis.difference import (
    Difference,
    compare,
    drawn_difference,
    holm,
    judge,
    line_at_zero,
    mean_difference,
    row_noise,
)
from modbench.analysis.noise import Spread

Rows = list[Mapping[int, float]]


def compared(row: Mapping[int, float], other: Mapping[int, float], rows: Rows) -> Difference:
    """``row`` minus ``other`` with the noise of ``rows``."""
    noise = row_noise({str(number): of for number, of in enumerate(rows)})
    spreads = tuple(noise.of(str(rows.index(of))) for of in (row, other))
    pooled = noise.pooled if noise.is_pooled else None
    found = compare(row, other, (spreads[0], spreads[1]), pooled)
    assert found is not None
    return found


def rows_of(means: Sequence[float], seeds: int, *, sd: float, shift: float, number: int) -> Rows:
    """Rows of losses by seed around ``means``, with a shift that the rows of a seed share."""
    generator = np.random.default_rng(number)
    shifts = generator.normal(0, shift, seeds)
    losses = np.array(means)[:, None] + shifts + generator.normal(0, sd, (len(means), seeds))
    return [dict(enumerate(map(float, row))) for row in losses]


def verdicts(differences: Sequence[Difference]) -> list[str | None]:
    return [difference.verdict for difference in judge(differences)]


def test_adjusted_p_values_are_those_of_holm() -> None:
    # By hand: 4 x 0.01, 3 x 0.015, 2 x 0.02 (not below the one before), 1 x 0.2.
    assert holm([0.02, 0.01, 0.2, 0.015]) == pytest.approx([0.045, 0.04, 0.2, 0.045])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_a_verdict_depends_on_the_number_of_comparisons() -> None:
    def tested(p: float) -> Difference:
        return Difference(value=-0.1, interval=(-0.2, -0.01), p=p, p_equivalent=1.0)

    assert verdicts([tested(0.02)]) == ["better"]
    assert verdicts([tested(0.02), tested(0.9), tested(0.9)]) == ["undecided"] * 3
    assert verdicts([tested(0.01), tested(0.02), tested(0.9)]) == ["better", "better", "undecided"]
    untested = Difference(value=-0.1)
    assert verdicts([tested(0.02), untested, untested]) == ["better", None, None]


def test_higher_is_better_where_the_metric_says_so() -> None:
    (judged,) = judge([Difference(value=0.1, interval=(0.05, 0.15), p=0.001)], "higher")
    assert (judged.verdict, judged.p_adjusted) == ("better", 0.001)
    assert judge([Difference(value=0.1, p=0.001)])[0].verdict == "worse"


def test_mean_difference_has_the_t_interval_of_its_cells() -> None:
    found = mean_difference([-0.03, -0.01, -0.02])
    assert found.value == pytest.approx(-0.02)
    assert found.interval == pytest.approx((-0.02 - 0.02484, -0.02 + 0.02484), abs=1e-5)
    assert found.p == pytest.approx(stats.ttest_1samp([-0.03, -0.01, -0.02], 0).pvalue)
    assert verdicts([found]) == ["undecided"]
    assert verdicts([mean_difference([-0.03, -0.01, -0.02, -0.02])]) == ["better"]
    assert verdicts([mean_difference([0.03, 0.01, 0.02, 0.02])]) == ["worse"]
    assert verdicts([mean_difference([0.002, -0.002, 0.001])]) == ["equivalent"]
    assert verdicts([mean_difference([0.002, -0.002, 0.001], margin=0.001)]) == ["undecided"]
    assert verdicts([mean_difference([0.002, -0.002, 0.001], margin=None)]) == ["undecided"]


def test_what_differs_by_rounding_only_is_not_tested() -> None:
    for cells in ([0.25, 0.25], [0.0, 0.0], [0.1 + 0.2, 0.3]):
        found = mean_difference(cells)
        assert (found.value, found.interval, found.p) == (pytest.approx(cells[0]), None, None)
        assert verdicts([found]) == [None]
    slope, at_zero = line_at_zero([-1.0, 0.0, 1.0], [0.1 + 0.2, 0.3, 0.3], [1, 1, 1]) or (None, None)
    assert slope == 0
    assert at_zero is not None
    assert (at_zero.value, at_zero.interval) == (pytest.approx(0.3), None)
    rows = [{seed: loss + seed / 7 for seed in range(4)} for loss in (3.0, 3.3)]  # equal but for a shift
    noise = row_noise({"a": rows[0], "b": rows[1]})
    assert noise.pooled is not None
    assert noise.pooled.sd == 0
    assert compared(rows[0], rows[1], rows).p is None
    assert scatter([1, 2, 4, 8, 16], [0.3, 0.1 + 0.2, 0.3, 0.3, 0.3], [1] * 5) == Spread(0.0, 2)


def test_noise_of_rows_with_unequal_seeds_is_that_of_a_linear_model() -> None:
    """The reference: ordinary least squares on dummies of rows and seeds."""
    generator = np.random.default_rng(3)
    shifts = generator.normal(0, 0.02, 60)
    rows = [
        {seed: 3 + number + float(shifts[seed] + generator.normal(0, 0.01)) for seed in range(*seeds)}
        for number, seeds in enumerate([(0, 60), (0, 60), (10, 40), (25, 55)])
    ]
    runs = [(number, seed, loss) for number, row in enumerate(rows) for seed, loss in row.items()]
    design = np.zeros((len(runs), 4 + 60))
    for at, (number, seed, _) in enumerate(runs):
        design[at, [number, 4 + seed]] = 1
    losses = np.array([loss for *_, loss in runs])
    rest = losses - design @ np.linalg.lstsq(design, losses, rcond=None)[0]
    freedom = len(runs) - np.linalg.matrix_rank(design)
    noise = row_noise({str(number): row for number, row in enumerate(rows)})
    assert noise.pooled is not None
    assert noise.pooled.freedom == freedom == 180 - 4 - 59
    assert noise.pooled.sd == pytest.approx(float(np.sqrt((rest**2).sum() / freedom)))
    within = sum(float(np.var([*row.values()]) * len(row)) for row in rows)
    assert noise.deviation == Spread(pytest.approx((within / 176) ** 0.5), 176)
    assert noise.shift.freedom == 59
    assert noise.shift.sd == pytest.approx(0.02, rel=0.3)
    assert f"{noise.deviation.sd:.4f}" in noise.in_words()
    assert f"{noise.pooled.sd:.4f}" in noise.in_words()


def test_rows_have_the_noise_of_all_rows_without_the_shift_of_a_seed() -> None:
    rows = rows_of([3.0] * 8, 3, sd=0.01, shift=0.1, number=1)
    pooled = row_noise({str(number): row for number, row in enumerate(rows)}).pooled
    assert pooled is not None
    assert pooled.freedom == 14
    assert pooled.sd == pytest.approx(0.01, rel=0.4)
    intervals = [compared(row, rows[0], rows).interval for row in rows[1:]]
    widths = [high - low for low, high in filter(None, intervals)]
    expected = 2 * stats.t.ppf(0.975, 14) * pooled.sd * (2 / 3) ** 0.5
    assert widths == pytest.approx([expected] * 7)


def test_rows_of_unequal_noise_have_the_interval_of_welch() -> None:
    generator = np.random.default_rng(0)
    losses = [generator.normal(3.0, 0.001, 8), generator.normal(3.0, 0.1, 8)]
    rows: Rows = [dict(enumerate(map(float, row))) for row in losses]
    found = compared(rows[0], rows[1], rows)
    expected = stats.ttest_ind(*losses, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.freedom == pytest.approx(expected.df)


def test_fewer_than_three_seeds_need_eight_degrees_of_freedom_for_a_verdict() -> None:
    def told(seeds: int, freedom: int) -> str | None:
        spread = Spread(0.001, freedom)
        rows = [dict.fromkeys(range(seeds), loss) for loss in (3.1, 3.0)]
        found = compare(rows[0], rows[1], (spread, spread), spread)
        assert found is not None
        assert found.interval is not None
        (judged,) = judge([found])
        assert judged.p_adjusted == found.p
        return judged.verdict

    assert told(2, 7) is None
    assert told(2, 8) == told(1, 8) == told(3, 2) == "worse"


def test_rows_without_known_noise_or_a_common_seed_are_not_tested() -> None:
    without = compare({0: 3.1}, {0: 3.0}, (None, None))
    assert without is not None
    assert (without.interval, without.p, judge([without])[0].verdict) == (None, None, None)
    assert compare({0: 3.1}, {1: 3.0}, (None, None)) is None
    assert row_noise({"a": {0: 3.1}, "b": {0: 3.0}}).pooled is None


def test_the_line_over_the_size_gives_the_difference_at_the_optimum() -> None:
    away, seeds = [-1.0, -0.5, 0.5, 1.0], [1, 3, 3, 1]
    found = line_at_zero(away, [-0.03 + 0.02 * x for x in away], seeds)
    assert found is not None
    assert found[0] == pytest.approx(0.02)
    assert found[1].value == pytest.approx(-0.03)
    noisy = line_at_zero(away, [-0.05, -0.04, -0.01, -0.02], seeds)
    x = np.array(away)
    design = np.stack([np.ones(4), x], axis=1) * np.array(seeds)[:, None] ** 0.5
    expected, *_ = np.linalg.lstsq(
        design, np.array([-0.05, -0.04, -0.01, -0.02]) * np.array(seeds) ** 0.5
    )
    assert noisy is not None
    assert (noisy[1].value, noisy[0]) == pytest.approx(tuple(expected))
    assert noisy[1].freedom == 2
    assert line_at_zero([0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1, 1, 1]) is None


def test_p_of_draws_counts_one_draw_more() -> None:
    draws = np.linspace(-0.01, 0.99, 1001)  # 11 of them at or below 0
    found = drawn_difference(0.5, draws, draws, margin=0.1)
    assert found.p == pytest.approx(2 * 12 / 1002)
    assert drawn_difference(5.0, draws + 4, draws + 4).p == pytest.approx(2 / 1002)
    near = drawn_difference(0.0, draws - 0.49, draws - 0.49, margin=0.5)
    assert near.p == pytest.approx(1.0, abs=0.01)
    assert near.p_equivalent == pytest.approx(2 / 1002)


@pytest.mark.parametrize("seeds", [3, 5])
def test_verdicts_are_rarely_wrong_where_one_row_is_much_noisier(seeds: int) -> None:
    wrong, suites = 0, 400
    for number in range(suites):
        rows = rows_of([3.0] * 6, seeds, sd=0.005, shift=0.0, number=number)
        rows += rows_of([3.0], seeds, sd=0.1, shift=0.0, number=suites + number)
        family = judge([compared(row, rows[0], rows) for row in rows[1:]])
        wrong += any(difference.verdict in ("better", "worse") for difference in family)
    assert wrong <= 0.05 * suites + 2 * (0.05 * 0.95 * suites) ** 0.5


@pytest.mark.parametrize(("seeds", "shift"), [(3, 0.05), (2, 0.0), (6, 0.05)])
def test_verdicts_against_dense_are_rarely_wrong_in_a_suite(seeds: int, shift: float) -> None:
    """Seven equal schemes; without the adjustment, a fifth of the suites would have a wrong verdict."""
    wrong, single, suites = 0, 0, 600
    for number in range(suites):
        rows = rows_of([3.0] * 7, seeds, sd=0.02, shift=shift, number=number)
        family = judge([compared(row, rows[0], rows) for row in rows[1:]])
        wrong += any(difference.verdict in ("better", "worse") for difference in family)
        single += any((difference.p or 1.0) <= 0.05 for difference in family)
    assert single > 0.12 * suites
    assert wrong <= 0.05 * suites + 2 * (0.05 * 0.95 * suites) ** 0.5


def test_intervals_of_single_comparisons_contain_the_truth() -> None:
    hits = []
    for number in range(600):
        rows = rows_of([3.0, 2.95, 3.1], 3, sd=0.02, shift=0.05, number=number)
        found = compared(rows[1], rows[0], rows)
        assert found.interval is not None
        hits.append(found.interval[0] <= -0.05 <= found.interval[1])
    assert 0.93 <= np.mean(hits) <= 0.97


def test_the_truly_best_row_is_nearly_always_inseparable_from_the_first() -> None:
    """Row 0 is the best by next to nothing; one row is far away."""
    lost, caught, suites = 0, 0, 600
    for number in range(suites):
        rows = rows_of([3.0, *[3.0 + 1e-9] * 5, 3.2], 3, sd=0.02, shift=0.05, number=number)
        first = min(rows, key=lambda row: sum(row.values()))
        others = [row for row in rows if row is not first]
        judged = judge([compared(row, first, rows) for row in others])
        worse = [id(row) for row, minus in zip(others, judged, strict=True) if minus.verdict == "worse"]
        lost += id(rows[0]) in worse
        caught += id(rows[6]) in worse
    assert lost <= 0.05 * suites
    assert caught == suites
