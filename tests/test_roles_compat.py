"""The original study's numbers: its golden set, its published tables, and plain loops."""

import json
import math

import numpy as np
import pytest
from role_files import random_patterns
from scipy import stats as scipy_stats

from mlxroles.errors import SpecError
from mlxroles.roles import patterns, tables_csv
from mlxroles.roles.compat import (
    candidates,
    check_candidates,
    compare_rows,
    cross_model,
    difference_summary,
    entropy_with_epsilon,
    layer_form,
    rows_from_comparison,
)
from mlxroles.roles.patterns import Patterns
from mlxroles.roles.tables_csv import CANDIDATE_COLUMNS, COMPARISON_COLUMNS

LLAMA = "llama_detailed_comparison.csv"
LLAMA_OLDER = "llama_detailed_comparison_20251019.csv"


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "data" / "golden"
    sides = [patterns.read(folder / f"attn_{side}.npz") for side in ("base", "instruct")]
    return *sides, json.loads((folder / "expected.json").read_text())


def published(shared, name):
    return tables_csv.read(shared / "data" / "self-referent-study" / name)[1]


def made(seed, **sizes):
    arrays = random_patterns(seed, **sizes)
    return Patterns(arrays["pattern"], arrays["length"], tuple(arrays["category"].tolist()))


def agrees(found, expected, where="", tolerance=1e-6):
    """Every number of a nested document, and the order of every list."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            agrees(found[key], value, f"{where}/{key}", tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            agrees(one, other, f"{where}/{place}", tolerance)
    else:
        assert found == pytest.approx(expected, abs=tolerance, rel=0), where


def study_entropy(weights):
    """One row of weights, as the study's program treats it."""
    row = np.asarray(weights, dtype=np.float64) + 1e-8
    row = row / row.sum()
    return -float(np.sum(row * np.log(row)))


# --- the golden set ---------------------------------------------------------------------------


def test_the_golden_comparison_holds_in_every_column(golden):
    base, instruct, expected = golden
    rows = compare_rows(base, instruct)
    agrees(rows, expected["comparison_first28heads"], tolerance=1e-12)
    assert all(row["n_heads_base"] == row["n_heads_instruct"] == 28 for row in rows)
    assert all(tuple(row) == COMPARISON_COLUMNS for row in rows)


def test_the_golden_candidates_hold_in_their_order(golden):
    base, instruct, expected = golden
    rows, _ = candidates(base, instruct, family="golden")
    agrees(rows, expected["candidates_top10"], tolerance=1e-12)
    assert [row["rank"] for row in rows] == list(range(1, 11))
    assert all(tuple(row) == CANDIDATE_COLUMNS for row in rows)
    assert rows[0]["layer_head"] == "1_10"


@pytest.mark.parametrize("side", [0, 1])
def test_the_golden_figures_hold_in_every_layer(golden, side):
    expected = golden[2]["visual_layer_level"][("base", "instruct")[side]]
    agrees(layer_form(golden[side]), expected)


def test_exact_entropies_come_within_a_millionth_of_the_studys(golden):
    base, instruct, expected = golden
    tables = base.entropies("base"), instruct.entropies("instruct")
    agrees(compare_rows(*tables), expected["comparison_first28heads"], tolerance=2e-6)
    agrees(layer_form(tables[0]), expected["visual_layer_level"]["base"], tolerance=5e-6)
    gap = entropy_with_epsilon(base) - tables[0].entropy
    tokens = base.length[:, None, None, None]
    assert np.nanmin(gap) > -1e-9
    assert np.nanmax(gap / tokens) < 2e-7


# --- the published tables ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [LLAMA, LLAMA_OLDER])
def test_published_intervals_follow_from_means_spreads_and_head_counts(shared, name):
    rows = published(shared, name)
    for row, again in zip(rows, rows_from_comparison(rows), strict=True):
        for column in COMPARISON_COLUMNS:
            # The spread of RSI was rounded twice to single precision, once for its interval.
            doubly_rounded = column.startswith("rsi_ci")
            tolerance = 2e-8 if doubly_rounded else 1e-12
            assert again[column] == pytest.approx(row[column], abs=tolerance, rel=0), column


