"""RFC and RSI of every layer against plain loops, resamples and enumerations."""

import itertools
import json
import math

import numpy as np
import pytest
import role_tables
from role_twins import (
    SCALES,
    STUDY,
    Twin,
    build,
    counts_of,
    exact_p,
    exact_p_same_length,
    false_discovery,
    five_per_category,
    mean,
    roles_of,
    same_length_difference,
)

from mlxroles.roles import compare
from mlxroles.roles.metrics import FORMS
from mlxroles.roles.table import Reading


@pytest.fixture(scope="module")
def tables():
    return five_per_category()


@pytest.fixture(scope="module")
def doc(tables):
    return build(tables)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "reading",
    [Reading(), Reading("last"), Reading(keys="no-bos"), Reading("no-first", "no-bos")],
    ids=str,
)
def test_every_form_and_interval_is_a_plain_loop_over_resamples(tables, scale, reading):
    doc = build(tables, reading=reading)
    table = tables["base"]
    twins = {m: Twin(t, reading, scale == "normalised") for m, t in tables.items()}
    counts = counts_of(table)
    resamples = [roles_of(table), *(roles_of(table, drawn) for drawn in counts)]
    for metric, layer in itertools.product(("rfc", "rsi"), range(2)):
        base, instruct = (
            [twins[m].forms(metric, *drawn, layer) for drawn in resamples]
            for m in ("base", "instruct")
        )
        moved = [
            {form: b[form] - a[form] for form in FORMS} for a, b in zip(base, instruct, strict=True)
        ]
        models = doc[scale]["models"]
        for found, expected in (
            (models["base"][metric], base),
            (models["instruct"][metric], instruct),
            (doc[scale]["difference"][metric], moved),
        ):
            assert tuple(found) == FORMS
            for form in FORMS:
                value, *samples = [one[form] for one in expected]
                assert found[form]["value"][layer] == pytest.approx(value, rel=1e-9, abs=1e-12)
                bounds = np.quantile(samples, [0.025, 0.975])
                assert found[form]["ci"][layer] == pytest.approx(bounds, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_category_means_and_their_differences_are_plain_loops(tables, doc, scale):
    table = tables["base"]
    counts = counts_of(table)
    for model, layer in itertools.product(("base", "instruct"), range(2)):
        twin = Twin(tables[model], Reading(), scale == "normalised")
        found = doc[scale]["models"][model]
        assert list(found["category"]) == list(role_tables.CATEGORIES)
        means = {}
        for name in role_tables.CATEGORIES:
            members = table.members(name)
            drawn = [[i for i in members for _ in range(int(c[i]))] for c in counts]
            means[name] = [twin.layer_mean(prompts, layer) for prompts in (members, *drawn)]
            check(found["category"][name], layer, means[name])
        pairs = zip(means["neutral"], means["self_referent"], strict=True)
        others = zip(means["confounder"], means["self_referent"], strict=True)
        contrast = found["contrast"]
        check(contrast["reference_minus_focus"], layer, [r - f for r, f in pairs])
        check(contrast["confounder_minus_focus"], layer, [c - f for c, f in others])


def check(found, layer, expected):
    value, *samples = expected
    assert found["value"][layer] == pytest.approx(value, rel=1e-9, abs=1e-12)
    bounds = np.quantile(samples, [0.025, 0.975])
    assert found["ci"][layer] == pytest.approx(bounds, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_tests_of_layers_enumerate_all_arrangements(tables, doc, scale):
    table = tables["base"]
    twins = [Twin(tables[m], Reading(), scale == "normalised") for m in ("base", "instruct")]

    def relative(twin, i, layer, ruler):
        prompts = [k for name in ruler for k in table.members(name)]
        return twin.e2(i, layer) / mean([twin.e2(k, layer) for k in prompts])

    subjects = {
        "base": lambda *at: relative(twins[0], *at),
        "instruct": lambda *at: relative(twins[1], *at),
        "difference": lambda *at: relative(twins[1], *at) - relative(twins[0], *at),
    }
    for name, value in subjects.items():
        found = doc[scale]["difference"] if name == "difference" else doc[scale]["models"][name]
        for test, first, second, ruler in (
            ("rfc_test", STUDY.reference, STUDY.focus, (STUDY.focus, STUDY.reference)),
            ("rsi_test", STUDY.confounder, STUDY.focus, (STUDY.reference,)),
        ):
            p, matched = [], []
            for layer in range(2):
                groups = [
                    [(value(i, layer, ruler), table.length[i]) for i in table.members(c)]
                    for c in (first, second)
                ]
                plain = [[v for v, _ in group] for group in groups]
                p.append(exact_p(*plain))
                matched.append(exact_p_same_length(*groups))
                differ = mean(plain[0]) - mean(plain[1])
                assert found[test]["diff"][layer] == pytest.approx(differ)
                at_length = found[test]["diff_same_length"][layer]
                expected = same_length_difference(*groups)
                assert at_length == pytest.approx(expected, nan_ok=True)
            assert (found[test]["n_permutations"], found[test]["exact"]) == (252, True)
            assert found[test]["p"] == pytest.approx(p), (name, test)
            assert found[test]["q"] == pytest.approx(false_discovery(p))
            assert found[test]["p_same_length"] == pytest.approx(matched, nan_ok=True)
            if not any(map(math.isnan, matched)):
                assert found[test]["q_same_length"] == pytest.approx(false_discovery(matched))


# --- the original study -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared):
    """What the study's program made of made-up patterns, and how to read these."""
    folder = shared / "data" / "golden"

    def tables(n_heads):
        found = {}
        for side in ("base", "instruct"):
            with np.load(folder / f"attn_{side}.npz") as file:
                whole, length, category = (file[k] for k in ("pattern", "length", "category"))
            sized = [whole[:, i, :n_heads, :n, :n] for i, n in enumerate(length)]
            patterns = [pattern.astype(np.float64) for pattern in sized]
            found[side] = role_tables.entropies_of(side, patterns, category.tolist())
        return found

    return json.loads((folder / "expected.json").read_text(encoding="utf-8")), tables


def test_golden_patterns_have_the_studys_figures(golden):
    """To 1e-6: the study adds 1e-8 to every weight, the entropies here are exact."""
    expected_of, read = golden
    tables = read(32)
    doc = build(tables)
    for side, layer in itertools.product(tables, range(2)):
        expected = expected_of["visual_layer_level"][side][layer]
        found = doc["raw"]["models"][side]
        for name in role_tables.CATEGORIES:
            value = found["category"][name]["value"][layer]
            assert value == pytest.approx(expected["mean"][name], abs=1e-6)
        for metric in ("rfc", "rsi"):
            value = found[metric]["ratio_of_means"]["value"][layer]
            assert value == pytest.approx(expected[metric], abs=1e-6)
        value = doc["normalised"]["models"][side]["rfc"]["ratio_of_means"]["value"][layer]
        assert value == pytest.approx(expected["rfc_length_normalised"], abs=1e-6)
        for ours, theirs in (
            ("reference_minus_focus", "delta_neutral_minus_self"),
            ("confounder_minus_focus", "delta_conf_minus_self"),
        ):
            value = found["contrast"][ours]["value"][layer]
            assert value == pytest.approx(expected[theirs], abs=1e-6)


def test_golden_patterns_have_the_studys_comparison(golden):
    """Of the first 28 heads, as the study has it for every family."""
    expected_of, read = golden
    tables = read(28)
    found = compare.rows(build(tables), form="head_form")
    for row, expected in zip(found, expected_of["comparison_first28heads"], strict=True):
        for metric in ("rfc", "rsi"):
            assert row[f"{metric}_diff"] == pytest.approx(expected[f"{metric}_diff"], abs=1e-6)
            for side in tables:
                value = row[f"{metric}_{side}"]
                assert value == pytest.approx(expected[f"{metric}_mean_{side}"], abs=1e-6)
