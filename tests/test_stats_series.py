"""Correlations along the layers against scipy, plain loops, closed forms and simulated trends."""

import csv
import dataclasses
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mlxroles.stats import Correlation, correlation


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pair(seed=0, n=14):
    x = rng(seed).normal(size=n)
    return x, 0.5 * x + rng(seed + 100).normal(size=n)


def autoregressive(seed, n=32, r=0.8):
    """A sequence whose neighbours correlate with r."""
    steps = rng(seed).normal(size=n + 50)
    for i in range(1, len(steps)):
        steps[i] += r * steps[i - 1]
    return steps[50:]


def t_test(r, df):
    return 2 * scipy_stats.t.sf(abs(r) * math.sqrt(df / (1 - r * r)), df)


def numbers(found):
    fields = dataclasses.asdict(found)
    del fields["n"]
    return [*fields.pop("leave_one_out"), *fields.values()]


def test_agrees_with_scipy():
    x, y = pair(1)
    found = correlation(x, y)
    pearson, spearman = scipy_stats.pearsonr(x, y), scipy_stats.spearmanr(x, y)
    assert found.n == 14
    assert (found.pearson_r, found.pearson_p) == pytest.approx(tuple(pearson), rel=1e-9)
    assert (found.spearman_r, found.spearman_p) == pytest.approx(tuple(spearman), rel=1e-9)
    assert all(isinstance(number, float) for number in numbers(found))


def test_four_pairs_are_enough():
    x, y = [1.0, 5, 3, 2], [1.0, 2, 4, 3]
    found = correlation(x, y)
    expected = scipy_stats.pearsonr(x, y)
    assert (found.pearson_r, found.pearson_p) == pytest.approx(tuple(expected), rel=1e-9)
    assert math.isnan(found.detrended_p)


def test_ranks_of_equal_values_agree_with_scipy():
    x, y = rng(2).integers(0, 4, size=20), rng(3).integers(0, 3, size=20)
    found = correlation(x, y)
    expected = scipy_stats.spearmanr(x, y)
    assert (found.spearman_r, found.spearman_p) == pytest.approx(tuple(expected), rel=1e-9)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_interval_without_autocorrelation_is_that_of_scipy(level):
    x, y = next(
        (x, y)
        for x, y in map(pair, range(50))
        if np.corrcoef(x[:-1], x[1:])[0, 1] * np.corrcoef(y[:-1], y[1:])[0, 1] < 0
    )
    found = correlation(x, y, level=level)
    assert found.n_eff == found.n
    assert found.n_eff_p == found.pearson_p
    expected = scipy_stats.pearsonr(x, y).confidence_interval(level)
    assert (found.pearson_low, found.pearson_high) == pytest.approx(tuple(expected), rel=1e-9)


def test_autocorrelation_takes_pairs_away():
    x, y = autoregressive(1), autoregressive(2)
    found = correlation(x, y)
    lags = [float(np.corrcoef(one[:-1], one[1:])[0, 1]) for one in (x, y)]
    n_eff = 32 * (1 - lags[0] * lags[1]) / (1 + lags[0] * lags[1])
    assert (found.lag1_x, found.lag1_y) == pytest.approx(tuple(lags), rel=1e-9)
    assert found.n_eff == pytest.approx(n_eff, rel=1e-9)
    assert found.n_eff_p == pytest.approx(t_test(found.pearson_r, n_eff - 2), rel=1e-9)
    half = scipy_stats.norm.ppf(0.975) / math.sqrt(n_eff - 3)
    expected = np.tanh(np.arctanh(found.pearson_r) + np.array([-half, half]))
    assert (found.pearson_low, found.pearson_high) == pytest.approx(tuple(expected), rel=1e-9)


def test_effective_number_stays_between_two_and_n():
    rising = np.arange(12.0)
    found = correlation(rising, rising + rng(3).normal(size=12) * 1e-3)
    assert (found.lag1_x, found.n_eff) == (pytest.approx(1), pytest.approx(2, abs=1e-3))
    assert math.isnan(found.pearson_low)
    swinging = np.tile([1.0, -1.0], 6)
    found = correlation(swinging, rising)  # lags -1 and 1
    assert found.n_eff == 12


def test_published_autocorrelation_of_llama(shared):
    table = shared / "data/self-referent-study/llama_detailed_comparison.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rfc, rsi = ([float(row[f"{name}_diff"]) for row in rows] for name in ("rfc", "rsi"))
    assert round(correlation(rfc, rsi).lag1_x, 2) == 0.38


@pytest.mark.parametrize("seed", range(4))
def test_shifts_are_those_written_out(seed):
    x, y = autoregressive(seed, n=17), autoregressive(seed + 50, n=17)
    found = correlation(x, y)
    every = [abs(np.corrcoef(x, [*y[k:], *y[:k]])[0, 1]) for k in range(17)]
    assert found.shift_p == sum(one >= every[0] - 1e-12 for one in every) / 17