def test_llama_figures_of_the_study_come_out(shared):
    summary = difference_summary(rows_from_comparison(published(shared, LLAMA)))
    rfc, rsi = summary["rfc"], summary["rsi"]
    assert rfc["mean"] == pytest.approx(-0.023269, abs=5e-7)
    assert (rfc["significant_negative"], rfc["near_zero"], rfc["significant_positive"]) == (
        22,
        5,
        5,
    )
    assert rfc["pct_compression"] == pytest.approx(68.75)
    assert rfc["largest_negative"] == [14, 18, 13, 2, 15]
    assert (len(rfc["ci_excludes_zero"]), len(rsi["ci_excludes_zero"])) == (2, 2)
    assert rsi["levels"]["base"]["mean_without_layer_0"] == pytest.approx(0.138, abs=5e-4)
    assert rsi["levels"]["instruct"]["mean_without_layer_0"] == pytest.approx(0.150, abs=5e-4)


def test_older_and_newer_llama_tables_correlate_as_scipy_says(shared):
    named = {"llama": published(shared, LLAMA), "older": published(shared, LLAMA_OLDER)}
    found = cross_model(named, timestamp="2025-11-06T00:00:00")
    x, y = ([row["rfc_diff"] for row in rows] for rows in named.values())
    pair = found["correlations"]["llama_vs_older"]
    assert pair["pearson_r"] == pytest.approx(scipy_stats.pearsonr(x, y).statistic)
    assert pair["spearman_p"] == pytest.approx(scipy_stats.spearmanr(x, y).pvalue)
    assert pair["layers_compared"] == 32
    assert list(found) == ["summary_stats", "correlations", "analysis_timestamp"]
    stats = found["summary_stats"]["older"]
    assert stats["std"] == pytest.approx(np.std(y))
    assert stats["mean"] == pytest.approx(-0.018007, abs=5e-7)
    assert json.loads(json.dumps(found)) == found


# --- plain loops ------------------------------------------------------------------------------


def test_comparison_agrees_with_the_studys_loops_over_prompts_queries_and_heads():
    base, instruct = made(1, n_heads=5), made(2, n_heads=5)
    row = compare_rows(base, instruct, n_heads=4)[1]
    ratios = {}
    for side, pattern in (("base", base), ("instruct", instruct)):
        rfc, rsi = [], []
        for head in range(4):
            pooled = {}
            for prompt, name in enumerate(pattern.category):
                size = pattern.length[prompt]
                for query in range(size):
                    weights = pattern.pattern[1, prompt, head, query, :size]
                    pooled.setdefault(name, []).append(study_entropy(weights))
            m = {name: float(np.mean(values)) for name, values in pooled.items()}
            rfc.append(1 - m["self_referent"] / m["neutral"])
            rsi.append((m["confounder"] - m["self_referent"]) / m["neutral"])
        ratios[side] = {"rfc": np.array(rfc), "rsi": np.array(rsi)}
    for side, found in ratios.items():
        for metric, values in found.items():
            low, high = scipy_stats.t.interval(
                0.95, 3, loc=values.mean(), scale=scipy_stats.sem(values)
            )
            assert row[f"{metric}_mean_{side}"] == pytest.approx(values.mean())
            assert row[f"{metric}_std_{side}"] == pytest.approx(values.std(ddof=1))
            assert row[f"{metric}_ci_low_{side}"] == pytest.approx(low)
            assert row[f"{metric}_ci_high_{side}"] == pytest.approx(high)
    se = math.hypot(*(scipy_stats.sem(ratios[side]["rsi"]) for side in ratios))
    low, high = scipy_stats.t.interval(0.95, 3, loc=row["rsi_diff"], scale=se)
    assert (row["rsi_diff_ci_low"], row["rsi_diff_ci_high"]) == pytest.approx((low, high))


