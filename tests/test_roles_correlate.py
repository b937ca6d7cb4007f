"""Correlations of families over layers: published figures, closed forms, and what they rest on."""

import csv
import itertools
import json
import math
import statistics

import numpy as np
import pytest
import role_tables
from scipy import stats as scipy_stats

from mlxroles.errors import SpecError, StoreError
from mlxroles.roles import compare, correlate, document
from mlxroles.roles.contrast import Contrast
from mlxroles.roles.correlate import Profile
from mlxroles.roles.table import Reading


def profile(values, layers=None):
    return Profile(tuple(layers or range(len(values))), tuple(map(float, values)))


def noise(seed, n=32):
    return np.random.default_rng(seed).normal(size=n)


def only_pair(a, b):
    return correlate.correlate({"a": a, "b": b}, "rfc")["pairs"][0]


# --- reading ----------------------------------------------------------------------------------


def study_rows(shared, name="llama_detailed_comparison.csv"):
    with (shared / "data" / "self-referent-study" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_published_rows_and_their_mean(shared):
    rows = study_rows(shared)
    found = correlate.from_rows(rows, "rfc")
    assert found.layers == tuple(range(32))
    assert found.values == tuple(float(row["rfc_diff"]) for row in rows)
    assert found.ci == tuple(
        (float(row["rfc_diff_ci_low"]), float(row["rfc_diff_ci_high"])) for row in rows
    )
    family = correlate.correlate({"llama": found}, "rfc")["families"]["llama"]
    assert family["mean"] == pytest.approx(-0.023269, abs=5e-7)
    assert family["n_layers"] == 32


def test_two_published_versions_against_scipy(shared):
    versions = ("llama_detailed_comparison.csv", "llama_detailed_comparison_20251019.csv")
    named = {name: correlate.from_rows(study_rows(shared, name), "rfc") for name in versions}
    (found,) = correlate.correlate(named, "rfc")["pairs"]
    x, y = (one.values for one in named.values())
    pearson, spearman = scipy_stats.pearsonr(x, y), scipy_stats.spearmanr(x, y)
    assert (found["a"], found["b"], found["aligned"]) == (*versions, "layer")
    assert found["pearson_r"] == pytest.approx(pearson.statistic, rel=1e-9)
    assert found["pearson_p"] == pytest.approx(pearson.pvalue, rel=1e-6)
    assert found["spearman_r"] == pytest.approx(spearman.statistic, rel=1e-9)
    assert found["spearman_p"] == pytest.approx(spearman.pvalue, rel=1e-6)


def test_rows_of_our_own_comparison():
    tables = role_tables.random_tables(1, layers=3, heads=2, per_category=5)
    contrast = Contrast("self_referent", "neutral")
    doc = document.build(
        tables, reading=Reading(), contrast=contrast, n_resamples=20, n_permutations=20
    )
    rows = compare.rows(doc)
    found = correlate.from_rows(rows, "rfc")
    estimate = doc["raw"]["difference"]["rfc"]["ratio_of_means"]
    assert list(found.values) == estimate["value"]
    assert [list(pair) for pair in found.ci] == estimate["ci"]
    empty = correlate.from_rows([{**row, "rsi_diff": ""} for row in rows], "rsi")
    assert all(map(math.isnan, empty.values))


def test_rows_without_intervals():
    rows = [{"layer": "0", "rsi_diff": "0.5"}, {"layer": "1", "rsi_diff": None}]
    found = correlate.from_rows(rows, "rsi")
    assert found.layers == (0, 1)
    assert found.values[0] == 0.5
    assert math.isnan(found.values[1])
    assert found.ci is None


@pytest.mark.parametrize(
    ("rows", "metric", "error", "message"),
    [
        ([], "rfc", StoreError, "has no rows; expected one per layer"),
        ([{"layer": 0}], "rfc", StoreError, "lacks the column rfc_diff"),
        ([{"rfc_diff": 0}], "rfc", StoreError, "lacks the column layer"),
        (
            [{"layer": 0, "rfc_diff": "x\n"}],
            "rfc",
            StoreError,
            r"has 'x\\n' in the column rfc_diff",
        ),
        ([{"layer": "", "rfc_diff": 1}], "rfc", StoreError, "has '' in the column layer"),
        ([{"layer": 0, "rfc_diff": 1}], "rfx", SpecError, "the metric 'rfx' is none of rfc, rsi"),
    ],
)
def test_rows_that_are_no_comparison_are_refused(rows, metric, error, message):
    with pytest.raises(error, match=message):
        correlate.from_rows(rows, metric)


def test_nothing_to_correlate_is_refused():
    with pytest.raises(SpecError, match="no family to correlate"):
        correlate.correlate({}, "rfc")


# --- families ---------------------------------------------------------------------------------


def test_a_family_is_its_layers_in_plain_numbers():
    values = noise(1, 12).tolist()
    family = correlate.correlate({"x": profile(values)}, "rfc")["families"]["x"]
    centre = statistics.mean(values)
    moved = [value - centre for value in values]
    lag1 = sum(a * b for a, b in itertools.pairwise(moved)) / sum(a * a for a in moved)
    n_eff = min(12 * (1 - lag1) / (1 + lag1), 12)
    half = scipy_stats.t.ppf(0.975, n_eff - 1) * statistics.stdev(values) / math.sqrt(n_eff)
    without = [statistics.mean(values[:i] + values[i + 1 :]) for i in range(12)]
    most = max(range(12), key=lambda i: abs(without[i] - centre))
    assert family == {
        "n_layers": 12,
        "mean": pytest.approx(centre),
        "median": pytest.approx(statistics.median(values)),
        "sd": pytest.approx(statistics.stdev(values)),
        "mean_ci": pytest.approx([centre - half, centre + half], rel=1e-6),
        "without": {"layer": most, "mean": pytest.approx(without[most])},
        "decided_by_one_layer": abs(without[most]) < abs(centre) / 2 or without[most] * centre < 0,
    }


def test_a_drift_over_layers_widens_the_interval_of_the_mean():
    values = noise(3)
    drift, shuffled = np.sort(values), values
    width = [
        np.diff(correlate.correlate({"x": profile(one)}, "rfc")["families"]["x"]["mean_ci"])[0]
        for one in (drift, shuffled)
    ]
    assert width[0] > 2 * width[1]


def test_one_layer_that_decides_is_named():
    """The published Qwen figure: +1.36 in layer 0 makes a mean of +.0475 of one of -.0012."""
    values = [1.36, *([-0.0012] * 27)]
    family = correlate.correlate({"qwen": profile(values)}, "rfc")["families"]["qwen"]
    assert family["mean"] == pytest.approx(0.0474, abs=1e-4)
    assert family["without"] == {"layer": 0, "mean": pytest.approx(-0.0012)}
    assert family["decided_by_one_layer"] is True
    even = correlate.correlate({"x": profile([0.1, 0.11, 0.09, 0.1])}, "rfc")["families"]["x"]
    assert even["decided_by_one_layer"] is False


@pytest.mark.parametrize("values", [[], [0.3], [math.nan, 0.3], [0.2] * 5])
def test_families_with_nothing_to_spread(values):
    family = correlate.correlate({"x": profile(values)}, "rfc")["families"]["x"]
    known = [value for value in values if not math.isnan(value)]
    assert family["n_layers"] == len(known)
    assert family["mean_ci"] is None
    assert family["decided_by_one_layer"] is False
    assert (family["without"] is None) == (len(known) < 2)
    assert math.isnan(family["sd"]) == (len(known) < 2)


# --- pairs ------------------------------------------------------------------------------------


def test_layers_beside_each_other_when_both_have_the_same():
    x, y = noise(1), noise(2)
    found = only_pair(profile(x), profile(y))
    assert (found["aligned"], found["n_layers"]) == ("layer", 32)
    assert found["pearson_r"] == pytest.approx(scipy_stats.pearsonr(x, y).statistic)
    without = [scipy_stats.pearsonr(np.delete(x, i), np.delete(y, i)).statistic for i in range(32)]
    most = int(np.argmax(np.abs(np.array(without) - found["pearson_r"])))
    assert found["leave_one_out"] == pytest.approx(without)
    assert found["most_influential_layer"] == most
    assert found["r_without_it"] == pytest.approx(without[most])


def test_a_deeper_family_is_read_at_the_depths_of_the_other():
    few, many = noise(4, 28), noise(5, 32)
    found = only_pair(profile(many), profile(few))
    depths = [layer / 27 * 31 for layer in range(28)]
    read = []
    for depth in depths:
        below = min(math.floor(depth + 1e-12), 30)
        part = depth - below
        read.append((1 - part) * many[below] + part * many[below + 1])
    assert (found["aligned"], found["n_layers"]) == ("relative depth", 28)
    assert found["pearson_r"] == pytest.approx(scipy_stats.pearsonr(read, few).statistic)
    other_way = only_pair(profile(few), profile(many))
    assert other_way["pearson_r"] == pytest.approx(found["pearson_r"])


def test_a_shape_over_depth_is_the_same_at_any_number_of_layers():
    def shape(n):
        return profile([abs(layer / (n - 1) - 0.5) for layer in range(n)])

    found = only_pair(shape(9), shape(33))
    assert found["pearson_r"] == pytest.approx(1.0)


def test_layers_without_a_number_are_left_out():
    x, y = noise(6), noise(7)
    x[3], y[10] = math.nan, math.nan
    found = only_pair(profile(x), profile(y))
    kept = [i for i in range(32) if i not in (3, 10)]
    assert found["n_layers"] == 30
    assert found["pearson_r"] == pytest.approx(scipy_stats.pearsonr(x[kept], y[kept]).statistic)
    assert found["most_influential_layer"] in kept


def test_every_two_families_once():
    named = {name: profile(noise(i)) for i, name in enumerate("xyz")}
    found = correlate.correlate(named, "rsi")
    assert found["metric"] == "rsi"
    assert [(one["a"], one["b"]) for one in found["pairs"]] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert list(found["families"]) == list("xyz")
    json.dumps(found)


# --- verdicts ---------------------------------------------------------------------------------


def test_noise_shows_no_correlation():
    assert only_pair(profile(noise(1)), profile(noise(2)))["verdict"] == "no correlation shown"


def test_agreement_layer_by_layer_stands():
    x = noise(1)
    found = only_pair(profile(x), profile(x + 0.5 * noise(2)))
    assert found["verdict"] == (
        "correlated layer by layer, beyond a trend over depth that both share"
    )


def test_a_shared_trend_is_named():
    depth = np.linspace(-2, 2, 32)
    found = only_pair(profile(depth + 0.5 * noise(1)), profile(depth + 0.5 * noise(2)))
    assert found["pearson_p"] < 1e-6
    assert "a trend over depth that both share explains it" in found["verdict"]
    assert found["verdict"].startswith("nominally correlated, but ")


def test_a_correlation_of_one_layer_is_named():
    x, y = noise(1), noise(2)
    x[5], y[5] = 30, 30
    found = only_pair(profile(x), profile(y))
    assert found["most_influential_layer"] == 5
    assert "it rests on layer 5" in found["verdict"]
    assert abs(found["r_without_it"]) < 0.4 < found["pearson_r"]


def test_smooth_profiles_leave_few_independent_layers():
    angle = np.linspace(0, 2 * math.pi, 32)
    found = only_pair(profile(np.sin(angle)), profile(np.sin(angle + 1.1)))
    assert found["pearson_p"] < 0.05
    assert "neighbouring layers depend on each other" in found["verdict"]


def test_few_layers_allow_no_test_by_shifts():
    """Of 6 shifts one is none at all: p cannot be below 1 / 6, whatever the profiles are."""
    x = noise(4, 6)
    found = only_pair(profile(x), profile(x + 0.01 * noise(5, 6)))
    assert found["pearson_r"] > 0.999
    assert found["shift_p"] == pytest.approx(1 / 6)
    assert found["verdict"] == (
        "correlated layer by layer, beyond a trend over depth that both share; 6 layers allow only "
        "6 shifts (smallest p .167): no test by shifts"
    )


@pytest.mark.parametrize(("n", "tested"), [(20, False), (21, True)])
def test_shifts_are_tested_from_21_layers(n, tested):
    x = noise(1, n)
    found = only_pair(profile(x), profile(x + 0.1 * noise(2, n)))
    assert found["verdict"].startswith("correlated layer by layer")
    assert ("no test by shifts" in found["verdict"]) is not tested


def test_few_layers_in_one_sweep_are_no_correlation():
    x = np.array([0.0, 0.1, 0.3, 0.6, 1.0, 1.5])
    found = only_pair(profile(x), profile(x + 0.05 * noise(2, 6)))
    assert not found["n_eff_p"] < 0.05
    assert found["pearson_p"] < 0.05
    assert "neighbouring layers depend on each other" in found["verdict"]
    assert found["verdict"].startswith("nominally correlated, but ")
    assert found["verdict"].endswith("(smallest p .167): no test by shifts")
    assert "shifts of the profiles" not in found["verdict"]


def test_four_layers_are_not_told_that_a_trend_explains_them():
    found = only_pair(profile([0, 1, 0, 1.1]), profile([0, 1.02, 0.01, 1.1]))
    assert math.isnan(found["detrended_p"])
    assert "a trend over depth that both share explains it" not in found["verdict"]
    assert "a trend over depth takes up all of 4 layers: no test without it" in found["verdict"]


def test_shifts_that_correlate_as_much_are_counted():
    """A wave of period 8 over 32 layers: seven shifts (4, 8, ... 28) give the same again."""
    wave = np.sin(np.arange(32) * math.pi / 4)
    found = only_pair(profile(wave), profile(wave + 1e-3 * noise(1)))
    ahead = [abs(np.corrcoef(wave, np.roll(wave + 1e-3 * noise(1), k))[0, 1]) for k in range(32)]
    count = sum(one >= ahead[0] - 1e-9 for one in ahead) - 1
    assert count >= 2
    expected = f"{count} of 31 shifts of the profiles against each other correlate as much"
    assert expected in found["verdict"]


@pytest.mark.parametrize("n", [6, 32])
def test_the_same_profile_twice_is_called_that(n):
    x = noise(1, n)
    x[2] = math.nan
    found = only_pair(profile(x), profile(x))
    assert found["verdict"] == "the same numbers twice: a correlation of these says nothing"
    assert found["pearson_r"] == pytest.approx(1)
    twice = only_pair(profile(x), profile(2 * x))
    assert "the same numbers" not in twice["verdict"]


def test_interval_is_of_the_effective_number_of_layers_and_the_document_says_so():
    x = np.cumsum(noise(1))
    found = correlate.correlate({"a": profile(x), "b": profile(x + noise(2))}, "rfc")
    assert "n_eff" in found["pearson_interval"]
    (pair,) = found["pairs"]
    assert pair["n_eff"] < 16
    half = scipy_stats.norm.ppf(0.975) / math.sqrt(pair["n_eff"] - 3)
    bounds = np.tanh(np.arctanh(pair["pearson_r"]) + np.array([-half, half]))
    assert (pair["pearson_low"], pair["pearson_high"]) == pytest.approx(tuple(bounds))


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [0.5] * 8, []])
def test_too_little_to_correlate(values):
    found = only_pair(profile(values), profile(values))
    assert found["verdict"].startswith("no correlation can be computed")
    assert math.isnan(found["pearson_r"])
    assert math.isnan(found["r_without_it"])
    assert found["most_influential_layer"] is None


def test_depth_of_layers_with_gaps():
    """Layers 3, 7, ... of a hybrid model lie where their numbers say."""
    wide = profile([layer / 15 for layer in range(16)])
    hybrid = profile([0.1, 0.9, 0.2, 0.8], layers=[3, 7, 11, 15])
    found = only_pair(wide, hybrid)
    expected = scipy_stats.pearsonr([3 / 15, 7 / 15, 11 / 15, 1.0], hybrid.values).statistic
    assert found["pearson_r"] == pytest.approx(expected)
