"""Tests of layers: they belong to the ratios, and what equal lengths make of them."""

import itertools
import math

import numpy as np
import pytest
import role_tables
from role_twins import SCALES, STUDY, build

from mlxroles.roles.contrast import Contrast
from mlxroles.roles.layer_tests import flags, relative
from mlxroles.roles.table import Reading

TESTS = ("rfc_test", "rsi_test")


@pytest.mark.parametrize("n", [100, 400])
@pytest.mark.parametrize("side", ["base", "instruct"])
def test_no_p_changes_when_all_entropies_of_one_model_are_a_quarter(side, n):
    """By enumeration (four prompts of a category) and by permutations (six)."""
    per_category = 4 if n == 100 else 6
    tables = role_tables.random_tables(5, layers=3, heads=3, per_category=per_category, effect=0.3)
    before = build(tables, n=n, heads=False)
    for name in ("entropy", "entropy_no_first"):
        getattr(tables[side], name)[:] *= np.float32(0.25)
    after = build(tables, n=n, heads=False)
    for scale, test in itertools.product(SCALES, TESTS):
        for one, other in (
            (before[scale]["difference"], after[scale]["difference"]),
            (before[scale]["models"][side], after[scale]["models"][side]),
        ):
            for name in ("p", "q", "p_same_length", "q_same_length", "significant"):
                assert one[test][name] == pytest.approx(other[test][name], nan_ok=True), name
            assert one[test]["diff"] == pytest.approx(other[test]["diff"])


def test_a_model_of_equal_shares_differs_in_nothing():
    tables = role_tables.random_tables(6, layers=2, heads=3, per_category=4, effect=0.5)
    instruct = tables["instruct"]
    instruct.entropy[:] = 3 * tables["base"].entropy.astype(np.float64)
    found = build({"base": tables["base"], "instruct": instruct}, heads=False)["raw"]
    assert found["difference"]["rfc"]["ratio_of_means"]["value"] == pytest.approx([0, 0], abs=1e-6)
    assert found["difference"]["rfc_test"]["diff"] == pytest.approx([0, 0], abs=1e-6)


def test_statistics_have_the_sign_of_their_metric():
    """Between two models too: 120 layers of both and their difference, in two metrics."""
    seen = 0
    for seed in range(20):
        tables = role_tables.random_tables(seed, layers=6, heads=2, per_category=3)
        rng = np.random.default_rng(seed)
        noise = np.exp(rng.normal(size=(12, 6, 1, 1))).astype(np.float32)
        tables["instruct"].entropy[:] *= noise
        raw = build(tables, n=20, n_resamples=2, heads=False)["raw"]
        for one in (*raw["models"].values(), raw["difference"]):
            for metric in ("rfc", "rsi"):
                value = np.sign(one[metric]["ratio_of_means"]["value"])
                np.testing.assert_array_equal(value, np.sign(one[f"{metric}_test"]["diff"]))
                seen += len(value)
    assert seen == 720


def test_relative_entropies_have_mean_one_where_there_is_a_mean():
    values = np.array([[1.0, 0.0, math.nan], [3.0, 0.0, math.nan], [8.0, 1.0, 2.0]])
    found = relative(values, np.array([0, 1]))
    np.testing.assert_array_equal(found[:, 0], [0.5, 1.5, 4.0])
    assert np.isnan(found[:, 1:]).all()


def simpson(sign, seed=0):
    """Focus prompts are short and reference prompts long, which alone makes RFC positive.

    Among prompts of equal length the focus has more entropy, ``sign`` 1, or less, -1.
    """
    rng = np.random.default_rng(seed)
    sizes = [4] * 24 + [8] * 6 + [4] * 6 + [8] * 24
    category = ["self_referent"] * 30 + ["neutral"] * 30
    patterns = [role_tables.rows_of(rng.normal(size=(3, 2, n, n))) for n in sizes]
    table = role_tables.entropies_of("model", patterns, category)
    for i, n in enumerate(sizes):
        own = n * 0.2 + 0.02 * rng.normal(size=(3, 2, 1))
        table.entropy[i, ..., :n] = own + (0.1 * sign if i < 30 else 0)
    return {"model": table}


