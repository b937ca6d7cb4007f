"""The document of a run: effects and their absence, its shape, and runs that lack something."""

import itertools
import json
import math
import statistics

import numpy as np
import pytest
import role_tables
from role_twins import (
    SCALES,
    Twin,
    build,
    five_per_category,
    mean,
)

from mlxroles.errors import SpecError
from mlxroles.roles import compare
from mlxroles.roles.contrast import Contrast
from mlxroles.roles.metrics import FORMS
from mlxroles.roles.table import Reading


@pytest.fixture(scope="module")
def tables():
    return five_per_category()


@pytest.fixture(scope="module")
def doc(tables):
    return build(tables)


# --- what effects and their absence look like -------------------------------------------------


def test_a_planted_effect_is_found():
    doc = build(
        role_tables.random_tables(1, layers=3, heads=4, per_category=12, effect=0.5),
        n_resamples=400,
        n=500,
    )
    for scale in SCALES:
        difference = doc[scale]["difference"]
        for metric, form in itertools.product(("rfc", "rsi"), FORMS):
            low, high = np.transpose(difference[metric][form]["ci"])
            assert (low > 0).all(), (scale, metric, form)
            assert (high > low).all()
        assert max(difference["rfc_test"]["q"]) < 0.05
        assert doc["heads"]["what"]["difference"][scale]["significant_bh"] == 12
        # Base was not touched.
        assert doc["heads"]["what"]["base"][scale]["significant_max"] == 0


def test_without_an_effect_one_in_twenty_tests_says_otherwise():
    """Over 30 data sets; 4 false alarms or more among 30 have a chance of 6 %, 6 one of .3 %."""
    alarms, below = {}, []
    for seed in range(30):
        tables = role_tables.random_tables(100 + seed, layers=3, heads=4, per_category=8)
        doc = build(tables, n_resamples=20, n=200)
        for scale, what in itertools.product(SCALES, ("base", "instruct", "difference")):
            found = doc["heads"]["what"][what][scale]
            below.append(found["below_05"] / found["n"])
            layers = doc[scale]["difference"] if what == "difference" else None
            layers = layers or doc[scale]["models"][what]
            for name, alarm in (
                ("heads, any", found["significant_max"] > 0),
                ("heads, false discovery", found["significant_bh"] > 0),
                ("heads, same length", found["significant_same_length"] > 0),
                ("layers, rfc", min(layers["rfc_test"]["q"]) < 0.05),
                ("layers, rsi", min(layers["rsi_test"]["q"]) < 0.05),
            ):
                alarms.setdefault((scale, what, name), []).append(alarm)
        alarms.setdefault("candidates", []).append(doc["candidates"]["significant"] > 0)
    assert max(map(sum, alarms.values())) <= 5, alarms
    assert 0.035 < mean(below) < 0.065


@pytest.fixture(scope="module")
def uniform():
    """Uniform attention on prompts whose categories differ in length, which is all there is."""
    sizes = [4, 5, 5, 6, 6, 4, 5, 7, 7, 8, 8, 7, 5, 6, 7, 8, 9, 9]
    category = [name for name in role_tables.CATEGORIES[:3] for _ in range(6)]
    patterns = [role_tables.rows_of(np.zeros((2, 3, n, n))) for n in sizes]
    return {
        name: role_tables.entropies_of(name, patterns, category) for name in ("base", "instruct")
    }


def test_length_alone_makes_raw_effects_and_no_normalised_ones(uniform):
    doc = build(uniform, n_resamples=200, n=2000)
    raw, normalised = (doc[scale]["models"]["base"] for scale in SCALES)
    assert doc["null"]["raw"]["rfc"] > 0.05
    for layer in range(2):
        found = raw["rfc"]["ratio_of_means"]
        assert found["value"][layer] == pytest.approx(doc["null"]["raw"]["rfc"], abs=1e-6)
        assert raw["rsi"]["ratio_of_means"]["value"][layer] == pytest.approx(
            doc["null"]["raw"]["rsi"], abs=1e-6
        )
    for metric, form in itertools.product(("rfc", "rsi"), FORMS):
        np.testing.assert_allclose(normalised[metric][form]["value"], 0, atol=1e-6)
    assert max(raw["rsi_test"]["p"]) < 0.05
    assert min(raw["rsi_test"]["p_same_length"]) == 1.0
    assert min(raw["rfc_test"]["p_same_length"]) == 1.0
    assert doc["heads"]["what"]["base"]["raw"]["significant_same_length"] == 0


