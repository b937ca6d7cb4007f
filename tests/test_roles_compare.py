"""Rows of a comparison and what they add up to."""

import json
import math
import statistics

import pytest
from role_twins import (
    build,
    five_per_category,
)

from mlxroles.roles import compare


@pytest.fixture(scope="module")
def tables():
    return five_per_category()


@pytest.fixture(scope="module")
def doc(tables):
    return build(tables)


def test_rows_of_a_comparison_are_the_documents_cells(doc):
    rows = compare.rows(doc)
    raw, normalised = doc["raw"], doc["normalised"]
    for k, row in enumerate(rows):
        expected = {"layer": k}
        for m in ("rfc", "rsi"):
            parts = {**raw["models"], "diff": raw["difference"]}
            for name, one in parts.items():
                value = one[m]["ratio_of_means"]
                expected[f"{m}_{name}"] = value["value"][k]
                expected[f"{m}_{name}_low"], expected[f"{m}_{name}_high"] = value["ci"][k]
                for p in ("p", "q", "p_same_length", "q_same_length"):
                    expected[f"{m}_{name}_{p}"] = one[f"{m}_test"][p][k]
            for name, one in normalised["models"].items():
                expected[f"{m}_normalised_{name}"] = one[m]["ratio_of_means"]["value"][k]
            value = normalised["difference"][m]["ratio_of_means"]
            expected[f"{m}_normalised_diff"] = value["value"][k]
            low, high = value["ci"][k]
            expected |= {f"{m}_normalised_diff_low": low, f"{m}_normalised_diff_high": high}
            for p in ("p", "q", "p_same_length", "q_same_length"):
                test = normalised["difference"][f"{m}_test"]
                expected[f"{m}_normalised_diff_{p}"] = test[p][k]
        expected |= {f"null_{m}": doc["null"]["raw"][m] for m in ("rfc", "rsi")}
        assert list(row) == list(expected)
        assert row == pytest.approx(expected, rel=0, nan_ok=True)


def test_rows_read_a_stored_document_where_missing_numbers_are_null(doc):
    stored = json.loads(json.dumps(doc).replace("NaN", "null"))
    stored["raw"]["difference"]["rfc"]["ratio_of_means"]["ci"][0] = [None, None]
    found = compare.rows(stored)
    assert math.isnan(found[0]["rfc_diff_low"])
    assert found[1] == pytest.approx(compare.rows(doc)[1], rel=0, nan_ok=True)


def test_rows_of_another_form(doc):
    found = compare.rows(doc, form="log_ratio")
    expected = doc["raw"]["difference"]["rsi"]["log_ratio"]["value"]
    assert [row["rsi_diff"] for row in found] == expected
    assert {row["null_rsi"] for row in found} == {doc["null"]["raw"]["forms"]["log_ratio"]["rsi"]}


def test_summary_of_differences_is_plain_counting():
    values = [0.3, -0.02, 0.005, -0.4, 0.011, -0.01]
    ci = [[0.1, 0.5], [-0.1, 0.1], [-1, 1], [-0.5, -0.3], [-1, 1], [-1, 1]]
    level = {"ratio_of_means": {"value": [0.6, 0.1, 0.2, 0.3, 0.4, 0.5], "ci": ci}}
    model = {"rfc": level, "rsi": None}
    difference = {
        "rfc": {"ratio_of_means": {"value": values, "ci": ci}},
        "rfc_test": {
            "significant": [True, False, False, True, False, False],
            "holds_at_equal_length": [False, False, False, True, False, False],
        },
        "rsi": None, "rsi_test": None,
    }  # fmt: skip
    raw = {"models": {"base": model, "instruct": model}, "difference": difference}
    found = compare.difference_summary(range(10, 16), raw)
    assert found["total_layers"] == 6
    assert found["rsi"] is None
    expected = {
        "mean": statistics.mean(values),
        "std": statistics.pstdev(values),
        "median": statistics.median(values),
        "min": -0.4,
        "min_layer": 13,
        "max": 0.3,
        "max_layer": 10,
        "positive_count": 3,
        "negative_count": 3,
        "significant_positive": 2,
        "significant_negative": 2,
        "near_zero": 2,
        "pct_compression": 100 / 3,
        "pct_preservation": 100 / 3,
        "most_influential_layer": 13,
        "mean_without_it": (sum(values) + 0.4) / 5,
    }
    assert {name: found["rfc"][name] for name in expected} == pytest.approx(expected)
    assert found["rfc"]["ci_excludes_zero"] == [10, 13]
    assert found["rfc"]["q_below_05"] == [10, 13]
    assert found["rfc"]["q_same_length_below_05"] == [13]
    assert found["rfc"]["largest_negative"] == [13, 11, 15]
    assert found["rfc"]["largest_positive"] == [10, 14, 12]
    assert found["rfc"]["levels"]["base"]["mean"] == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("values", "layer", "without", "decides"),
    [
        ([0.1, 0.2, 0.9, 0.2], 7, 0.5 / 3, True),  # loses more than half
        ([0.1, 0.2, 0.1, -0.9], 8, 0.4 / 3, True),  # changes its sign
        ([0.3, 0.2, 0.25, 0.4], 8, 0.25, False),
        ([math.nan, 0.2, 0.3, 0.2], 7, 0.2, False),
    ],
)
def test_layer_that_moves_a_mean_most(values, layer, without, decides):
    found = compare.without_one((5, 6, 7, 8), values)
    assert found is not None
    assert found.layer == layer
    assert found.without == pytest.approx(without)
    known = [value for value in values if not math.isnan(value)]
    assert found.mean == pytest.approx(statistics.mean(known))
    assert found.decides is decides
    assert compare.without_one((5, 6), (0.1, math.nan)) is None


def test_summary_of_one_model_is_none():
    assert compare.difference_summary([0], {"models": {}, "difference": None}) is None
