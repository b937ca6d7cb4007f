"""Statistics of every head against plain loops, resamples and enumerations."""

import itertools
import math
import statistics

import numpy as np
import pytest
import role_tables
from role_twins import (
    PERMUTATIONS,
    RESAMPLES,
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

from mlxroles.roles import document
from mlxroles.roles.contrast import Contrast
from mlxroles.roles.table import Reading


@pytest.fixture(scope="module")
def tables():
    return five_per_category()


@pytest.fixture(scope="module")
def doc(tables):
    return build(tables)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("what", ["base", "instruct", "difference"])
def test_every_head_is_a_plain_loop(tables, doc, scale, what):
    table = tables["base"]
    twins = {m: Twin(t, Reading(), scale == "normalised") for m, t in tables.items()}

    def value(i, layer, head):
        if what == "difference":
            return twins["instruct"].e1(i, layer, head) - twins["base"].e1(i, layer, head)
        return twins[what].e1(i, layer, head)

    found = doc["heads"]["what"][what][scale]
    assert found["n"] == len(found["top"]) == 7
    places = sorted((row["layer"], row["head"]) for row in found["top"])
    assert places == [(layer, head) for layer in range(2) for head in range(4)][:7]
    p_values = {}
    for row in found["top"]:
        focus, reference, confounder = (
            [value(i, row["layer"], row["head"]) for i in prompts] for prompts in roles_of(table)
        )
        p_values[row["layer"], row["head"]] = exact_p(focus, reference)
        spread = math.sqrt((statistics.variance(focus) + statistics.variance(reference)) / 2)
        pairs = [(f, r) for f in focus for r in reference]
        delta = mean([(f > r) - (f < r) for f, r in pairs])
        lengths = [table.length[table.members(c)] for c in (STUDY.focus, STUDY.reference)]
        written = {
            "focus": mean(focus),
            "reference": mean(reference),
            "confounder": mean(confounder),
            "diff": mean(focus) - mean(reference),
            "d": (mean(focus) - mean(reference)) / spread,
            "delta": delta,
            "p": exact_p(focus, reference),
            "p_same_length": exact_p_same_length(
                list(zip(focus, lengths[0], strict=True)),
                list(zip(reference, lengths[1], strict=True)),
            ),
        }
        written["diff_same_length"] = same_length_difference(
            list(zip(focus, lengths[0], strict=True)),
            list(zip(reference, lengths[1], strict=True)),
        )
        shown = {name: row[name] for name in written}
        assert shown == pytest.approx(written, rel=1e-9, abs=1e-12, nan_ok=True)
        assert row["d_low"] <= row["d_high"]
        assert -1 <= row["delta_low"] <= row["delta"] <= row["delta_high"] <= 1
    p = [p_values[row["layer"], row["head"]] for row in found["top"]]
    q = false_discovery(p)
    assert [row["q"] for row in found["top"]] == pytest.approx(q)
    assert found["significant_bh"] == sum(one < 0.05 for one in q)
    assert found["below_05"] == sum(one < 0.05 for one in p)
    assert (found["n_permutations"], found["exact"]) == (252, True)
    assert found["smallest_q"] == pytest.approx(7 * 2 / 252)
    assert found["expected"] == pytest.approx(0.05 * 7)
    order = [(row["p"], -abs(row["d"])) for row in found["top"]]
    assert order == sorted(order)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("what", ["base", "instruct", "difference"])
def test_ratios_of_every_head_are_loops_over_resamples(tables, doc, scale, what):
    table = tables["base"]
    twins = {m: Twin(t, Reading(), scale == "normalised") for m, t in tables.items()}
    resamples = [roles_of(table), *(roles_of(table, drawn) for drawn in counts_of(table))]

    def ratios(model, drawn, place):
        f, r, c = (twins[model].head_mean(prompts, *place) for prompts in drawn)
        return 1 - f / r, (c - f) / r, math.log(r / f)

    for row in doc["heads"]["what"][what][scale]["top"]:
        place = row["layer"], row["head"]
        if what == "difference":
            pairs = [(ratios("base", d, place), ratios("instruct", d, place)) for d in resamples]
            found = [[i - b for b, i in zip(*pair, strict=True)] for pair in pairs]
        else:
            found = [ratios(what, drawn, place) for drawn in resamples]
        value, *samples = found
        for k, name in enumerate(("rfc", "rsi")):
            bounds = np.quantile([sample[k] for sample in samples], [0.025, 0.975])
            shown = row[name], row[f"{name}_low"], row[f"{name}_high"]
            assert shown == pytest.approx((value[k], *bounds), rel=1e-9, abs=1e-12)
        assert row["log_ratio"] == pytest.approx(value[2], rel=1e-9, abs=1e-12)


def test_equal_length_counts_heads_that_differ_alike_there():
    """All heads differ; among prompts of equal length half of them the other way round."""
    rng = np.random.default_rng(3)
    sizes = [4] * 24 + [8] * 6 + [4] * 6 + [8] * 24
    category = ["self_referent"] * 30 + ["neutral"] * 30
    table = role_tables.entropies_of(
        "model", [role_tables.rows_of(rng.normal(size=(1, 4, n, n))) for n in sizes], category
    )
    for i, n in enumerate(sizes):
        own = n * 0.2 + 0.02 * rng.normal(size=(4, 1))
        sign = np.array([1, 1, -1, -1])[:, None]
        table.entropy[i, 0, :, :n] = own + (0.1 * sign if category[i] == "self_referent" else 0)
    found = build({"model": table}, contrast=Contrast("self_referent", "neutral"), n=2000)
    found = found["heads"]["what"]["model"]["raw"]
    assert found["significant_bh"] == 4
    assert found["significant_same_length"] == 2
    assert found["exact"] is False
    assert found["n_permutations"] == 2000
    assert found["smallest_q"] == pytest.approx(4 / 2001)
    for row in found["top"]:
        assert row["diff"] < 0
        assert np.sign(row["diff_same_length"]) == (1 if row["head"] < 2 else -1)
        assert row["q_same_length"] < 0.05
        assert row["rsi"] is row["rsi_low"] is row["rsi_high"] is None


def test_familywise_p_of_heads_is_that_of_the_largest_standardised_difference(tables, doc):
    """Over all 252 arrangements, as Westfall and Young have it."""
    table = tables["base"]
    twin = Twin(table, Reading(), False)
    places = [(layer, head) for layer in range(2) for head in range(4)][:7]
    focus, reference, _ = roles_of(table)
    values = {place: [twin.e1(i, *place) for i in (*focus, *reference)] for place in places}
    by_place = {}
    for place, one in values.items():
        by_place[place] = []
        for chosen in itertools.combinations(range(10), 5):
            picked = [one[i] for i in chosen]
            by_place[place].append(
                mean(picked) - mean([v for i, v in enumerate(one) if i not in chosen])
            )
    spread = {place: math.sqrt(mean([t * t for t in ts])) for place, ts in by_place.items()}
    largest = [max(abs(by_place[place][k]) / spread[place] for place in places) for k in range(252)]
    for row in doc["heads"]["what"]["base"]["raw"]["top"]:
        place = row["layer"], row["head"]
        own = abs(by_place[place][0]) / spread[place]
        assert row["p_max"] == pytest.approx(sum(one >= own - 1e-9 for one in largest) / 252)


def test_interval_of_cohens_d_is_that_of_resampled_prompts(tables, doc):
    table = tables["base"]
    twin = Twin(table, Reading(), False)
    counts = counts_of(table)
    for row in doc["heads"]["what"]["base"]["raw"]["top"]:
        samples = []
        for drawn in counts:
            groups = roles_of(table, drawn)[:2]
            one, other = ([twin.e1(i, row["layer"], row["head"]) for i in g] for g in groups)
            spread = math.sqrt((statistics.variance(one) + statistics.variance(other)) / 2)
            if spread > 1e-9:
                samples.append((mean(one) - mean(other)) / spread)
        bounds = np.quantile(samples, [0.025, 0.975])
        assert (row["d_low"], row["d_high"]) == pytest.approx(bounds, rel=1e-6, abs=1e-9)


def test_all_heads_are_listed_for_every_model_and_scale(tables, doc):
    rows = role_tables.all_rows(doc, dict(reversed(tables.items())))
    assert len(rows) == 3 * 2 * 7
    _, results = document.build_with_heads(
        tables,
        reading=Reading(),
        contrast=STUDY,
        n_resamples=RESAMPLES,
        n_permutations=PERMUTATIONS,
    )
    assert rows == results.rows()
    names = {"base": "base", "instruct": "instruct", "difference": "instruct - base"}
    assert {row["what"] for row in rows} == set(names.values())
    for (key, what), scale in itertools.product(names.items(), SCALES):
        listed = [row for row in rows if (row["what"], row["scale"]) == (what, scale)]
        assert len(listed) == 7
        top = doc["heads"]["what"][key][scale]["top"]
        for row in top:
            assert {"what": what, "scale": scale, **row} in listed


def test_heads_with_hardly_any_reference_entropy_are_flagged():
    tables = role_tables.random_tables(9, layers=3, heads=3, per_category=4)
    for layer, nats in ((1, 0.0105), (2, 0.0095)):
        reference = tables["instruct"].members("neutral")
        now = tables["instruct"].per_head(Reading())[reference, layer, 1].mean()
        tables["instruct"].entropy[reference, layer, 1] *= np.float32(nats / now)
    tables["base"].entropy[tables["base"].members("self_referent"), 0, 0] *= np.float32(0.005)
    doc = build(tables)
    assert doc["heads"]["flagged"] == [[2, 1]]
    flagged = [r for r in role_tables.all_rows(doc, tables) if r["flagged"]]
    assert {(row["layer"], row["head"]) for row in flagged} == {(2, 1)}
    assert any("1 of 9 heads have a reference entropy below .01 nat" in n for n in doc["notes"])