def test_candidates_agree_with_one_head_done_by_hand():
    base = made(3, per_category=4)
    instruct = Patterns(base.pattern[::-1], base.length, base.category)
    rows, summary = candidates(base, instruct, family="toy", top_k=100)
    assert len(rows) == summary["total_candidates"] == 6
    row = rows[2]
    layer, head = row["layer"], row["head"]

    def e1(pattern, name):
        found = []
        for prompt in np.flatnonzero(np.array(pattern.category) == name):
            size = pattern.length[prompt]
            block = pattern.pattern[layer, prompt, head, :size, :size]
            found.append(np.mean([study_entropy(weights) for weights in block]))
        return np.array(found)

    s_b, s_i = (e1(side, "self_referent") for side in (base, instruct))
    n_b, n_i = (e1(side, "neutral") for side in (base, instruct))
    did = (s_i - s_b) - (n_i - n_b)
    eps = 0.05 * np.median(s_b)
    dlr = np.log((s_i + eps) / (s_b + eps)) - np.log((n_i + eps) / (n_b + eps))
    assert row["did_median"] == pytest.approx(np.median(did))
    assert row["did_log_ratio_median"] == pytest.approx(np.median(dlr))
    assert row["did_iqr"] == pytest.approx(np.subtract(*np.percentile(did, [75, 25])))
    assert row["did_consistency"] == max((did > 0).mean(), (did < 0).mean())
    every = np.array([abs(r["did_log_ratio_median"]) for r in rows])
    z = (abs(np.median(dlr)) - every.mean()) / every.std(ddof=1)
    assert row["magnitude_score"] == pytest.approx(z)
    assert [r["composite_score"] for r in rows] == sorted(
        (r["composite_score"] for r in rows), reverse=True
    )


def test_figures_of_one_layer_agree_with_plain_loops_over_unequal_categories():
    pattern = made(5, per_category=4)
    pattern = Patterns(
        pattern.pattern[:, :-5], pattern.length[:-5], pattern.category[:-5]
    )  # three neutral prompts, no third person
    row = layer_form(pattern)[1]

    def blocks(name):
        for prompt in np.flatnonzero(np.array(pattern.category) == name):
            size = pattern.length[prompt]
            yield pattern.pattern[1, prompt, :, :size, :size]

    e1 = {
        name: np.array([[np.mean([study_entropy(w) for w in h]) for h in b] for b in blocks(name)])
        for name in ("self_referent", "confounder", "neutral")
    }
    e2 = {name: values.mean(axis=1) for name, values in e1.items()}
    rfc = 1 - e2["self_referent"].mean() / e2["neutral"].mean()
    each = 1 - e2["self_referent"][:3] / e2["neutral"]
    ci = scipy_stats.t.interval(0.95, 3, loc=rfc, scale=scipy_stats.sem(each))
    assert row["rfc"] == pytest.approx(rfc)
    assert row["rfc_ci"] == pytest.approx(list(ci))
    for name, values in e2.items():
        last = np.mean([block[:, 1:, -3:].mean() for block in blocks(name)])
        first = np.mean([block[:, 1:, :3].mean() for block in blocks(name)])
        assert row["mean"][name] == pytest.approx(values.mean())
        assert row["last3"][name] == pytest.approx(last)
        assert row["first3"][name] == pytest.approx(first)
    top = row["top3_heads_abs_self_minus_conf"]
    gap = e1["self_referent"].mean(axis=0) - e1["confounder"].mean(axis=0)
    assert [head for head, _ in top] == np.argsort(np.abs(gap)).tolist()
    assert [value for _, value in top] == pytest.approx(sorted(gap, key=abs))


def test_mean_weight_of_a_head_is_one_over_the_number_of_tokens(golden):
    base, _, _ = golden
    for row in layer_form(base):
        low, high = row["heatmap_self_minus_neutral_min_max"]
        assert low == pytest.approx(row["mean_inverse_T_diff"], abs=1e-7)
        assert high == pytest.approx(row["mean_inverse_T_diff"], abs=1e-7)


def test_prompts_of_one_and_two_tokens_have_figures():
    pattern = made(6, lengths=[1, 2, 4] * 4)
    for row in layer_form(pattern):
        assert all(math.isfinite(row["first3"][name]) for name in set(pattern.category))
        assert 0 < row["last3"]["neutral"] <= 1


