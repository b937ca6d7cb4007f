"""RFC and RSI against plain loops and published figures; contrasts; uniform attention."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import role_tables

from mlxroles.errors import SpecError
from mlxroles.roles import metrics, null
from mlxroles.roles.contrast import Contrast, contrast_of
from mlxroles.roles.metrics import Means
from mlxroles.roles.table import KEYS, QUERIES, Reading

STUDY = Contrast("self_referent", "neutral", "confounder")
ABC = Contrast("a", "b", "c")


def means_of(layer, heads, pooled):
    """One resample: numbers per category a, b, c and head."""
    names = ABC.names
    return Means(
        {name: np.array([layer[name]]) for name in names},
        {name: np.array([heads[name]]) for name in names},
        {name: np.array([pooled[name]]) for name in names},
    )


def random_means(seed, n_heads):
    rng = np.random.default_rng(seed)
    layer, heads, pooled = rng.uniform(0.1, 2.0, size=(3, 3, n_heads))
    return (
        dict(zip(ABC.names, layer[:, 0].tolist(), strict=True)),
        dict(zip(ABC.names, heads.tolist(), strict=True)),
        dict(zip(ABC.names, pooled.tolist(), strict=True)),
    )


@pytest.mark.parametrize("n_heads", [1, 4, 7])
def test_every_form_is_its_formula(n_heads):
    layer, heads, pooled = random_means(n_heads, n_heads)
    found = metrics.forms(means_of(layer, heads, pooled), ABC)
    ratios = [1 - heads["a"][h] / heads["b"][h] for h in range(n_heads)]
    spans = [(heads["c"][h] - heads["a"][h]) / heads["b"][h] for h in range(n_heads)]
    pooled_ratios = [1 - pooled["a"][h] / pooled["b"][h] for h in range(n_heads)]
    pooled_spans = [(pooled["c"][h] - pooled["a"][h]) / pooled["b"][h] for h in range(n_heads)]
    expected = {
        "rfc": {
            "ratio_of_means": 1 - layer["a"] / layer["b"],
            "head_form": sum(pooled_ratios) / n_heads,
            "mean_of_ratios": sum(ratios) / n_heads,
            "median_of_ratios": middle(ratios),
            "log_ratio": math.log(layer["b"] / layer["a"]),
        },
        "rsi": {
            "ratio_of_means": (layer["c"] - layer["a"]) / layer["b"],
            "head_form": sum(pooled_spans) / n_heads,
            "mean_of_ratios": sum(spans) / n_heads,
            "median_of_ratios": middle(spans),
            "log_ratio": math.log(layer["c"] / layer["a"]),
        },
    }
    assert list(found) == ["rfc", "rsi"]
    for metric, by_form in expected.items():
        assert tuple(found[metric]) == metrics.FORMS
        for form, value in by_form.items():
            assert found[metric][form].shape == (1,)
            assert found[metric][form][0] == pytest.approx(value, rel=1e-12), (metric, form)


def middle(values):
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def test_a_head_without_reference_entropy_counts_zero_in_the_study_form_and_nothing_elsewhere():
    heads = {"a": [0.5, 0.3, 0.2], "b": [0.0, 0.6, 0.8], "c": [0.9, 0.9, 0.4]}
    layer = {"a": 0.3, "b": 0.5, "c": 0.7}
    found = metrics.forms(means_of(layer, heads, heads), ABC)
    assert found["rfc"]["head_form"][0] == pytest.approx((0 + 0.5 + 0.75) / 3)
    assert found["rfc"]["mean_of_ratios"][0] == pytest.approx((0.5 + 0.75) / 2)
    assert found["rfc"]["median_of_ratios"][0] == pytest.approx((0.5 + 0.75) / 2)
    assert found["rsi"]["head_form"][0] == pytest.approx((0 + 1.0 + 0.25) / 3)
    assert found["rsi"]["median_of_ratios"][0] == pytest.approx((1.0 + 0.25) / 2)


def test_heads_that_are_not_there_are_left_out():
    nan = math.nan
    heads = {"a": [0.5, nan, 0.2, 0.3], "b": [1.0, nan, 0.8, 0.4], "c": [0.9, nan, 0.4, 0.1]}
    layer = {"a": 0.3, "b": 0.5, "c": 0.7}
    found = metrics.forms(means_of(layer, heads, heads), ABC)["rfc"]
    assert found["head_form"][0] == pytest.approx((0.5 + 0.75 + 0.25) / 3)
    assert found["mean_of_ratios"][0] == pytest.approx((0.5 + 0.75 + 0.25) / 3)
    assert found["median_of_ratios"][0] == pytest.approx(0.5)


def test_no_reference_entropy_at_all_is_no_number():
    heads = {"a": [0.5], "b": [0.0], "c": [0.9]}
    found = metrics.forms(means_of({"a": 0.5, "b": 0.0, "c": 0.9}, heads, heads), ABC)
    for metric, form in itertools.product(("rfc", "rsi"), metrics.FORMS):
        defined = form == "head_form" or (metric, form) == ("rsi", "log_ratio")
        assert np.isnan(found[metric][form][0]) != defined, (metric, form)
    assert found["rsi"]["log_ratio"][0] == pytest.approx(math.log(0.9 / 0.5))


def test_no_focus_entropy_has_no_logarithm():
    heads = {"a": [0.0], "b": [0.5], "c": [0.9]}
    found = metrics.forms(means_of({"a": 0.0, "b": 0.5, "c": 0.9}, heads, heads), ABC)
    assert found["rfc"]["ratio_of_means"][0] == 1.0
    assert np.isnan(found["rfc"]["log_ratio"][0])
    assert np.isnan(found["rsi"]["log_ratio"][0])


def test_without_a_confounder_there_is_no_rsi():
    layer, heads, pooled = random_means(0, 3)
    found = metrics.forms(means_of(layer, heads, pooled), Contrast("a", "b"))
    assert list(found) == ["rfc"]
    assert metrics.difference_of_means(layer, Contrast("a", "b"))["confounder_minus_focus"] is None


@pytest.mark.parametrize("seed", range(5))
def test_median_over_heads_is_numpys(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(40, 6))
    values[rng.random(values.shape) < 0.3 * seed / 4] = np.nan
    values[0] = np.nan
    for row, median in zip(values, metrics.head_median(values), strict=True):
        kept = [float(one) for one in row if not math.isnan(one)]
        np.testing.assert_allclose(median, middle(kept) if kept else math.nan)


# --- contrasts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("categories", "text", "expected"),
    [
        (role_tables.CATEGORIES, None, STUDY),
        (("neutral", "self_referent"), None, Contrast("self_referent", "neutral")),
        (("x", "y"), None, Contrast("x", "y")),
        (("x", "y", "z", "w"), None, Contrast("x", "w", "y")),
        (("neutral", "x", "y"), None, Contrast("neutral", "y", "x")),
        (("x", "y", "z"), "z/x", Contrast("z", "x")),
        (("x", "y", "z"), "z / x / y", Contrast("z", "x", "y")),
        (("x",), None, None),
        ((), None, None),
    ],
)
def test_contrast_of_categories(categories, text, expected):
    found, notes = contrast_of(categories, text)
    assert found == expected
    named = text is not None or expected == STUDY or categories == ("neutral", "self_referent")
    assert len(notes) == (0 if named else 1)


@pytest.mark.parametrize(
    ("categories", "text", "expected"),
    [
        (("a/b", "c"), "a/b/c", Contrast("a/b", "c")),
        (("c", "a/b"), "c / a/b", Contrast("c", "a/b")),
        (("a/b", "c/d", "e/f/g"), "a/b/c/d/e/f/g", Contrast("a/b", "c/d", "e/f/g")),
        (("a", "b", "c", "b/c/d"), "a/b/c", Contrast("a", "b", "c")),
        (("a", "a/a"), "a/a/a", None),
        (("a", "b", "c", "a/b"), "a/b/c", None),
    ],
)
def test_names_with_slashes_are_read_where_there_is_one_way(categories, text, expected):
    if expected is None:
        with pytest.raises(SpecError, match=r"can be read as '.*' or '.*'; rename a category"):
            contrast_of(categories, text)
    else:
        assert contrast_of(categories, text) == (expected, ())


def test_a_part_of_a_name_with_a_slash_is_no_category():
    with pytest.raises(SpecError, match="no prompt has the category 'a'; there are a/b, c"):
        contrast_of(("a/b", "c"), "a/c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "the contrast 'x' is not FOCUS/REFERENCE or FOCUS/REFERENCE/CONFOUNDER"),
        ("x/", "is not FOCUS/REFERENCE"),
        ("x/y/z/x", "is not FOCUS/REFERENCE"),
        ("x/x", "the contrast 'x/x' names a category twice"),
        ("x/y/x", "names a category twice"),
        (
            "x/zebr",
            "no prompt has the category 'zebr'; there are x, y, zebra; did you mean 'zebra'",
        ),
        ("x/\x1b[31m", r"no prompt has the category '\\x1b"),
    ],
)
def test_contrast_that_does_not_fit_is_refused(text, message):
    with pytest.raises(SpecError, match=message):
        contrast_of(("x", "y", "zebra"), text)


# --- uniform attention ------------------------------------------------------------------------


def test_uniform_table_is_that_of_uniform_patterns():
    sizes, category = [1, 2, 5, 3], ["x", "y", "x", "z"]
    patterns = [role_tables.rows_of(np.zeros((1, 1, n, n))) for n in sizes]
    expected = role_tables.entropies_of("uniform", patterns, category, has_bos=True)
    found = null.uniform_table(sizes, category, True)
    for name in ("entropy", "entropy_no_first", "first_keys", "recent_keys", "length", "has_bos"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(ours, theirs, atol=1e-7, err_msg=name)
    assert (found.prompts, found.category) == (expected.prompts, expected.category)


@pytest.mark.parametrize(
    ("has_bos", "keys", "rfc", "rsi"),
    [
        (True, "all", -0.044, 0.095),
        (False, "all", -0.060, 0.130),
        # Without the begin token as a key the rest sees as many keys as where there is none.
        (True, "no-bos", -0.060, 0.130),
    ],
)
def test_uniform_attention_on_the_published_prompts(shared, has_bos, keys, rfc, rsi):
    path = shared / "data" / "self-referent-study" / "prompts_120.json"
    prompts = json.loads(path.read_text(encoding="utf-8"))["categories"]
    category = [name for name, texts in prompts.items() for _ in texts]
    words = [re.findall(r"[\w'-]+|[^\w\s]", t) for texts in prompts.values() for t in texts]
    table = null.uniform_table([len(w) + has_bos for w in words], category, has_bos)
    found = null.uniform(table, Reading(keys=keys), STUDY)
    assert found["raw"]["rfc"] == pytest.approx(rfc, abs=5e-4)
    assert found["raw"]["rsi"] == pytest.approx(rsi, abs=5e-4)
    assert found["normalised"]["rfc"] == pytest.approx(0, abs=1e-12)
    assert found["normalised"]["rsi"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "reading", [Reading(*p) for p in itertools.product(QUERIES, KEYS)], ids=str
)
def test_uniform_attention_in_closed_form(reading):
    sizes, category, has_bos = [3, 6, 4, 5], ["a", "a", "b", "c"], [True, False, True, True]
    table = null.uniform_table(sizes, category, has_bos)
    found = null.uniform(table, reading, ABC)
    by_category, pooled = ({"a": [], "b": [], "c": []} for _ in range(2))
    for size, name, begins in zip(sizes, category, has_bos, strict=True):
        drop = int(begins and reading.keys == "no-bos")
        first = max(drop, reading.queries == "no-first")
        queries = [size - 1] if reading.queries == "last" else range(first, size)
        entropies = [math.log(query + 1 - drop) for query in queries]
        by_category[name].append(sum(entropies) / len(entropies))
        pooled[name] += entropies
    means = {name: sum(values) / len(values) for name, values in by_category.items()}
    assert found["raw"]["category"] == pytest.approx(means, rel=1e-12)
    assert found["raw"]["rfc"] == pytest.approx(1 - means["a"] / means["b"], abs=1e-12)
    assert found["raw"]["rsi"] == pytest.approx((means["c"] - means["a"]) / means["b"], abs=1e-12)
    a, b, c = (sum(values) / len(values) for values in pooled.values())
    of_means = {"rfc": 1 - means["a"] / means["b"], "rsi": (means["c"] - means["a"]) / means["b"]}
    expected = {
        "ratio_of_means": of_means,
        "head_form": {"rfc": 1 - a / b, "rsi": (c - a) / b},
        "mean_of_ratios": of_means,
        "median_of_ratios": of_means,
        "log_ratio": {
            "rfc": math.log(means["b"] / means["a"]),
            "rsi": math.log(means["c"] / means["a"]),
        },
    }
    assert list(found["raw"]["forms"]) == list(expected)
    for form, by_metric in found["raw"]["forms"].items():
        assert by_metric == pytest.approx(expected[form], abs=1e-12)
        normalised = found["normalised"]["forms"][form]
        assert normalised == pytest.approx({"rfc": 0, "rsi": 0}, abs=1e-12)
    expected = {
        "reference_minus_focus": means["b"] - means["a"],
        "confounder_minus_focus": means["c"] - means["a"],
    }
    assert found["raw"]["contrast"] == pytest.approx(expected, abs=1e-12)
    assert found["normalised"]["category"] == pytest.approx(dict.fromkeys("abc", 1.0), rel=1e-12)


def test_uniform_attention_without_a_contrast_or_a_confounder():
    table = null.uniform_table([3, 4], ["a", "b"])
    alone = null.uniform(table, Reading(), None)["raw"]
    assert [alone[name] for name in ("rfc", "rsi", "contrast", "forms")] == [None] * 4
    two = null.uniform(table, Reading(), Contrast("a", "b"))["raw"]
    assert two["rsi"] is None
    assert {one["rsi"] for one in two["forms"].values()} == {None}
    assert two["contrast"]["confounder_minus_focus"] is None


def test_prompts_of_one_token_have_no_normalised_entropy():
    table = null.uniform_table([1, 1, 4], ["a", "a", "b"])
    found = null.uniform(table, Reading(), Contrast("a", "b"))
    assert found["raw"]["category"]["a"] == 0.0
    assert found["raw"]["rfc"] == 1.0
    assert math.isnan(found["normalised"]["category"]["a"])
    assert math.isnan(found["normalised"]["rfc"])
