"""Permutation tests against full enumeration, scipy and their rates on null data."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mlxroles.stats import (
    benjamini_hochberg,
    permutation_test,
    sign_flip_test,
    smallest_flip_p,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def groups(n_first, n_second):
    return np.arange(n_first + n_second) < n_first


def stratified_difference(values, first, strata):
    """Differences inside the strata, weighted by n1 n2 / (n1 + n2), one number at a time."""
    total = weight = 0.0
    for stratum in set(strata):
        one = [v for v, f, s in zip(values, first, strata, strict=True) if s == stratum and f]
        two = [v for v, f, s in zip(values, first, strata, strict=True) if s == stratum and not f]
        if one and two:
            share = len(one) * len(two) / (len(one) + len(two))
            total += share * (sum(one) / len(one) - sum(two) / len(two))
            weight += share
    return total / weight


def arrangements(first, strata):
    """Every way to hand out the labels with the same number of firsts in every stratum."""
    wanted = {s: sum(f for f, t in zip(first, strata, strict=True) if t == s) for s in set(strata)}
    for labels in itertools.product([True, False], repeat=len(first)):
        held = dict.fromkeys(wanted, 0)
        for label, stratum in zip(labels, strata, strict=True):
            held[stratum] += label
        if held == wanted:
            yield labels


def enumerated(values, first, strata):
    """T, p and p_max of every unit, from all arrangements written out."""
    observed = [stratified_difference(column, first, strata) for column in values.T]
    every = np.array(
        [
            [stratified_difference(column, labels, strata) for column in values.T]
            for labels in arrangements(first, strata)
        ]
    )
    p = (np.abs(every) >= np.abs(observed) - 1e-12).mean(axis=0)
    s = every.std(axis=0)  # their mean is 0
    np.testing.assert_allclose(every.mean(axis=0), 0, atol=1e-12)
    largest = (np.abs(every) / s).max(axis=1)
    p_max = (largest[:, None] >= np.abs(observed) / s - 1e-12).mean(axis=0)
    return observed, p, p_max, len(every)


@pytest.mark.parametrize(("n_first", "n_second"), [(4, 4), (2, 6), (1, 5)])
def test_few_prompts_are_enumerated(n_first, n_second):
    values = rng(n_first).normal(size=(n_first + n_second, 5)) * [1, 2, 3, 4, 100]
    values[:n_first, 2] += 9
    first = groups(n_first, n_second)
    found = permutation_test(values, first, rng())
    statistic, p, p_max, total = enumerated(values, first, [0] * len(first))
    assert found.exact
    assert found.n_permutations == total == math.comb(n_first + n_second, n_first)
    np.testing.assert_allclose(found.statistic, statistic, rtol=1e-12)
    np.testing.assert_allclose(
        found.statistic, values[first].mean(axis=0) - values[~first].mean(axis=0), rtol=1e-12
    )
    np.testing.assert_allclose(found.p, p, rtol=1e-12)
    np.testing.assert_allclose(found.p_max, p_max, rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_strata_are_enumerated(seed):
    values = rng(seed).normal(size=(10, 4))
    first = np.array([1, 0, 1, 0, 0, 1, 1, 0, 1, 1], dtype=bool)
    strata = np.array([7, 7, 5, 5, 5, 5, 6, 6, 7, 9])
    values *= strata[:, None] == [7, 5, 6, 0]  # units that vary in one stratum
    values[:, 3] = rng(seed + 10).normal(size=10)
    values += 3 * strata[:, None]
    found = permutation_test(values, first, rng(), strata=strata)
    statistic, p, p_max, total = enumerated(values, first, strata.tolist())
    assert found.exact
    assert found.n_permutations == total == 3 * 6 * 2
    np.testing.assert_allclose(found.statistic, statistic, rtol=1e-12)
    np.testing.assert_allclose(found.p, p, rtol=1e-12)
    np.testing.assert_allclose(found.p_max, p_max, rtol=1e-12)


@pytest.mark.parametrize("n", [5, 20])
def test_agrees_with_scipy(n):
    values = rng(2).normal(size=(2 * n, 3)) + np.outer(groups(n, n), [0, 0.3, 0.8])
    found = permutation_test(values, groups(n, n), rng(3), n_permutations=5000)
    theirs = scipy_stats.permutation_test(
        (values[:n], values[n:]),
        lambda a, b, axis: np.abs(a.mean(axis=axis) - b.mean(axis=axis)),
        alternative="greater",
        n_resamples=5000,
        rng=rng(4),
    )
    noise = 0 if n == 5 else 4 * np.sqrt(2 * theirs.pvalue * (1 - theirs.pvalue) / 5000)
    assert found.exact == (n == 5)
    assert (np.abs(found.p - theirs.pvalue) <= noise + 1e-12).all()


def test_sampled_p_is_near_the_exact_one():
    values = rng(5).normal(size=(15, 6)) + np.outer(groups(7, 8), np.linspace(0, 1, 6))
    exact = permutation_test(values, groups(7, 8), rng(), n_permutations=6435)
    sampled = permutation_test(values, groups(7, 8), rng(6), n_permutations=6434)
    assert (exact.exact, exact.n_permutations) == (True, 6435)
    assert (sampled.exact, sampled.n_permutations) == (False, 6434)
    np.testing.assert_allclose(sampled.statistic, exact.statistic, rtol=1e-12)
    for one, other in ((sampled.p, exact.p), (sampled.p_max, exact.p_max)):
        assert (np.abs(one - other) <= 4 * np.sqrt(other * (1 - other) / 6434) + 2e-4).all()


def test_sampled_p_counts_the_observed_arrangement():
    values = np.arange(60.0)
    found = permutation_test(values, groups(30, 30), rng(), n_permutations=199)
    assert found.p == found.p_max == 1 / 200
    assert found.statistic == -30
    assert np.ndim(found.p) == 0


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        ([(4, 4)], 100, 2 / 70),  # every arrangement has a mirror image of the same |T|
        ([(3, 5)], 100, 1 / 56),
        ([(2, 2), (1, 1)], 100, 2 / 12),
        ([(2, 2), (1, 2)], 100, 1 / 18),
        ([(4, 4)], 50, 1 / 51),
        ([(4, 0)], 50, math.nan),
    ],
)
def test_smallest_p_is_that_of_groups_far_apart(sizes, n, expected):
    first, strata = [], []
    for k, (ones, others) in enumerate(sizes):
        first += [True] * ones + [False] * others
        strata += [k] * (ones + others)
    values = np.array(first) * 10.0 + np.arange(len(first)) * 0.01
    found = permutation_test(values, first, rng(), n_permutations=n, strata=strata)
    assert found.smallest_p == pytest.approx(expected, nan_ok=True)
    if found.exact:
        assert found.p == pytest.approx(expected, nan_ok=True)
    else:
        assert found.p >= expected


def test_equal_statistics_count_whatever_the_rounding():
    values = np.array([0.1, 0.2, 0.3, 0.1, 0.3, 0.2, 0.3, 0.1]) + 1e3
    first = groups(4, 4)
    whole = [1, 2, 3, 1, 3, 2, 3, 1]  # the same as integers, compared exactly
    observed = abs(sum(whole[:4]) - sum(whole[4:]))
    sums = [
        abs(2 * sum(whole[i] for i in chosen) - sum(whole))
        for chosen in itertools.combinations(range(8), 4)
    ]
    expected = sum(one >= observed for one in sums) / 70
    assert permutation_test(values, first, rng()).p == expected


def test_what_does_not_vary_has_no_effect():
    values = np.full((12, 4), 0.1)
    values[:, 1] = rng(7).normal(size=12)
    values[:, 2] += np.where(groups(6, 6), 1e-17, -1e-17) * 0.1
    values[:, 3] = np.where(groups(6, 6), 1.0, 1.0 + 2e-16)  # rounding that follows the labels
    found = permutation_test(values, groups(6, 6), rng())
    alone = permutation_test(values[:, 1:2], groups(6, 6), rng())
    assert found.statistic[0] == 0
    np.testing.assert_array_equal(found.p[[0, 2, 3]], 1)
    assert np.isnan(found.p_max[[0, 2, 3]]).all()
    assert (found.p[1], found.p_max[1]) == (alone.p[0], alone.p_max[0])


def test_units_with_gaps_are_nan_and_change_nothing_else():
    values = rng(8).normal(size=(12, 4))
    values[3, 1], values[5, 2] = np.nan, np.inf
    found = permutation_test(values, groups(5, 7), rng(9), n_permutations=99)
    alone = permutation_test(values[:, [0, 3]], groups(5, 7), rng(9), n_permutations=99)
    for ours, theirs in zip(found[:3], alone[:3], strict=True):
        np.testing.assert_allclose(ours[[0, 3]], theirs, rtol=1e-12)
        assert np.isnan(ours[[1, 2]]).all()


@pytest.mark.parametrize(
    ("first", "strata"),
    [([True] * 4, None), ([False] * 4, None), ([True, True, False, False], [1, 1, 2, 2])],
)
def test_nothing_to_permute_is_nan(first, strata):
    found = permutation_test(rng().normal(size=(4, 2)), first, rng(), strata=strata)
    assert all(np.isnan(one).all() for one in found[:3])
    assert (found.n_permutations, found.exact) == (0, True)


def test_stratum_with_one_group_contributes_nothing():
    values = rng(10).normal(size=(12, 3))
    first = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1], dtype=bool)
    strata = np.array([1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3])
    found = permutation_test(values, first, rng(), strata=strata)
    alone = permutation_test(values[:8], first[:8], rng(), strata=strata[:8])
    for ours, theirs in zip(found, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_length_confound_is_found_without_strata_and_not_with_them():
    length = np.array([4, 5, 5, 6, 6, 6, 6, 7, 5, 6] * 3 + [6, 7, 7, 7, 6, 7, 8, 7, 6, 8] * 3)
    first = groups(30, 30)
    noise = rng(11).normal(size=(60, 1000))
    values = np.log(length)[:, None] * 5 + noise
    plain = permutation_test(values, first, rng(12), n_permutations=499)
    within = permutation_test(values, first, rng(13), n_permutations=499, strata=length)
    assert (plain.p <= 0.05).mean() > 0.7
    assert 0.03 < (within.p <= 0.05).mean() < 0.07
    exactly = permutation_test(np.log(length), first, rng(14), n_permutations=499, strata=length)
    assert exactly.p == 1


def test_an_effect_inside_the_strata_is_found():
    length = np.tile([5, 6, 7], 20)
    first = groups(30, 30)
    values = rng(15).normal(size=(60, 8)) + length[:, None]
    values[first, 3] += 2
    found = permutation_test(values, first, rng(16), n_permutations=999, strata=length)
    assert found.p[3] == found.p_max[3] == 1 / 1000
    assert (np.delete(found.p_max, 3) > 0.05).all()


def test_null_rates_are_those_promised():
    n_units, smallest, by_unit = 20, [], []
    for seed in range(300):
        shared = rng(seed).normal(size=(16, 1))  # units that go together, on unlike scales
        values = (shared + rng(seed + 1000).normal(size=(16, n_units))) * np.arange(1, 21)
        found = permutation_test(values, groups(8, 8), rng(seed), n_permutations=199)
        by_unit.append((found.p <= 0.05).mean())
        smallest.append(found.p_max.min() <= 0.05)
        assert (found.p_max >= found.p - 1e-12).all()
    assert 0.035 < np.mean(by_unit) < 0.065
    assert 0.02 < np.mean(smallest) < 0.09  # 15 of 300 expected, standard deviation 3.8


def test_shape_is_that_of_one_observation_and_blocks_do_not_matter():
    values = rng(17).normal(size=(9, 3, 100))
    found = permutation_test(values, groups(4, 5), rng(18), n_permutations=50)
    last = permutation_test(values[:, 2, 99], groups(4, 5), rng(18), n_permutations=50)
    assert found.p.shape == found.p_max.shape == found.statistic.shape == (3, 100)
    assert found.p[2, 99] == last.p
    assert permutation_test(np.zeros((4, 0)), groups(2, 2), rng()).p.shape == (0,)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        permutation_test(np.ones((4, 2)), [True, False], rng())
    with pytest.raises(ValueError, match="do not fit"):
        permutation_test(np.ones((2, 2)), [True, False], rng(), strata=[1])
    with pytest.raises(ValueError, match="must be positive"):
        permutation_test(np.ones((2, 2)), [True, False], rng(), n_permutations=0)


def test_false_discovery_rate_agrees_with_scipy():
    p = rng(19).uniform(size=(8, 16)) ** 3
    p[2, :4] = 0.01  # ties
    theirs = scipy_stats.false_discovery_control(p.ravel()).reshape(p.shape)
    np.testing.assert_allclose(benjamini_hochberg(p), theirs, rtol=1e-12)


def test_false_discovery_rate_of_a_textbook_table():
    # Benjamini & Hochberg (1995), section 3.2: of 15 tests the first four pass at .05.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    q = benjamini_hochberg(p[::-1])[::-1]
    assert (q <= 0.05).tolist() == [True] * 4 + [False] * 11
    np.testing.assert_allclose(q[:4], [0.0015, 0.003, 0.0095, 0.035625], rtol=1e-12)


def test_missing_p_values_do_not_count():
    q = benjamini_hochberg([[0.02, np.nan], [0.04, 0.9]])
    np.testing.assert_allclose(q, [[0.06, np.nan], [0.06, 0.9]], rtol=1e-12)
    assert np.isnan(benjamini_hochberg([np.nan, np.nan])).all()
    assert benjamini_hochberg([]).shape == (0,)


def flipped(column):
    """The p of one column from every pattern of signs, one sum at a time."""
    observed = abs(sum(column))
    patterns = list(itertools.product([1, -1], repeat=len(column)))
    sums = [abs(sum(s * v for s, v in zip(p, column, strict=True))) for p in patterns]
    return sum(one >= observed - 1e-12 for one in sums) / len(sums)


@pytest.mark.parametrize("prompts", [2, 3, 5, 8])
def test_all_patterns_of_signs_are_looked_at(prompts):
    values = rng(prompts).normal(np.array([[0, 0], [0.5, 1], [2, 9]]), size=(prompts, 3, 2))
    found = sign_flip_test(values, rng())
    assert found.shape == (3, 2)
    for unit in np.ndindex(found.shape):
        assert found[unit] == flipped(values[:, *unit].tolist())


@pytest.mark.parametrize("prompts", [2, 4, 5, 13])
def test_values_of_one_sign_have_the_smallest_p_of_flips(prompts):
    values = -rng(1).uniform(1, 2, prompts)
    assert sign_flip_test(values, rng()) == 2 / 2**prompts == smallest_flip_p(prompts)


def test_many_prompts_are_flipped_at_random_and_the_observed_pattern_counts():
    values = np.ones((30, 1)) * [1.0]
    assert sign_flip_test(values, rng(), n=199) == 1 / 200 == smallest_flip_p(30, 199)
    values = rng(2).normal(size=(12, 40)) + np.linspace(0, 1, 40)
    exact, sampled = sign_flip_test(values, rng()), sign_flip_test(values, rng(3), n=4000)
    assert (exact == sign_flip_test(values, rng(9))).all()
    assert (sampled != exact).any()
    assert (np.abs(sampled - exact) <= 4 * np.sqrt(exact * (1 - exact) / 4000) + 3e-4).all()


def test_missing_prompts_are_left_out_unit_by_unit():
    values = rng(4).normal(size=(6, 5)) + 1
    values[[0, 3], 1] = np.nan
    values[1:, 2] = np.nan
    values[2, 3] = np.inf
    values[:, 4] = 0
    found = sign_flip_test(values, rng())
    assert found[0] == flipped(values[:, 0].tolist())
    assert found[1] == flipped(values[[1, 2, 4, 5], 1].tolist())
    assert np.isnan(found[2:4]).all()
    assert found[4] == 1


def test_equal_sums_count_whatever_the_rounding_of_flips():
    assert sign_flip_test([0.1, 0.2, 0.3, 1e-17], rng()) == 4 / 16
    assert sign_flip_test(np.array([1, 1, -2, 3]) * 1e-30, rng()) == flipped([1, 1, -2, 3])


def test_flips_of_null_data_give_uniform_p():
    values = rng(5).standard_t(3, size=(9, 4000))
    p = sign_flip_test(values, rng())
    for level in (0.05, 0.25, 0.5, 0.9):
        assert (p <= level).mean() == pytest.approx(math.floor(256 * level) / 256, abs=0.03)
    many = sign_flip_test(rng(6).normal(size=(25, 3000)), rng(7), n=999)
    assert scipy_stats.kstest(many, "uniform").statistic < 0.06


def test_no_prompt_one_prompt_and_wrong_flips():
    assert math.isnan(sign_flip_test([3.0], rng()))
    assert math.isnan(smallest_flip_p(1))
    assert np.isnan(sign_flip_test(np.zeros((0, 2)), rng())).all()
    assert sign_flip_test(np.zeros((4, 0)), rng()).shape == (0,)
    with pytest.raises(ValueError, match="expected prompts"):
        sign_flip_test(3.0, rng())
    with pytest.raises(ValueError, match="n 0"):
        sign_flip_test([1.0, 2.0], rng(), n=0)