# --- other sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_heads", "used"), [(3, 3), (28, 28), (40, 28)])
def test_at_most_28_heads_count_and_the_table_says_how_many(n_heads, used):
    sides = made(7, n_heads=n_heads, n_layers=1), made(8, n_heads=n_heads, n_layers=1)
    (row,) = compare_rows(*sides)
    assert row["n_heads_base"] == row["n_heads_instruct"] == used
    (every,) = compare_rows(*sides, n_heads=None)
    assert every["n_heads_base"] == n_heads


def test_a_single_head_has_no_spread_and_no_interval():
    (row,) = compare_rows(made(1, n_heads=1, n_layers=1), made(2, n_heads=1, n_layers=1))
    assert math.isfinite(row["rfc_diff"])
    assert math.isnan(row["rfc_std_base"])
    assert math.isnan(row["rfc_diff_ci_low"])
    assert difference_summary([row])["rfc"]["ci_excludes_zero"] == []


def test_heads_that_a_layer_lacks_do_not_count():
    table = made(9).entropies("base")
    table.entropy[:, 1, 2] = np.nan
    rows = compare_rows(table, table)
    assert [row["n_heads_base"] for row in rows] == [3, 2]
    assert rows[1]["rfc_diff"] == 0
    found, _ = candidates(table, table, family="toy", top_k=9)
    assert len(found) == 5
    assert layer_form(table)[1]["rfc"] == pytest.approx(
        1
        - np.nanmean(table.entropy[table.members("self_referent"), 1, :2].mean(axis=1), 1).mean()
        / np.nanmean(table.entropy[table.members("neutral"), 1, :2].mean(axis=1), 1).mean()
    )


def test_no_entropy_at_all_gives_zero_and_not_infinity():
    table = made(9).entropies("base")
    table.entropy[np.isfinite(table.entropy)] = 0
    assert {row["rfc_mean_base"] for row in compare_rows(table, table)} == {0}
    assert {row["rsi"] for row in layer_form(table)} == {0}
    with pytest.raises(SpecError, match="no head has a finite ratio"):
        candidates(table, table, family="toy")


def test_equal_models_differ_nowhere_and_have_candidates_in_layer_order():
    side = made(10)
    summary = difference_summary(compare_rows(side, side))
    assert (summary["rfc"]["mean"], summary["rfc"]["near_zero"]) == (0, 2)
    assert summary["rfc"]["largest_negative"] == []
    rows, _ = candidates(side, side, family="toy", top_k=6)
    assert {row["magnitude_score"] for row in rows} == {0}
    entropies = [row["baseline_entropy"] for row in rows]
    assert entropies == sorted(entropies)


def test_without_a_confounder_only_rsi_is_missing():
    side = made(11, categories=("self_referent", "neutral"))
    rows = compare_rows(side, side, confounder=None)
    assert math.isnan(rows[0]["rsi_mean_base"])
    assert math.isfinite(rows[0]["rfc_mean_base"])
    assert difference_summary(rows)["rsi"] is None
    figures, whole = layer_form(side, confounder=None)[0], layer_form(made(11))[0]
    assert math.isnan(figures["rsi"])
    assert np.isnan(figures["rsi_ci"]).all()
    assert figures["top3_heads_abs_self_minus_conf"] == []
    assert set(figures) == set(whole)


# --- one layer decides ------------------------------------------------------------------------


def test_the_layer_that_decides_a_mean_is_named():
    side = made(12, n_layers=5)
    rows = compare_rows(side, side)
    for row, value in zip(rows, (4.0, -0.02, 0.0, -0.03, 0.01), strict=True):
        row["rfc_diff"] = value
    rfc = difference_summary(rows)["rfc"]
    assert (rfc["most_influential_layer"], rfc["max_layer"], rfc["min_layer"]) == (0, 0, 3)
    assert rfc["mean_without_it"] == pytest.approx(-0.01)
    assert (rfc["near_zero"], rfc["significant_negative"], rfc["significant_positive"]) == (2, 2, 1)


