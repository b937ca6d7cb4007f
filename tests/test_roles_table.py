"""Averages of stored entropies against plain loops, for every reading."""

import itertools
import math

import numpy as np
import pytest
import role_tables

from mlxroles.errors import SpecError
from mlxroles.roles.table import KEYS, QUERIES, Reading

READINGS = [Reading(*pair) for pair in itertools.product(QUERIES, KEYS)]
SCALES = [False, True]


@pytest.fixture(scope="module")
def table():
    """Prompts of 1, 2 and 4 to 9 tokens, with and without a begin token; head 2 of layer 1 gone."""
    rng = np.random.default_rng(3)
    sizes = [1, 2, 4, 9, 6, 1, 5]
    patterns = [role_tables.rows_of(rng.normal(size=(3, 4, n, n))) for n in sizes]
    for pattern in patterns:
        pattern[1, 2] = np.nan
    category = ["x", "x", "y", "y", "x", "y", "z"]
    has_bos = [True, True, True, False, False, False, True]
    return role_tables.entropies_of("base", patterns, category, has_bos=has_bos)


def mean(values):
    return sum(values) / len(values) if values else math.nan


@pytest.mark.parametrize("reading", READINGS, ids=str)
@pytest.mark.parametrize("normalised", SCALES)
def test_means_over_queries_and_heads_are_plain_loops(table, reading, normalised):
    kept = role_tables.loop_entropies(table, reading, normalised=normalised)
    per_head = table.per_head(reading, normalised=normalised)
    per_layer = table.per_layer(reading, normalised=normalised)
    assert per_head.shape == (7, 3, 4)
    assert per_head.dtype == np.float64
    for i, layer in np.ndindex(7, 3):
        heads = [mean(kept[i, layer, head]) for head in range(4)]
        np.testing.assert_allclose(per_head[i, layer], heads, rtol=1e-12, atol=0)
        expected = mean([head for head in heads if not math.isnan(head)])
        np.testing.assert_allclose(per_layer[i, layer], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_queries_that_count(table, reading):
    counted = table.counted(reading)
    for i, length in enumerate(table.length):
        for query in range(counted.shape[1]):
            drop = reading.keys == "no-bos" and table.has_bos[i]
            expected = query < length
            expected &= query > 0 or not (drop or reading.queries == "no-first")
            expected &= reading.queries != "last" or query == length - 1
            assert counted[i, query] == expected, (i, query)


def test_entropy_of_uniform_attention_counts_the_keys_that_a_query_sees(table):
    everything = table.uniform(Reading())
    no_bos = table.uniform(Reading(keys="no-bos"))
    for query in range(everything.shape[1]):
        for i, has_bos in enumerate(table.has_bos):
            for found, keys in ((everything, query + 1), (no_bos, query + 1 - has_bos)):
                expected = math.log(keys) if keys > 1 else math.nan
                np.testing.assert_equal(found[i, query], expected)


def test_dropping_the_first_key_is_attention_over_the_rest():
    rng = np.random.default_rng(5)
    pattern = role_tables.rows_of(rng.normal(size=(1, 1, 5, 5)))
    found = role_tables.entropies_of("base", [pattern], ["x"])
    values = found.queries(Reading(keys="no-bos"))[0, 0, 0]
    for query in range(1, 5):
        rest = pattern[0, 0, query, 1 : query + 1]
        rest = rest / rest.sum()
        assert values[query] == pytest.approx(-sum(p * math.log(p) for p in rest), abs=1e-6)
    assert np.isnan(values[0])


def test_prompts_can_be_chosen_and_reordered(table):
    some = table.chosen([4, 0])
    assert some.prompts == ("p004", "p000")
    assert some.category == ("x", "x")
    assert some.length.tolist() == [6, 1]
    assert some.has_bos.tolist() == [False, True]
    for name in ("entropy", "entropy_no_first", "first_keys", "recent_keys"):
        np.testing.assert_array_equal(getattr(some, name), getattr(table, name)[[4, 0]])


def test_members_of_a_category(table):
    assert table.categories == ("x", "y", "z")
    assert table.members("y").tolist() == [2, 3, 5]
    with pytest.raises(SpecError, match="no prompt has the category 'w'; there are x, y, z"):
        table.members("w")