def test_attention_that_knows_nothing_differs_by_length_and_not_among_equal_lengths():
    """Random attention, alike in all categories, on prompts of other lengths in each."""
    rng = np.random.default_rng(12)
    shortest = dict(zip(role_tables.CATEGORIES[:3], (4, 6, 5), strict=True))
    category = [name for name in shortest for _ in range(24)]
    sizes = [shortest[name] + int(rng.integers(4)) for name in category]
    patterns = [role_tables.rows_of(rng.normal(scale=0.5, size=(3, 4, n, n))) for n in sizes]
    table = role_tables.entropies_of("model", patterns, category)
    doc = build({"model": table}, n_resamples=200, n=2000)
    found = doc["raw"]["models"]["model"]
    for metric in ("rfc", "rsi"):
        low, high = np.transpose(found[metric]["ratio_of_means"]["ci"])
        assert ((low < doc["null"]["raw"][metric]) & (doc["null"]["raw"][metric] < high)).all()
        assert max(found[f"{metric}_test"]["q"]) < 0.05
        assert min(found[f"{metric}_test"]["q_same_length"]) > 0.05
    heads_found = doc["heads"]["what"]["model"]["raw"]
    assert heads_found["significant_bh"] > 6
    assert heads_found["significant_same_length"] == 0
    assert any("the categories differ in length" in note for note in doc["notes"])


def test_equal_models_have_no_difference(uniform):
    doc = build(uniform)
    difference = doc["raw"]["difference"]
    for metric, form in itertools.product(("rfc", "rsi"), FORMS):
        np.testing.assert_array_equal(difference[metric][form]["value"], 0)
        np.testing.assert_array_equal(difference[metric][form]["ci"], 0)
    assert min(difference["rfc_test"]["p"]) == 1.0


# --- shape ------------------------------------------------------------------------------------

KEYS = [
    "models",
    "layers",
    "n_heads",
    "prompts",
    "categories",
    "contrast",
    "reading",
    "seed",
    "n_resamples",
    "n_permutations",
    "lengths",
    "null",
    "raw",
    "normalised",
    "heads",
    "candidates",
    "difference_summary",
    "notes",
]
COLUMNS = [
    "layer",
    "head",
    "focus",
    "reference",
    "confounder",
    "diff",
    "diff_same_length",
    "rfc",
    "rfc_low",
    "rfc_high",
    "rsi",
    "rsi_low",
    "rsi_high",
    "log_ratio",
    "d",
    "d_low",
    "d_high",
    "delta",
    "delta_low",
    "delta_high",
    "p",
    "q",
    "p_max",
    "p_same_length",
    "q_same_length",
    "flagged",
]
TEST = {
    "p",
    "q",
    "p_same_length",
    "q_same_length",
    "diff",
    "diff_same_length",
    "significant",
    "holds_at_equal_length",
    "reverses_at_equal_length",
    "n_permutations",
    "exact",
    "n_permutations_same_length",
}


def test_keys_and_shapes(tables, doc):
    assert list(doc) == KEYS
    assert doc["models"] == ["base", "instruct"]
    assert (doc["layers"], doc["n_heads"]) == ([0, 1], 4)
    assert doc["contrast"] == {
        "focus": "self_referent", "reference": "neutral", "confounder": "confounder",
    }  # fmt: skip
    assert doc["reading"] == {"queries": "all", "keys": "all"}
    assert (doc["seed"], doc["n_resamples"], doc["n_permutations"]) == (0, 40, 300)
    base = tables["base"]
    assert doc["prompts"][5] == {
        "id": "p005", "category": "confounder", "n_tokens": int(base.length[5]), "has_bos": True,
    }  # fmt: skip
    for scale in SCALES:
        assert list(doc[scale]) == ["models", "difference"]
        for found in doc[scale]["models"].values():
            assert set(found) == {"category", "rfc", "rsi", "rfc_test", "rsi_test", "contrast"}
        assert set(doc[scale]["difference"]) == {"rfc", "rsi", "rfc_test", "rsi_test"}
        assert set(doc[scale]["difference"]["rsi_test"]) == TEST
        assert set(doc[scale]["models"]["base"]["rfc_test"]) == TEST
        assert set(doc["null"][scale]) == {"category", "rfc", "rsi", "contrast", "forms"}
        assert tuple(doc["null"][scale]["forms"]) == FORMS
    row = doc["heads"]["what"]["base"]["raw"]["top"][0]
    assert list(row) == COLUMNS
    assert doc["heads"]["n"] == 7