def test_shifts_of_a_wave_in_closed_form():
    wave = np.cos(2 * np.pi * np.arange(16) / 16)  # r = cos(2 pi k / 16) after a shift by k
    assert correlation(wave, wave).shift_p == 2 / 16
    assert correlation(wave, np.roll(wave, 1)).shift_p == 6 / 16
    assert correlation(wave, np.roll(wave, 2)).shift_p == 10 / 16


def test_quadratic_trend_is_taken_away():
    depth = np.arange(20)
    x, y = pair(4, n=20)
    moved = correlation(x + 3 * depth - depth**2, y - 7 + depth**2 / 3)
    plain = correlation(x, y)
    left = [one - np.polyval(np.polyfit(depth, one, 2), depth) for one in (x, y)]
    expected = np.corrcoef(*left)[0, 1]
    assert plain.detrended_r == pytest.approx(expected, rel=1e-9)
    assert moved.detrended_r == pytest.approx(expected, rel=1e-6)
    assert moved.pearson_r < -0.99
    # Both residuals lost the two slopes: the partial correlation has n - 4 degrees of freedom.
    assert plain.detrended_p == pytest.approx(t_test(expected, 16), rel=1e-9)


def test_detrended_p_of_independent_noise_is_uniform():
    found = [correlation(*rng(seed).normal(size=(2, 9))).detrended_p for seed in range(600)]
    assert scipy_stats.kstest(found, "uniform").pvalue > 0.01


def test_nothing_is_left_of_a_quadratic():
    depth = np.arange(9.0)
    found = correlation(depth**2 / 7 + 0.1, rng(5).normal(size=9))
    assert math.isnan(found.detrended_r)
    assert math.isnan(found.detrended_p)
    assert not math.isnan(found.pearson_p)


def test_shared_drift_fools_the_plain_test_alone():
    found = [correlation(autoregressive(2 * s), autoregressive(2 * s + 1)) for s in range(300)]
    plain, effective, shifted = (
        np.mean([getattr(one, name) <= 0.05 for one in found])
        for name in ("pearson_p", "n_eff_p", "shift_p")
    )
    assert plain > 0.2
    assert effective < 0.1
    assert shifted < 0.1


def test_one_left_out_is_the_correlation_of_the_others():
    x, y = pair(6, n=8)
    x[7] = 40.0
    found = correlation(x, y)
    expected = [np.corrcoef(np.delete(x, i), np.delete(y, i))[0, 1] for i in range(8)]
    np.testing.assert_allclose(found.leave_one_out, expected, rtol=1e-9)
    lonely = correlation([0, 0, 0, 0, 1], [3, 1, 4, 1, 5]).leave_one_out
    assert [math.isnan(r) for r in lonely] == [False] * 4 + [True]


def test_pairs_with_gaps_are_left_out():
    x, y = pair(7, n=12)
    x[2], y[5] = np.nan, np.inf
    found = correlation(x, y)
    kept = np.delete(np.arange(12), [2, 5])
    alone = correlation(x[kept], y[kept])
    assert found.n == 10
    assert found.leave_one_out[2] == found.leave_one_out[5] == found.pearson_r
    np.testing.assert_array_equal(np.array(found.leave_one_out)[kept], alone.leave_one_out)
    left = [one - np.polyval(np.polyfit(kept, one, 2), kept) for one in (x[kept], y[kept])]
    assert found.detrended_r == pytest.approx(np.corrcoef(*left)[0, 1], rel=1e-9)
    assert found.detrended_r != pytest.approx(alone.detrended_r, rel=1e-9)
    assert (found.spearman_p, found.shift_p) == (alone.spearman_p, alone.shift_p)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2, 4], [1, 5, 3]),
        ([0.1] * 6, [1, 5, 3, 2, 4, 6]),
        ([1, 5, 3, 2, 4, 6], [1 + 1e-16, 1, 1, 1, 1, 1 + 2e-16]),
        ([1, 5, 3, math.nan], [1, 2, 4, 3]),
        ([], []),
    ],
    ids=["three", "constant", "rounding", "three left", "none"],
)
def test_too_little_is_nan(x, y):
    found = correlation(x, y)
    assert all(math.isnan(number) for number in numbers(found))
    assert len(found.leave_one_out) == len(x)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_line(sign):
    x = np.array([3.0, 1, 4, 1, 5, 9, 2, 6])
    found = correlation(x, sign * 2 * x + 1)
    assert (found.pearson_r, found.spearman_r) == pytest.approx((sign, sign))
    assert found.pearson_p == pytest.approx(0, abs=1e-12)
    assert (found.pearson_low, found.pearson_high) == pytest.approx((sign, sign))
    assert found.shift_p == 1 / 8


def test_result_cannot_be_changed_and_wrong_arguments_are_refused():
    found = correlation(*pair())
    assert isinstance(found, Correlation)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.n = 3
    with pytest.raises(ValueError, match="do not fit"):
        correlation([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="do not fit"):
        correlation([[1, 2]], [[1, 2]])
    with pytest.raises(ValueError, match="must be inside"):
        correlation([1, 2], [1, 2], level=95)
