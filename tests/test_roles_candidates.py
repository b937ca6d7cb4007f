"""Candidates for patching: every number of a row by plain loops, and what chance does."""

import itertools
import math
import statistics

import numpy as np
import pytest
import role_tables

from mlxroles.roles import candidates
from mlxroles.roles.contrast import Contrast
from mlxroles.roles.sampling import CANDIDATES, Draws
from mlxroles.roles.scales import Averages
from mlxroles.roles.table import Reading

STUDY = Contrast("self_referent", "neutral", "confounder")
COLUMNS = [
    "layer",
    "head",
    "rank",
    "focus_base_median",
    "focus_instruct_median",
    "reference_base_median",
    "reference_instruct_median",
    "did_median",
    "did_low",
    "did_high",
    "did_log_ratio_median",
    "consistency",
    "baseline_entropy",
    "magnitude_score",
    "consistency_score",
    "baseline_score",
    "composite_score",
    "z_null",
    "p",
    "p_max",
]


def found_in(tables, *, n_resamples=100, n_permutations=100, top_k=10, seed=0, contrast=STUDY):
    draws = draws_of(tables, n_resamples=n_resamples, n_permutations=n_permutations, seed=seed)
    averages = Averages.by_scale(tables, Reading())["raw"]
    return candidates.find(tables["base"].layers, averages, contrast, draws, top_k=top_k)


def draws_of(tables, *, n_resamples=100, n_permutations=100, seed=0):
    return Draws.of(
        tables["base"], seed=seed, n_resamples=n_resamples, n_permutations=n_permutations
    )


def loop_heads(tables, focus="self_referent", reference="neutral"):
    """Mean entropies per (layer, head): (f_base, f_instruct, r_base, r_instruct), each a list."""
    kept = {name: role_tables.loop_entropies(table, Reading()) for name, table in tables.items()}
    base = tables["base"]
    members = {
        name: [i for i, one in enumerate(base.category) if one == name]
        for name in (focus, reference)
    }
    return {
        (layer, head): [
            [sum(kept[m][i, layer, head]) / len(kept[m][i, layer, head]) for i in members[name]]
            for name in (focus, reference)
            for m in ("base", "instruct")
        ]
        for layer, head in np.ndindex(base.entropy.shape[1:3])
    }


def loop_measures(f_base, f_instruct, r_base, r_instruct, epsilon):
    ratios = [
        math.log((i + epsilon) / (b + epsilon)) for b, i in zip(f_base, f_instruct, strict=True)
    ]
    others = [
        math.log((i + epsilon) / (b + epsilon)) for b, i in zip(r_base, r_instruct, strict=True)
    ]
    log_ratio = statistics.median(ratios) - statistics.median(others)
    f_change = [i - b for b, i in zip(f_base, f_instruct, strict=True)]
    r_change = [i - b for b, i in zip(r_base, r_instruct, strict=True)]
    ahead = sum((f > r) + 0.5 * (f == r) for f in f_change for r in r_change)
    share = ahead / (len(f_change) * len(r_change))
    return log_ratio, max(share, 1 - share)


def loop_scores(by_head):
    """Measures and scores of every head, in the order of layers and heads."""
    rows = []
    for place, (f_base, f_instruct, r_base, r_instruct) in by_head.items():
        baseline = statistics.median(f_base)
        measures = loop_measures(f_base, f_instruct, r_base, r_instruct, 0.05 * baseline)
        rows.append([place, *measures, baseline])
    columns = [[abs(row[1]) for row in rows], [row[2] for row in rows], [-row[3] for row in rows]]
    ruler = [(statistics.mean(column), statistics.stdev(column)) for column in columns]
    for i, row in enumerate(rows):
        parts = [(c[i] - mean) / sd for c, (mean, sd) in zip(columns, ruler, strict=True)]
        row += [*parts, sum(parts)]
    return rows, ruler


def loop_z(log_ratio, consistency, ratios, others, ruler):
    """How far a composite lies above what the scatter inside both categories would give."""
    n, m = len(ratios), len(others)
    away = [abs(x - statistics.median(part)) for part in (ratios, others) for x in part]
    of_median = math.sqrt(math.pi / 2) * math.sqrt(1 / n + 1 / m)
    spread = math.sqrt(math.pi / 2) * statistics.mean(away) * of_median / ruler[0][1]
    spread += math.sqrt((n + m + 1) / (12 * n * m)) / ruler[1][1]
    found = abs(log_ratio) / ruler[0][1] + (consistency - 0.5) / ruler[1][1]
    return (found - spread * math.sqrt(2 / math.pi)) / (spread * math.sqrt(1 - 2 / math.pi))


@pytest.fixture(scope="module")
def tables():
    return role_tables.random_tables(11, layers=3, heads=4, per_category=7, effect=0.2)


