"""Resamples within categories against plain loops, numpy's quantiles and scipy's bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlxroles.stats import nan_mean, percentile_interval, resample_counts, weighted_means

LABELS = ["self", "neutral", "self", "neutral", "self", "neutral", "neutral"]
SELF, NEUTRAL = np.array([0, 2, 4]), np.array([1, 3, 5, 6])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def written_out(values, members, counts):
    """Each resample as the list of the values it drew, averaged without numpy's mean."""
    rows = []
    for row in counts:
        drawn = [values[i] for i in members for _ in range(int(row[i]))]
        known = [value for value in drawn if not np.isnan(value)]
        rows.append(sum(known) / len(known) if known else np.nan)
    return rows


def test_every_category_is_drawn_from_itself():
    counts = resample_counts(LABELS, rng(), n_resamples=500)
    assert counts.shape == (500, 7)
    assert (counts == counts.astype(int)).all()
    assert (counts >= 0).all()
    np.testing.assert_array_equal(counts[:, SELF].sum(axis=1), 3)
    np.testing.assert_array_equal(counts[:, NEUTRAL].sum(axis=1), 4)


def test_draws_are_multinomial_and_categories_independent():
    counts = resample_counts(LABELS, rng(1), n_resamples=40_000)
    covariance = np.cov(counts, rowvar=False)
    expected = np.zeros((7, 7))
    for members in (SELF, NEUTRAL):  # n of n with probability 1/n: cov = [i = j] - 1/n
        expected[np.ix_(members, members)] = np.eye(len(members)) - 1 / len(members)
    np.testing.assert_allclose(covariance, expected, atol=0.03)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.02)


def test_same_generator_same_resamples():
    first, second = (resample_counts(LABELS, rng(2), n_resamples=9) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    alone = resample_counts(["self"] * 3, rng(2), n_resamples=9)  # drawn first, as it comes first
    np.testing.assert_array_equal(first[:, SELF], alone)


def test_means_are_those_of_the_prompts_written_out():
    values = rng(3).normal(size=(7, 2, 3))
    counts = resample_counts(LABELS, rng(4), n_resamples=50)
    found = weighted_means(values, NEUTRAL, counts)
    assert found.shape == (50, 2, 3)
    for cell in np.ndindex(2, 3):
        expected = written_out(values[:, *cell], NEUTRAL, counts)
        np.testing.assert_allclose(found[:, *cell], expected, rtol=1e-12)


def test_gaps_are_left_out_of_their_own_column():
    values = rng(5).normal(size=(7, 5))
    values[3, 1] = values[1, 2] = values[5, 2] = values[6, 2] = np.nan
    values[:, 3] = np.nan
    counts = resample_counts(LABELS, rng(6), n_resamples=80)
    found = weighted_means(values, NEUTRAL, counts)
    for column in range(5):
        expected = written_out(values[:, column], NEUTRAL, counts)
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-12)
    assert np.isnan(found[:, 2]).any()
    assert np.isnan(found[:, 3]).all()
    assert np.isfinite(found[:, [0, 1, 4]]).all()


def test_infinite_value_spoils_its_column_alone():
    values = np.ones((7, 3))
    values[3, 1] = np.inf
    values[:4, 2] = [np.nan, np.nan, 0, -np.inf]
    found = weighted_means(values, NEUTRAL, resample_counts(LABELS, rng(), n_resamples=9))
    assert (found[:, 0] == 1).all()
    assert np.isnan(found[:, 1:]).all()


def test_one_of_each_gives_the_plain_means():
    values = rng(7).normal(size=(7, 4))
    values[4, 2] = np.nan
    found = weighted_means(values, SELF, np.ones((1, 7)))
    np.testing.assert_allclose(found[0], nan_mean(values[SELF]), rtol=1e-14)
    nobody = weighted_means(values, np.array([], dtype=int), np.ones((2, 7)))
    np.testing.assert_array_equal(nobody, np.full((2, 4), np.nan))


@given(st.floats(-1e300, 1e300), st.integers(0, 99))
def test_means_of_a_constant_are_exact(value, seed):
    counts = resample_counts(LABELS, rng(seed), n_resamples=20)
    values = np.full((7, 2), value)
    values[3, 1] = np.nan
    found = weighted_means(values, NEUTRAL, counts)
    assert (found[np.isfinite(found)] == value).all()
    assert np.isfinite(found[:, 0]).all()


def test_difference_of_two_models_uses_the_same_prompts():
    base = rng(8).normal(size=(7, 3))
    counts = resample_counts(LABELS, rng(9), n_resamples=200)
    shift = weighted_means(base + 0.5, SELF, counts) - weighted_means(base, SELF, counts)
    low, high = percentile_interval(shift)
    np.testing.assert_allclose(low, 0.5, rtol=1e-12)
    np.testing.assert_allclose(high, 0.5, rtol=1e-12)


def test_interval_of_a_ratio_agrees_with_scipy():
    focus, reference = rng(10).gamma(4, size=30), rng(11).gamma(6, size=25)
    counts = resample_counts(["f"] * 30 + ["r"] * 25, rng(12), n_resamples=20_000)
    values = np.concatenate([focus, reference])
    ratio = weighted_means(values, np.arange(30), counts)
    ratio = 1 - ratio / weighted_means(values, np.arange(30, 55), counts)
    theirs = scipy_stats.bootstrap(
        (focus, reference),
        lambda f, r, axis: 1 - f.mean(axis=axis) / r.mean(axis=axis),
        method="percentile",
        n_resamples=20_000,
        rng=rng(13),
    ).confidence_interval
    width = theirs.high - theirs.low
    np.testing.assert_allclose(percentile_interval(ratio), theirs, atol=0.03 * width)


@pytest.mark.parametrize("level", [0.95, 0.5, 0.01])
@pytest.mark.parametrize("n", [1, 2, 37, 100])
def test_quantiles_are_those_of_numpy(n, level):
    samples = rng(14).normal(size=(n, 600))
    low, high = percentile_interval(samples, level=level)
    expected = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    np.testing.assert_array_equal((low, high), expected)


def test_samples_that_are_not_finite_are_left_out():
    samples = rng(15).normal(size=(10, 2, 3))
    samples[:4, 0, 1] = np.nan
    samples[7:, 1, 1] = np.inf
    samples[2, 1, 2] = -np.inf
    samples[:6, 1, 0] = np.nan  # more than half
    expected = np.where(np.isfinite(samples), samples, np.nan)
    expected = np.nanquantile(expected, [0.025, 0.975], axis=0)
    expected[:, 1, 0] = np.nan
    np.testing.assert_allclose(percentile_interval(samples), expected, rtol=1e-14)


def test_one_column_has_plain_numbers_and_none_is_fine():
    assert percentile_interval([1.0, 3.0], level=0.5) == (1.5, 2.5)
    assert percentile_interval(np.zeros((5, 0))).low.shape == (0,)
    assert np.isnan(percentile_interval(np.zeros((0, 2))).high).all()


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="must be positive"):
        resample_counts(LABELS, rng(), n_resamples=0)
    with pytest.raises(ValueError, match="must be inside"):
        percentile_interval([1.0], level=1.0)
    with pytest.raises(ValueError, match="do not fit 7 prompts"):
        weighted_means(np.ones(7), SELF, np.ones((3, 6)))
