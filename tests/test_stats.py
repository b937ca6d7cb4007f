"""Bootstrap intervals against scipy, plain loops and known distributions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as scipy_stats

from mlxroles.stats import Interval, bootstrap_mean_ci, nan_mean


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_agrees_with_scipy():
    values = rng(1).gamma(2.0, size=(30, 4))
    ours = bootstrap_mean_ci(values, rng(2), n_resamples=20_000)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, axis=0, method="percentile", n_resamples=20_000, rng=rng(3)
    ).confidence_interval
    width = theirs.high - theirs.low
    np.testing.assert_allclose(ours.low, theirs.low, atol=0.03 * width.max())
    np.testing.assert_allclose(ours.high, theirs.high, atol=0.03 * width.max())


def test_two_observations_in_closed_form():
    # The mean of a resample of {0, 1} is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_mean_ci([0.0, 1.0], rng(), level=0.95) == (0.0, 1.0)
    assert bootstrap_mean_ci([0.0, 1.0], rng(), level=0.4) == (0.5, 0.5)


def test_counts_are_resamples_written_out():
    values = rng(4).normal(size=7)
    found = bootstrap_mean_ci(values, rng(5), n_resamples=200, level=0.9)
    means = []
    for counts in rng(5).multinomial(7, np.full(7, 1 / 7), size=200):
        drawn = [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
        means.append(sum(drawn) / 7)
    np.testing.assert_allclose(found, np.quantile(means, [0.05, 0.95]), rtol=1e-12)


def test_same_generator_same_interval():
    values = rng(6).normal(size=(9, 3))
    first, second = (bootstrap_mean_ci(values, rng(7), n_resamples=100) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_shape_is_that_of_one_observation():
    found = bootstrap_mean_ci(rng().normal(size=(5, 2, 3)), rng(), n_resamples=50)
    assert isinstance(found, Interval)
    assert found.low.shape == found.high.shape == (2, 3)
    assert np.ndim(bootstrap_mean_ci(rng().normal(size=5), rng(), n_resamples=50).low) == 0


def test_columns_with_gaps_are_those_of_the_rest():
    values = rng(8).normal(size=(12, 3))
    values[4, 1] = values[7, 1] = np.nan
    found = bootstrap_mean_ci(values, rng(9), n_resamples=300)
    alone = bootstrap_mean_ci(np.delete(values[:, 1], [4, 7]), rng(9), n_resamples=300)
    np.testing.assert_array_equal((found.low[1], found.high[1]), alone)
    assert np.isfinite(found.low).all()


@pytest.mark.parametrize("column", [[1.0], [], [math.nan, 2.0], [math.nan] * 3, [1, math.inf, 2]])
def test_too_little_to_resample_has_no_interval(column):
    assert all(math.isnan(bound) for bound in bootstrap_mean_ci(column, rng()))


def test_many_columns_are_worked_on_in_blocks():
    values = rng(10).normal(size=(4, 5000))
    found = bootstrap_mean_ci(values, rng(11), n_resamples=40)
    last = bootstrap_mean_ci(values[:, -1], rng(11), n_resamples=40)
    np.testing.assert_allclose((found.low[-1], found.high[-1]), last, rtol=1e-12)


@given(
    hnp.arrays(np.float64, (5, 2), elements=st.floats(-1e6, 1e6)),
    st.floats(0.05, 0.99),
)
def test_interval_lies_inside_the_data(values, level):
    low, high = bootstrap_mean_ci(values, rng(), n_resamples=60, level=level)
    slack = 1e-9 * (1 + np.abs(values).max())
    assert (values.min(axis=0) - slack <= low).all()
    assert (low <= high).all()
    assert (high <= values.max(axis=0) + slack).all()


@given(st.floats(-1e6, 1e6), st.integers(2, 9))
def test_a_constant_column_is_exact(value, n):
    assert bootstrap_mean_ci([value] * n, rng(), n_resamples=20) == (value, value)


def test_wrong_options_are_refused():
    for options in ({"level": 0.0}, {"level": 1.0}, {"n_resamples": 0}):
        with pytest.raises(ValueError, match="must be inside"):
            bootstrap_mean_ci([1.0, 2.0], rng(), **options)
    with pytest.raises(ValueError, match="an axis"):
        bootstrap_mean_ci(3.0, rng())


def test_mean_leaves_out_what_is_missing():
    values = [[1.0, math.nan, math.nan], [3.0, 5.0, math.nan]]
    np.testing.assert_array_equal(nan_mean(values), [2.0, 5.0, math.nan])
    np.testing.assert_array_equal(nan_mean(np.transpose(values), axis=-1), [2.0, 5.0, math.nan])
    assert nan_mean([1.0, 2.0]) == 1.5
    assert math.isnan(nan_mean([]))