def test_every_number_of_a_row_is_a_plain_loop(tables):
    found = found_in(tables, top_k=12)
    by_head = loop_heads(tables)
    rows, _ = loop_scores(by_head)
    rows.sort(key=lambda row: -row[-1])
    assert found["paired"] is False
    assert found["n_heads"] == len(found["rows"]) == 12
    for rank, (row, expected) in enumerate(zip(found["rows"], rows, strict=True), start=1):
        place, log_ratio, consistency, baseline, *scores = expected
        assert list(row) == COLUMNS
        assert (row["layer"], row["head"], row["rank"]) == (*place, rank)
        f_base, f_instruct, r_base, r_instruct = by_head[place]
        f_change = [i - b for b, i in zip(f_base, f_instruct, strict=True)]
        r_change = [i - b for b, i in zip(r_base, r_instruct, strict=True)]
        written = {
            "focus_base_median": statistics.median(f_base),
            "focus_instruct_median": statistics.median(f_instruct),
            "reference_base_median": statistics.median(r_base),
            "reference_instruct_median": statistics.median(r_instruct),
            "did_median": statistics.median(f_change) - statistics.median(r_change),
            "did_log_ratio_median": log_ratio,
            "consistency": consistency,
            "baseline_entropy": baseline,
            "magnitude_score": scores[0],
            "consistency_score": scores[1],
            "baseline_score": scores[2],
            "composite_score": scores[3],
        }
        assert {name: row[name] for name in written} == pytest.approx(written, rel=1e-9, abs=1e-12)


def test_interval_is_that_of_resampled_prompts(tables):
    found = found_in(tables, n_resamples=60)["rows"]
    by_head = loop_heads(tables)
    counts = draws_of(tables, n_resamples=60).counts[1:].astype(int)
    base = tables["base"]
    focus, reference = (base.members(name) for name in ("self_referent", "neutral"))
    for row in found[:4]:
        f_base, f_instruct, r_base, r_instruct = by_head[row["layer"], row["head"]]
        samples = []
        for drawn in counts:
            medians = []
            for members, before, after in (
                (focus, f_base, f_instruct),
                (reference, r_base, r_instruct),
            ):
                change = [
                    after[k] - before[k] for k, i in enumerate(members) for _ in range(drawn[i])
                ]
                medians.append(statistics.median(change))
            samples.append(medians[0] - medians[1])
        low, high = np.quantile(samples, [0.025, 0.975])
        assert (row["did_low"], row["did_high"]) == pytest.approx((low, high), rel=1e-9)


def test_p_values_are_shares_of_permutations(tables):
    n = 40
    found = found_in(tables, n_permutations=n, top_k=12, seed=5)
    by_head = loop_heads(tables)
    rows, ruler = loop_scores(by_head)
    rng = np.random.default_rng([5, CANDIDATES])
    reached, any_head, largest = dict.fromkeys(by_head, 0), dict.fromkeys(by_head, 0), []
    observed = {}
    for k in range(n + 1):
        order = rng.permutation(14) if k else np.arange(14)
        composite, z = {}, {}
        for row in rows:
            place, baseline = row[0], row[3]
            f_base, f_instruct, r_base, r_instruct = by_head[place]
            before, after = f_base + r_base, f_instruct + r_instruct
            first, second = order[:7], order[7:]
            parts = [
                [before[i] for i in first],
                [after[i] for i in first],
                [before[i] for i in second],
                [after[i] for i in second],
            ]
            log_ratio, consistency = loop_measures(*parts, 0.05 * baseline)
            measures = (abs(log_ratio), consistency, -baseline)
            composite[place] = sum(
                (value - mean) / sd for value, (mean, sd) in zip(measures, ruler, strict=True)
            )
            e = 0.05 * baseline
            ratios, others = (
                [math.log((after[i] + e) / (before[i] + e)) for i in group]
                for group in (first, second)
            )
            z[place] = loop_z(log_ratio, consistency, ratios, others, ruler)
        if not k:
            observed = z
            continue
        largest.append(max(z.values()))
        for row in rows:
            reached[row[0]] += composite[row[0]] >= row[-1] - 1e-9
            any_head[row[0]] += largest[-1] >= observed[row[0]] - 1e-9
    for row in found["rows"]:
        place = row["layer"], row["head"]
        assert row["z_null"] == pytest.approx(observed[place])
        assert row["p"] == pytest.approx((1 + reached[place]) / (1 + n))
        assert row["p_max"] == pytest.approx((1 + any_head[place]) / (1 + n))
    assert found["null"]["n"] == n
    assert found["null"]["max_z_95"] == pytest.approx(np.quantile(largest, 0.95))
    assert found["significant"] == sum(row["p_max"] < 0.05 for row in found["rows"])