def test_lengths_of_categories(tables, doc):
    for name in role_tables.CATEGORIES:
        tokens = tables["base"].length[tables["base"].members(name)].tolist()
        assert doc["lengths"][name] == {
            "n": 5,
            "mean": pytest.approx(mean(tokens)),
            "sd": pytest.approx(statistics.stdev(tokens)),
            "min": min(tokens),
            "max": max(tokens),
        }


def test_document_is_plain_json(doc):
    assert json.loads(json.dumps(doc)).keys() == doc.keys()


def test_same_seed_gives_the_same_document_whatever_the_order_of_the_models(tables, doc):
    again = build(dict(reversed(tables.items())))
    assert json.dumps(again) == json.dumps(doc)
    other = build(tables, seed=1)
    value, ci = (
        [one["raw"]["difference"]["rfc"]["ratio_of_means"][k] for one in (doc, other)]
        for k in ("value", "ci")
    )
    assert value[0] == value[1]
    assert ci[0] != ci[1]


# --- less than everything ---------------------------------------------------------------------


def test_one_model_has_no_difference_and_no_candidates(tables):
    doc = build({"model": tables["base"]})
    assert doc["models"] == ["model"]
    assert doc["raw"]["difference"] is doc["normalised"]["difference"] is None
    assert doc["candidates"] is doc["difference_summary"] is None
    assert list(doc["heads"]["what"]) == ["model"]
    both = build(tables)
    assert doc["raw"]["models"]["model"] == both["raw"]["models"]["base"]
    with pytest.raises(
        SpecError, match="needs base, instruct and two categories; this run has one"
    ):
        compare.rows(doc)


def test_no_contrast_leaves_entropies_alone(tables):
    doc = build(tables, contrast=None)
    assert doc["contrast"] is None
    assert doc["raw"]["difference"] is None
    for found in doc["raw"]["models"].values():
        assert list(found["category"]) == list(role_tables.CATEGORIES)
        assert [found[k] for k in ("rfc", "rsi", "rfc_test", "rsi_test", "contrast")] == [None] * 5
    assert doc["heads"] == {"n": 7, "flagged": [], "what": {}}
    assert doc["candidates"] is None
    assert role_tables.all_rows(doc, tables) == []
    with pytest.raises(SpecError, match="this run has no contrast"):
        compare.rows(doc)


def test_without_a_confounder_rsi_is_absent(tables):
    doc = build(tables, contrast=Contrast("third_person", "neutral"))
    assert doc["contrast"]["confounder"] is None
    for scale in SCALES:
        assert doc["null"][scale]["rsi"] is None
        for found in (*doc[scale]["models"].values(), doc[scale]["difference"]):
            assert found["rsi"] is found["rsi_test"] is None
            assert found["rfc"] is not None
    assert doc["difference_summary"]["rsi"] is None
    assert doc["heads"]["what"]["base"]["raw"]["top"][0]["confounder"] is None
    rows = compare.rows(doc)
    assert all(math.isnan(row["rsi_diff"]) and math.isnan(row["null_rsi"]) for row in rows)
    assert list(rows[0]) == list(compare.rows(build(tables))[0])


def test_a_category_of_one_prompt_has_values_without_intervals(tables):
    some = {name: table.chosen([0, *range(5, 20)]) for name, table in tables.items()}
    doc = build(some)
    assert math.isnan(doc["lengths"]["self_referent"]["sd"])
    found = doc["raw"]["models"]["base"]
    alone = found["category"]["self_referent"]
    assert not np.isnan(alone["value"]).any()
    assert np.isnan(alone["ci"]).all()
    assert not np.isnan(found["category"]["neutral"]["ci"]).any()
    for metric in ("rfc", "rsi"):
        one = found[metric]["ratio_of_means"]
        assert not np.isnan(one["value"]).any()
        assert np.isnan(one["ci"]).all()
        assert np.isnan(doc["raw"]["difference"][metric]["log_ratio"]["ci"]).all()
    assert np.isnan(found["contrast"]["reference_minus_focus"]["ci"]).all()
    row = doc["heads"]["what"]["base"]["raw"]["top"][0]
    assert all(math.isnan(row[name]) for name in ("d", "d_low", "d_high", "delta_low"))
    # Six prompts, one of them the focus: no p-value below a sixth.
    assert min(found["rfc_test"]["p"]) >= 1 / 6 - 1e-12
    assert noted_as_few(doc) == "self_referent 1"