def test_families_with_other_layer_counts_are_cut_and_all_pairs_are_there():
    named = {}
    for name, n_layers in (("a", 6), ("b", 4), ("c", 5)):
        named[name] = compare_rows(
            made(13, n_layers=n_layers), made(14 + n_layers, n_layers=n_layers)
        )
    found = cross_model(named, metric="rsi")["correlations"]
    assert list(found) == ["a_vs_b", "a_vs_c", "b_vs_c"]
    x, y = ([row["rsi_diff"] for row in named[name]] for name in "ac")
    assert found["a_vs_c"]["layers_compared"] == 5
    assert found["a_vs_c"]["pearson_r"] == pytest.approx(scipy_stats.pearsonr(x[:5], y)[0])


def test_a_constant_series_has_no_correlation():
    almost = [{"rfc_diff": 0.5 + value * 1e-16} for value in (0, 3, 1)]
    cross_model({"a": almost, "b": [{"rfc_diff": value} for value in (1, 2, 3)]})
    rows = [{"rfc_diff": value} for value in (0.1, -0.2, 0.3)]
    flat = [{"rfc_diff": 0.5}] * 3
    pair = cross_model({"a": rows, "b": flat})["correlations"]["a_vs_b"]
    assert math.isnan(pair["pearson_r"])
    with pytest.raises(SpecError, match="b: a layer without rfc_diff"):
        cross_model({"a": rows, "b": [{"rfc_diff": math.nan}]})


# --- a published table of candidates ----------------------------------------------------------


def test_a_table_of_ten_gives_back_mean_and_spread_of_all_heads():
    base, instruct = made(20, n_heads=20, per_category=6), made(20, n_heads=20, per_category=6)
    shuffled = np.random.default_rng(0).permutation(20)
    instruct = Patterns(instruct.pattern[:, :, shuffled], base.length, base.category)
    every, _ = candidates(base, instruct, family="toy", top_k=1000)
    found = check_candidates(every[:10], n_heads=40)
    for score, column in (("magnitude", "did_log_ratio_median"), ("baseline", "baseline_entropy")):
        values = np.abs([row[column] for row in every])
        assert found["population"][score]["mean"] == pytest.approx(values.mean())
        assert found["population"][score]["sd"] == pytest.approx(values.std(ddof=1))
    assert found["composite_max_error"] < 1e-12
    assert found["n_prompts"] == 6


@pytest.mark.parametrize(("consistency", "passes"), [(0.9, True), (26 / 30, False), (1.0, True)])
def test_consistency_passes_from_27_of_30_among_1024_heads(consistency, passes):
    base = made(20, n_heads=4)
    rows, _ = candidates(base, base, family="toy", top_k=1)
    rows[0] |= {"did_consistency": consistency, "n_self": 30, "n_neutral": 30}
    found = check_candidates(rows)
    expected = scipy_stats.binomtest(round(consistency * 30), 30).pvalue
    assert found["heads"][0]["p"] == pytest.approx(expected)
    assert found["significant"] == passes
    assert found["chance_consistency"] == pytest.approx(0.5722, abs=5e-5)
    assert math.isnan(found["population"]["magnitude"]["sd"])


# --- refused ----------------------------------------------------------------------------------


def test_a_missing_category_is_named():
    side = made(1, categories=("code", "prose", "neutral"))
    for function in (compare_rows, lambda a, b: candidates(a, b, family="toy")):
        with pytest.raises(SpecError, match="no prompt has the category 'self_referent'"):
            function(side, side)
    with pytest.raises(SpecError, match="no prompt has the category 'self_referent'"):
        layer_form(side)
    assert compare_rows(side, side, focus="code", reference="prose", confounder="neutral")


def test_models_that_do_not_belong_together_are_refused():
    with pytest.raises(SpecError, match=r"layers 0 to 1 .* 0 to 2"):
        compare_rows(made(1), made(1, n_layers=3))
    with pytest.raises(SpecError, match="3 heads per layer and instruct 4"):
        candidates(made(1), made(1, n_heads=4), family="toy")
    with pytest.raises(SpecError, match="not run on the same prompts"):
        candidates(made(1), made(1, per_category=5), family="toy")
    with pytest.raises(SpecError, match="n_heads is 0"):
        compare_rows(made(1), made(1), n_heads=0)
    with pytest.raises(SpecError, match="top_k is 0"):
        candidates(made(1), made(1), family="toy", top_k=0)