def test_a_planted_head_comes_first_and_is_the_only_one_that_chance_does_not_reach():
    tables = planted(seed=2, strength=3.0)
    found = found_in(tables, n_permutations=400)
    first = found["rows"][0]
    assert (first["layer"], first["head"]) == (1, 2)
    assert first["p_max"] <= 0.01
    assert first["consistency"] > 0.9
    assert first["did_high"] < 0
    assert found["significant"] == 1
    assert first["z_null"] > found["null"]["max_z_95"]


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_head_is_found_beside_heads_of_hardly_any_entropy(seed, strength):
    """Their ratios are wild whatever is permuted; a common largest score would be theirs."""
    tables = planted(seed, strength)
    rng = np.random.default_rng(seed)
    for table in tables.values():
        for layer, head in ((0, 0), (3, 5)):
            wild = 1e-4 * np.exp(2 * rng.normal(size=(len(table.category), 1)))
            table.entropy[:, layer, head] *= wild.astype(np.float32)
    found = found_in(tables, n_permutations=400)
    assert found["significant"] == 1
    rows = {(row["layer"], row["head"]): row for row in found["rows"]}
    assert rows[1, 2]["p_max"] == pytest.approx(1 / 401)
    assert rows[1, 2]["z_null"] > found["null"]["max_z_95"]


def test_without_an_effect_one_ranking_in_twenty_has_a_significant_head():
    """Over 100 data sets; 11 alarms or more have a chance of 1 %, none at all one of .6 %."""
    alarms, below_half = 0, 0
    for seed in range(100):
        tables = role_tables.random_tables(9000 + seed, layers=2, heads=4, per_category=10)
        found = found_in(tables, n_permutations=200, seed=seed)
        alarms += found["significant"] > 0
        below_half += min(row["p_max"] for row in found["rows"]) < 0.5
    assert 1 <= alarms <= 10
    assert 35 <= below_half <= 65


def planted(seed, strength):
    """Random tables, one head of which is sharpened by the instruct model for the focus alone."""
    tables = role_tables.random_tables(seed, layers=4, heads=6, per_category=16)
    instruct = tables["instruct"]
    focus = instruct.members("self_referent")
    instruct.entropy[focus, 1, 2] *= np.float32(1 / (1 + strength))
    return tables


@pytest.mark.parametrize("n_focus", [1, 2, 5])
@pytest.mark.parametrize("n_reference", [1, 3, 4])
def test_chance_consistency_is_that_of_all_orders(n_focus, n_reference):
    folded = []
    for focus in itertools.combinations(range(n_focus + n_reference), n_focus):
        others = [i for i in range(n_focus + n_reference) if i not in focus]
        share = sum(f > r for f in focus for r in others) / (n_focus * n_reference)
        folded.append(max(share, 1 - share))
    expected = sum(folded) / len(folded)
    assert candidates.chance_consistency(n_focus, n_reference) == pytest.approx(expected, rel=1e-12)


def test_chance_consistency_of_thirty_prompts_is_near_the_normal_approximation():
    # U / (n m) has mean 1/2 and variance (n + m + 1) / (12 n m); the mean of |N(0, s)| is
    # s sqrt(2 / pi).
    spread = math.sqrt(61 / (12 * 900))
    expected = 0.5 + spread * math.sqrt(2 / math.pi)
    assert candidates.chance_consistency(30, 30) == pytest.approx(expected, abs=2e-4)


def test_one_model_or_no_contrast_has_no_candidates(tables):
    assert found_in(tables, contrast=None) is None
    draws = draws_of(tables)
    alone = Averages.by_scale({"base": tables["base"]}, Reading())["raw"]
    assert candidates.find((0, 1, 2), alone, STUDY, draws) is None


def test_heads_that_are_not_there_or_have_no_entropy_are_not_ranked():
    tables = role_tables.random_tables(4, layers=2, heads=3, per_category=5)
    for table in tables.values():
        table.entropy[:, 0, 1] = np.nan
        table.entropy[:, 1, 0] = np.where(np.isnan(table.entropy[:, 1, 0]), np.nan, 0.0)
    found = found_in(tables)
    assert found["n_heads"] == 4
    places = [(row["layer"], row["head"]) for row in found["rows"]]
    assert sorted(places) == [(0, 0), (0, 2), (1, 1), (1, 2)]


def test_a_category_of_one_prompt_has_no_interval():
    tables = role_tables.random_tables(6, layers=2, heads=3, per_category=5)
    keep = [0, *range(5, 20)]
    tables = {name: table.chosen(keep) for name, table in tables.items()}
    found = found_in(tables)
    assert all(math.isnan(row["did_low"]) and math.isnan(row["did_high"]) for row in found["rows"])
    assert found["significant"] == 0