def noted_as_few(doc):
    """The categories, and how many prompts, of which a note says that there are too few."""
    found = [note for note in doc["notes"] if note.startswith("fewer than 5 prompts")]
    if not found:
        return None
    (note,) = found
    assert "no intervals" in note
    assert "no layer is called significant" in note
    return note.partition("(")[2].partition(")")[0]


@pytest.mark.parametrize("per_category", [2, 3, 4, 5])
def test_fewer_than_five_prompts_have_effects_without_intervals(per_category):
    """Two prompts a category once had a Cohen's d of -76 with an interval from -438 to -76."""
    tables = role_tables.random_tables(3, layers=2, heads=3, per_category=per_category, effect=3.0)
    doc = build(tables)
    few = per_category < 5
    assert noted_as_few(doc) == (
        ", ".join(f"{name} {per_category}" for name in role_tables.CATEGORIES) if few else None
    )
    for scale, what in itertools.product(SCALES, ("base", "instruct", "difference")):
        layers = doc[scale]["difference"] if what == "difference" else None
        layers = layers or doc[scale]["models"][what]
        for metric, form in itertools.product(("rfc", "rsi"), FORMS):
            assert not np.isnan(layers[metric][form]["value"]).any()
            assert np.isnan(layers[metric][form]["ci"]).all() == few
            assert not np.isnan(layers[f"{metric}_test"]["p"]).any()
            if few:
                assert not any(layers[f"{metric}_test"]["significant"])
        for row in doc["heads"]["what"][what][scale]["top"]:
            for name in ("rfc", "rsi", "d", "delta"):
                assert not math.isnan(row[name])
                assert math.isnan(row[f"{name}_low"]) == few
                assert math.isnan(row[f"{name}_high"]) == few
    for row in doc["candidates"]["rows"]:
        assert not math.isnan(row["did_median"])
        assert math.isnan(row["did_low"]) == math.isnan(row["did_high"]) == few


def test_a_difference_has_intervals_where_both_models_have_prompts_enough():
    """One focus prompt of five has no value in instruct."""
    some = five_per_category()
    some["instruct"].entropy[0] = np.nan
    raw = build(some, heads=False)["raw"]
    for found, has in (
        (raw["models"]["base"], True),
        (raw["models"]["instruct"], False),
        (raw["difference"], False),
    ):
        assert np.isnan(found["rfc"]["ratio_of_means"]["ci"]).any() != has
        assert not np.isnan(found["rfc"]["ratio_of_means"]["value"]).any()


def test_a_confounder_of_one_prompt_leaves_rfc_its_intervals(tables):
    some = {name: table.chosen([*range(6), *range(10, 20)]) for name, table in tables.items()}
    found = build(some)["raw"]["models"]["base"]
    assert not np.isnan(found["rfc"]["ratio_of_means"]["ci"]).any()
    assert np.isnan(found["rsi"]["ratio_of_means"]["ci"]).all()
    assert not np.isnan(found["contrast"]["reference_minus_focus"]["ci"]).any()
    assert np.isnan(found["contrast"]["confounder_minus_focus"]["ci"]).all()


def test_without_heads_the_rest_is_the_same(tables, doc):
    light = build(tables, heads=False)
    assert light["heads"] is light["candidates"] is None
    same = {name: value for name, value in doc.items() if name not in ("heads", "candidates")}
    assert json.dumps({name: light[name] for name in same}) == json.dumps(same)


def test_notes_count_heads_that_are_there():
    tables = five_per_category()
    for table in tables.values():
        for i in table.members("neutral"):
            table.entropy[i, 1, 0, : table.length[i]] = 0.0
    for heads in (True, False):
        notes = build(tables, heads=heads)["notes"]
        assert [note for note in notes if note.startswith("1 of 7 heads have a reference entropy")]