@pytest.mark.parametrize(("sign", "holds"), [(1, False), (-1, True)])
def test_an_effect_that_turns_round_at_equal_length_does_not_hold_but_reverses(sign, holds):
    doc = build(simpson(sign), contrast=Contrast("self_referent", "neutral"), n=2000, heads=False)
    found = doc["raw"]["models"]["model"]
    test = found["rfc_test"]
    assert min(found["rfc"]["ratio_of_means"]["value"]) > 0
    assert max(test["q"]) < 0.05
    assert max(test["q_same_length"]) < 0.05
    assert (np.sign(test["diff"]) == 1).all()
    assert (np.sign(test["diff_same_length"]) == -sign).all()
    assert test["significant"] == [True] * 3
    assert test["holds_at_equal_length"] == [holds] * 3
    assert test["reverses_at_equal_length"] == [not holds] * 3
    assert (test["n_permutations"], test["exact"]) == (2000, False)
    assert test["n_permutations_same_length"] == 2000


def test_flags_of_every_case():
    nan = math.nan
    cases = [  # value, interval, q, q at equal length, difference there: the three flags
        (0.2, (0.1, 0.3), 0.01, 0.01, 0.1, (True, True, False)),
        (-0.2, (-0.3, -0.1), 0.01, 0.01, -0.1, (True, True, False)),
        (0.2, (0.1, 0.3), 0.01, 0.01, -0.1, (True, False, True)),
        (0.2, (0.1, 0.3), 0.01, 0.9, -0.1, (True, False, True)),
        (0.2, (0.1, 0.3), 0.01, 0.05, 0.1, (True, False, False)),
        (0.2, (0.1, 0.3), 0.05, 0.01, 0.1, (False, False, False)),
        (0.2, (-0.1, 0.3), 0.01, 0.01, -0.1, (False, False, False)),
        (0.2, (0.1, 0.3), nan, 0.01, -0.1, (False, False, False)),
        (0.2, (nan, nan), 0.01, 0.01, 0.1, (False, False, False)),
        (0.2, (0.1, 0.3), 0.01, nan, nan, (True, False, False)),
        (0.2, (0.1, 0.3), 0.01, 0.01, 0.0, (True, False, False)),
        (nan, (nan, nan), nan, nan, nan, (False, False, False)),
    ]
    value, ci, q, q_same, diff, expected = zip(*cases, strict=True)
    found = flags({"value": value, "ci": ci}, q, q_same, diff)
    names = ("significant", "holds_at_equal_length", "reverses_at_equal_length")
    assert list(found) == list(names)
    assert list(zip(*found.values(), strict=True)) == list(expected)


def test_a_layer_without_entropy_has_no_test():
    tables = role_tables.random_tables(2, layers=2, heads=2, per_category=4)
    tables["base"].entropy[:, 1] *= np.float32(0)
    raw = build(tables, heads=False, contrast=STUDY)["raw"]
    for one in (raw["models"]["base"], raw["difference"]):
        for test in TESTS:
            assert math.isnan(one[test]["p"][1])
            assert one[test]["significant"][1] is False
            assert not math.isnan(one[test]["p"][0])


def test_prompts_that_one_model_lacks_leave_the_difference_to_those_of_both():
    tables = role_tables.random_tables(8, layers=2, heads=3, per_category=4)
    tables["instruct"].entropy[0] = np.nan
    found = build(tables, heads=False)["raw"]["difference"]["rfc_test"]
    e2 = {name: table.per_layer(Reading()) for name, table in tables.items()}
    focus, reference = [1, 2, 3], list(range(8, 12))
    for layer in range(2):
        moved = 0.0
        for sign, values in ((1, e2["instruct"][:, layer]), (-1, e2["base"][:, layer])):
            apart = values[reference].mean() - values[focus].mean()
            moved += sign * apart / values[[*focus, *reference]].mean()
        assert found["diff"][layer] == pytest.approx(moved)
    assert (found["n_permutations"], found["exact"]) == (35, True)
