"""Effect sizes against plain loops, published figures, scipy and simulated coverage."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as scipy_stats

from mlxroles.stats import (
    binomial_fold_mean,
    cliffs_delta,
    cohens_d,
    cohens_d_interval,
    resample_counts,
)

Z = scipy_stats.norm.ppf(0.975)
TREATMENT = np.array([10.0, 10, 20, 20, 20, 30, 30, 30, 40, 50])
CONTROL = np.array([10.0, 20, 30, 40, 40, 50])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain_d(first, second, *, sample=True):
    variance = statistics.variance if sample else statistics.pvariance
    spread = math.sqrt((variance(first) + variance(second)) / 2)
    return (statistics.fmean(first) - statistics.fmean(second)) / spread if spread else 0.0


def plain_delta(first, second):
    """Value and bounds from the dominance matrix, entry by entry."""
    n, m = len(first), len(second)
    signs = [[(a > b) - (a < b) for b in second] for a in first]
    d = sum(map(sum, signs)) / (n * m)
    rows = sum((sum(row) / m - d) ** 2 for row in signs) / (n - 1)
    columns = sum((sum(column) / n - d) ** 2 for column in zip(*signs, strict=True)) / (m - 1)
    entries = sum((x - d) ** 2 for row in signs for x in row) / ((n - 1) * (m - 1))
    variance = ((m - 1) * rows + (n - 1) * columns + entries) / (n * m)
    if abs(d) == 1:
        bound = (min(n, m) - Z**2) / (min(n, m) + Z**2)
        return (d, *sorted([d, d * bound]))
    half = Z * math.sqrt(variance) * math.sqrt((1 - d**2) ** 2 + Z**2 * variance)
    scale = 1 - d**2 + Z**2 * variance
    return d, (d - d**3 - half) / scale, (d - d**3 + half) / scale


@pytest.mark.parametrize("ddof", [0, 1])
def test_d_is_that_of_every_cell_by_itself(ddof):
    first, second = rng(1).normal(size=(5, 2, 3)), rng(2).normal(1, 2, size=(9, 2, 3))
    found = cohens_d(first, second, ddof=ddof)
    assert found.shape == (2, 3)
    for cell in np.ndindex(2, 3):
        expected = plain_d(first[:, *cell], second[:, *cell], sample=ddof == 1)
        assert found[cell] == pytest.approx(expected, rel=1e-12)


def test_d_where_nothing_varies_is_zero():
    first, second = np.full((30, 3), 0.1), np.full((30, 3), 0.1)
    second[:, 1] = 0.7
    second[:, 2] = 0.1 + 1e-17
    np.testing.assert_array_equal(cohens_d(first, second), 0)
    np.testing.assert_array_equal(cohens_d(first, second, ddof=0), 0)


def test_d_leaves_gaps_out():
    first, second = rng(3).normal(size=(6, 5)), rng(4).normal(size=(6, 5))
    first[2, 1] = second[4, 1] = np.nan
    first[:, 2] = np.nan
    first[1:, 3] = np.nan
    second[0, 4] = np.inf
    found = cohens_d(first, second)
    assert found[0] == pytest.approx(plain_d(first[:, 0], second[:, 0]), rel=1e-12)
    expected = plain_d(np.delete(first[:, 1], 2), np.delete(second[:, 1], 4))
    assert found[1] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(found[2:]).all()
    assert cohens_d([1.0], [2.0], ddof=0) == 0
    assert np.isnan(cohens_d(np.zeros((0, 2)), np.ones((3, 2)))).all()


def test_d_of_the_prompts_themselves_is_the_point_value():
    values = rng(5).normal(size=(11, 4)) * [1, 10, 1e-6, 1] + [0, 1e3, 1, 5]
    values[3, 3] = np.nan
    first, second = np.array([0, 2, 3, 7, 8]), np.array([1, 4, 5, 6, 9, 10])
    found = cohens_d_interval(values, first, second, np.ones((1, 11)))
    expected = cohens_d(values[first], values[second])
    np.testing.assert_allclose(found.low, expected, rtol=1e-9)
    np.testing.assert_array_equal(found.low, found.high)


def test_interval_of_d_is_that_of_resamples_written_out():
    labels = ["a"] * 4 + ["b"] * 5
    values = rng(6).normal(3, 1, size=(9, 130))
    values[:, 64] = [0.7, 0.1, 0.1, 0.1, 0.9, 0.3, 0.3, 0.3, 0.3]  # often nothing varies
    counts = resample_counts(labels, rng(7), n_resamples=150)
    found = cohens_d_interval(values, np.arange(4), np.arange(4, 9), counts, level=0.96)
    for column in (0, 63, 64, 129):
        drawn = []
        for row in counts.astype(int):
            sample = np.repeat(values[:, column], row)
            if len(set(sample[:4])) > 1 or len(set(sample[4:])) > 1:
                drawn.append(plain_d(sample[:4], sample[4:]))
        expected = np.quantile(drawn, [0.02, 0.98])
        np.testing.assert_allclose((found.low[column], found.high[column]), expected, rtol=1e-9)


def test_interval_of_d_leaves_gaps_out_and_is_nan_where_nothing_varies():
    values = rng(8).normal(size=(12, 5))
    values[2, 1] = values[9, 1] = np.nan
    values[:, 2] = np.nan
    values[:, 3] = 0.1
    values[5, 4] = np.inf
    counts = resample_counts(["a"] * 6 + ["b"] * 6, rng(9), n_resamples=400)
    found = cohens_d_interval(values, np.arange(6), np.arange(6, 12), counts)
    drawn = []
    for row in counts.astype(int):
        sides = np.repeat(values[:6, 1], row[:6]), np.repeat(values[6:, 1], row[6:])
        one, other = (side[~np.isnan(side)] for side in sides)
        if min(len(one), len(other)) > 1:
            drawn.append(plain_d(one, other))
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose((found.low[1], found.high[1]), expected, rtol=1e-9)
    assert np.isnan(np.stack(found)[:, 2:]).all()


def test_interval_of_d_agrees_with_scipy():
    first, second = rng(10).normal(0.8, 1, size=30), rng(11).normal(0, 1.5, size=30)
    counts = resample_counts(["a"] * 30 + ["b"] * 30, rng(12))
    both = np.concatenate([first, second])
    found = cohens_d_interval(both, np.arange(30), np.arange(30, 60), counts)

    def d(a, b, axis):
        spread = np.sqrt((a.var(axis=axis, ddof=1) + b.var(axis=axis, ddof=1)) / 2)
        return (a.mean(axis=axis) - b.mean(axis=axis)) / spread

    theirs = scipy_stats.bootstrap(
        (first, second), d, method="percentile", n_resamples=10_000, rng=rng(13)
    ).confidence_interval
    np.testing.assert_allclose(found, theirs, atol=0.03 * (theirs.high - theirs.low))


def test_delta_is_that_of_every_cell_by_itself():
    first = rng(14).integers(0, 6, size=(7, 2, 90)).astype(float)
    second = rng(15).integers(1, 8, size=(5, 2, 90)).astype(float)
    found = np.stack(cliffs_delta(first, second))
    assert found.shape == (3, 2, 90)
    for cell in np.ndindex(2, 90):
        expected = plain_delta(first[:, *cell].tolist(), second[:, *cell].tolist())
        np.testing.assert_allclose(found[:, *cell], expected, rtol=1e-9, atol=1e-12)


def test_delta_is_the_mann_whitney_statistic():
    first, second = rng(16).normal(size=(12, 4)), rng(17).normal(size=(20, 4))
    u = scipy_stats.mannwhitneyu(first, second, axis=0).statistic
    np.testing.assert_allclose(cliffs_delta(first, second).value, 2 * u / 240 - 1, rtol=1e-12)


def test_delta_of_a_published_example():
    # Cliff (1996) by way of the R package effsize: delta and the three terms of its variance.
    variance = (5 * 0.2669753 + 9 * 0.447 + 1.0055556) / 60
    half = Z * math.sqrt(variance * ((1 - 0.25**2) ** 2 + Z**2 * variance))
    centre, scale = -0.25 + 0.25**3, 1 - 0.25**2 + Z**2 * variance
    found = cliffs_delta(TREATMENT, CONTROL)
    expected = (-0.25, (centre - half) / scale, (centre + half) / scale)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 8, 30])
def test_bounds_of_groups_that_do_not_overlap(n):
    low = np.arange(n, dtype=float)
    found = cliffs_delta(low + 100, np.arange(40.0))
    bound = float(found.low)
    assert (found.value, found.high) == (1, 1)
    # Where delta = 1 lies z standard errors away at the largest variance, (1 - delta²) / n.
    assert 1 - bound == pytest.approx(Z * math.sqrt((1 - bound**2) / n), rel=1e-9)
    mirrored = cliffs_delta(np.arange(40.0), low + 100)
    np.testing.assert_allclose(mirrored, (-1, -1, -bound), rtol=1e-12)


def test_delta_leaves_gaps_out():
    first, second = rng(18).normal(size=(6, 5)), rng(19).normal(size=(7, 5))
    first[0, 1] = second[3, 1] = np.nan
    first[:, 2] = np.nan
    first[1:, 3] = np.nan
    second[:, 4] = first[:, 4] = 0.5
    found = np.stack(cliffs_delta(first, second))
    expected = plain_delta(first[1:, 1].tolist(), np.delete(second[:, 1], 3).tolist())
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-12)
    assert np.isnan(found[:, 2]).all()
    assert np.isfinite(found[0, 3])
    assert np.isnan(found[1:, 3]).all()
    assert np.isnan(np.stack(cliffs_delta(second[:, 3], first[:, 3]))).tolist() == [
        False,
        True,
        True,
    ]
    np.testing.assert_array_equal(found[:, 4], 0)


@pytest.mark.parametrize(("shift", "n"), [(0.0, 10), (1.0, 10), (2.0, 30)])
def test_interval_of_delta_covers_the_truth(shift, n):
    first, second = rng(20).normal(shift, 1, size=(n, 4000)), rng(21).normal(size=(n, 4000))
    truth = 2 * scipy_stats.norm.cdf(shift / math.sqrt(2)) - 1
    found = cliffs_delta(first, second)
    assert 0.935 < ((found.low <= truth) & (truth <= found.high)).mean() < 0.985


@given(
    hnp.arrays(np.float64, (4, 2), elements=st.integers(0, 3)),
    hnp.arrays(np.float64, (3, 2), elements=st.integers(0, 3)),
)
def test_delta_is_antisymmetric_and_inside_its_bounds(first, second):
    found, mirrored = cliffs_delta(first, second), cliffs_delta(second, first)
    np.testing.assert_allclose(found.value, -mirrored.value, atol=1e-12)
    np.testing.assert_allclose(found.low, -mirrored.high, atol=1e-12)
    assert (found.low >= -1).all()
    assert (found.low <= found.value + 1e-12).all()
    assert (found.value <= found.high + 1e-12).all()
    assert (found.high <= 1).all()


def test_groups_that_do_not_fit_are_refused():
    for function in (cohens_d, cliffs_delta):
        with pytest.raises(ValueError, match="do not fit together"):
            function(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="must be inside"):
        cliffs_delta([1.0, 2.0], [1.0, 2.0], level=1.0)


@pytest.mark.parametrize("n", range(1, 11))
def test_chance_consistency_is_the_mean_over_all_coins(n):
    shares = [sum(coins) / n for coins in itertools.product([0, 1], repeat=n)]
    mean = sum(k if k > 0.5 else 1 - k for k in shares) / 2**n  # the study's rule
    assert binomial_fold_mean(n) == pytest.approx(mean, rel=1e-12)


def test_chance_consistency_of_thirty_prompts_is_the_published_one():
    assert round(binomial_fold_mean(30), 4) == 0.5722
    k = np.arange(31)
    expected = (scipy_stats.binom.pmf(k, 30, 0.5) * np.maximum(k, 30 - k) / 30).sum()
    assert binomial_fold_mean(30) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="must be positive"):
        binomial_fold_mean(0)