def test_queries_with_all_weight_on_the_begin_token_are_counted_and_noted(tables):
    """Four prompts' last query in one head of instruct; heads that are not there do not count."""
    some = five_per_category()
    instruct = some["instruct"]
    for i in range(4):
        instruct.entropy_no_first[i, 0, 2, instruct.length[i] - 1] = np.nan
    queries = sum(int(n) - 1 for n in instruct.length) * 7
    doc = build(some, reading=Reading(keys="no-bos"))
    found = [note for note in doc["notes"] if "begin token" in note]
    assert len(found) == 1
    assert found[0].startswith(f"instruct: 4 of {queries} queries")
    assert not [note for note in build(some)["notes"] if "begin token" in note]
    last = build(some, reading=Reading("last", "no-bos"))["notes"]
    assert [note for note in last if note.startswith("instruct: 4 of 140 queries")]


def test_layers_keep_their_numbers(tables):
    base = role_tables.random_tables(7, layers=2, heads=2, per_category=3)
    for table in base.values():
        object.__setattr__(table, "layers", (3, 7))
    doc = build(base)
    assert doc["layers"] == [3, 7]
    assert {row["layer"] for row in role_tables.all_rows(doc, base)} == {3, 7}
    assert [row["layer"] for row in compare.rows(doc)] == [3, 7]
    assert {row["layer"] for row in doc["candidates"]["rows"]} == {3, 7}
    assert doc["difference_summary"]["rfc"]["min_layer"] in (3, 7)


def test_a_reference_without_entropy_has_no_ratio():
    tables = role_tables.random_tables(9, layers=2, heads=3, per_category=4)
    for table in tables.values():
        for i in table.members("neutral"):
            table.entropy[i, :, :, : table.length[i]] = 0.0
    doc = build(tables)
    for scale in SCALES:
        found = doc[scale]["models"]["base"]
        for form in ("ratio_of_means", "mean_of_ratios", "median_of_ratios", "log_ratio"):
            assert np.isnan(found["rfc"][form]["value"]).all()
            assert np.isnan(found["rfc"][form]["ci"]).all()
        np.testing.assert_array_equal(found["rfc"]["head_form"]["value"], 0)
    assert len(doc["heads"]["flagged"]) == 6
    assert doc["difference_summary"]["rfc"] is None


def test_prompts_without_a_query_that_counts_are_left_out_and_named():
    rng = np.random.default_rng(0)
    sizes, category = [1, 5, 6, 4, 1, 1], ["a", "a", "a", "b", "b", "c"]
    patterns = [role_tables.rows_of(rng.normal(size=(2, 3, n, n))) for n in sizes]
    tables = {
        name: role_tables.entropies_of(name, patterns, category) for name in ("base", "instruct")
    }
    doc = build(tables, reading=Reading("no-first"), contrast=Contrast("a", "b", "c"))
    twin = Twin(tables["base"], Reading("no-first"), False)
    found = doc["raw"]["models"]["base"]
    for layer in range(2):
        a, b = (twin.layer_mean(prompts, layer) for prompts in ([0, 1, 2], [3, 4]))
        assert found["category"]["a"]["value"][layer] == pytest.approx(a)
        assert found["rfc"]["ratio_of_means"]["value"][layer] == pytest.approx(1 - a / b)
        assert math.isnan(found["category"]["c"]["value"][layer])
        assert math.isnan(found["rsi"]["ratio_of_means"]["value"][layer])
        assert math.isnan(found["rsi_test"]["p"][layer])
    assert "category a: 1 of 3 prompts have no query that counts and are left out" in doc["notes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {}, "there is no model"),
        (lambda t: {"a": t["base"], "b": t["base"]}, "named base and instruct; these are a, b"),
        (lambda t: t | {"instruct": t["base"].chosen(range(15))}, "have different prompts"),
        (
            lambda t: t | {"instruct": role_tables.random_tables(8, 2, 4, 5)["base"]},
            "have different tokens per prompt",
        ),
    ],
)
def test_models_that_do_not_fit_together_are_refused(tables, change, message):
    with pytest.raises(SpecError, match=message):
        build(change(dict(tables)))


def test_a_contrast_that_no_prompt_has_is_refused(tables):
    with pytest.raises(SpecError, match="no prompt has the category 'nobody'"):
        build(tables, contrast=Contrast("nobody", "neutral"))
