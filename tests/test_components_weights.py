"""Norms, heads, likeness and contributions of components, against loops and explicit rotations."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from tiny_models import LLAMA, tiny_llama

from mlxroles.backend import mx
from mlxroles.circuits import rotary
from mlxroles.components import offsets, weights
from mlxroles.components.decomposition import Decomposition
from mlxroles.components.maps import decomposable, inputs
from mlxroles.components.svd import svd
from mlxroles.errors import StoreError
from mlxroles.forward import forward
from mlxroles.models.load import wrap

RNG = np.random.default_rng(5)
HEADS = {"q": 4, "k": 2, "v": 2, "o": 4}
WIDTH = 6


def random_map(kind, components=9, d_model=10) -> Decomposition:
    """A random map with grouped heads: four for queries, two for keys and values."""
    heads = HEADS.get(kind, 0)
    wide = heads * WIDTH or 14
    d_in, d_out = (wide, d_model) if kind == "o" else (d_model, wide)
    return Decomposition(
        f"L0.{kind}",
        0,
        kind,
        RNG.standard_normal((d_in, components)).astype(np.float32),
        RNG.standard_normal((components, d_out)).astype(np.float32),
        heads,
        WIDTH if heads else 0,
    )


def rotated(vector, position, angles):
    """A vector whose halves turn, as complex numbers; what is beyond them stays."""
    half = len(angles)
    turned = (vector[:half] + 1j * vector[half : 2 * half]) * np.exp(1j * position * angles)
    return np.concatenate([turned.real, turned.imag, vector[2 * half :]])


def closed_form(query, key, angles, scale):
    """``scale sum_j [A_j cos(D th_j) + B_j sin(D th_j)]`` by loops; what is beyond halves stays.

    A = q1 k1 + q2 k2 and B = q1 k2 - q2 k1; query heads [4, q, d_head], key heads [2, k, d_head].
    """
    half = len(angles)
    found = np.zeros((len(offsets.OFFSETS), len(query), query.shape[1], key.shape[1]))
    for at, h, i, j in np.ndindex(found.shape):
        q, k = query[h, i], key[h // (len(query) // len(key)), j]
        q1, q2, k1, k2 = q[:half], q[half : 2 * half], k[:half], k[half : 2 * half]
        turn = offsets.OFFSETS[at] * angles
        along, across = q1 * k1 + q2 * k2, q1 * k2 - q2 * k1
        found[at, h, i, j] = (along * np.cos(turn) + across * np.sin(turn)).sum()
        found[at, h, i, j] += q[2 * half :] @ k[2 * half :]
    return scale * found


@pytest.mark.parametrize("kind", ["q", "k", "v", "o", "mlp"])
def test_the_sum_of_the_components_is_the_weight_and_their_norms_are_those_of_matrices(kind):
    found = random_map(kind)
    matrices = [found.component(c).astype(np.float64) for c in range(found.n)]
    assert np.abs(sum(matrices) - found.weight()).max() < 1e-5
    np.testing.assert_allclose(weights.norms(found), [np.linalg.norm(m) for m in matrices], 1e-6)


@pytest.mark.parametrize("kind", ["q", "k", "v", "o"])
def test_head_norms_are_those_of_the_matrix_in_its_own_heads(kind):
    found = random_map(kind)
    made = weights.head_norms(found)
    assert made.shape == (found.n, HEADS[kind])
    for c in range(found.n):
        for h in range(HEADS[kind]):
            matrix, part = found.component(c), slice(h * WIDTH, (h + 1) * WIDTH)
            block = matrix[:, part] if kind == "o" else matrix[part]
            assert made[c, h] == pytest.approx(np.linalg.norm(block), rel=1e-5)


def test_a_map_without_heads_has_no_head_norms():
    with pytest.raises(ValueError, match="no heads"):
        weights.head_norms(random_map("mlp"))
    with pytest.raises(ValueError, match="no heads"):
        weights.head_activity(random_map("o"), np.ones(9))


def test_the_spread_is_ln_n_for_equal_heads_and_0_for_one():
    equal, one, none = np.full(7, 3.0), np.eye(7)[2], np.zeros(7)
    found = weights.spread(np.stack([equal, one, none]))
    assert found[0] == pytest.approx(math.log(7), abs=1e-12)
    assert found[1] == 0
    assert math.isnan(found[2])


def test_activity_by_head_is_the_mean_size_of_what_is_written_while_firing():
    found = random_map("k")
    x = RNG.standard_normal((400, found.d_in))
    a = x @ found.V.astype(np.float64)
    fires = a > 0.5
    size = np.abs(a) * np.linalg.norm(found.U, axis=1)
    firing = np.array([size[fires[:, c], c].mean() for c in range(found.n)])
    made = weights.head_activity(found, firing)
    for c in range(found.n):
        written = np.outer(a[fires[:, c], c], found.U[c])
        for h in range(2):
            part = written[:, h * WIDTH : (h + 1) * WIDTH]
            assert made[c, h] == pytest.approx(np.linalg.norm(part, axis=1).mean(), rel=1e-5)


def test_likeness_is_scipys_cosine_of_the_directions_that_are_read():
    one, other = random_map("k"), random_map("v")
    expected = 1 - cdist(one.V.T.astype(float), other.V.T.astype(float), "cosine")
    np.testing.assert_allclose(weights.similarity(one, other), expected, atol=1e-12)
    with pytest.raises(ValueError, match="features"):
        weights.similarity(one, random_map("o"))


def test_chance_is_what_random_directions_reach_in_five_of_a_hundred():
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((4000, 4, WIDTH))
    largest = weights.shares(np.linalg.norm(draws, axis=2)).max(axis=1)
    assert (largest > weights.chance_share(4, WIDTH)).mean() == pytest.approx(0.05, abs=0.02)
    units = rng.standard_normal((4000, 2, 64))
    units /= np.linalg.norm(units, axis=2, keepdims=True)
    cosines = np.abs((units[:, 0] * units[:, 1]).sum(axis=1))
    assert (cosines > weights.chance_cosine(64)).mean() == pytest.approx(0.05, abs=0.015)
    assert weights.chance_cosine(64, 100) > weights.chance_cosine(64)


@pytest.mark.parametrize("turning", [WIDTH // 2, 2])
def test_contributions_are_explicit_rotations_at_every_pair_of_positions(turning):
    """W(D) = scale q(m) . k(n) for all m - n = D, also where only some features turn."""
    angles = 10000.0 ** (-np.arange(turning) / turning)
    q_map, k_map = random_map("q"), random_map("k")
    q, k = offsets.heads_of(q_map, [0, 3, 5]), offsets.heads_of(k_map, [1, 2])
    scale = WIDTH**-0.5

    def rotate(vectors, position):
        return np.apply_along_axis(rotated, -1, vectors, position, angles)

    found = offsets.contributions(q, k, rotate, offsets.OFFSETS, scale)
    assert found.shape == (17, 4, 3, 2)
    np.testing.assert_allclose(found, closed_form(q, k, angles, scale), rtol=0, atol=1e-12)
    for at, h, i, j in np.ndindex(found.shape):
        n = int(RNG.integers(100))
        turned = rotated(q[h, i], n + offsets.OFFSETS[at], angles)
        assert abs(found[at, h, i, j] - scale * turned @ rotated(k[h // 2, j], n, angles)) < 1e-12


def test_vectors_of_components_are_their_parts_in_a_head_times_what_they_read():
    found = random_map("k")
    made = offsets.heads_of(found, [4, 0])
    expected = found.head(4, 1).astype(float) * np.linalg.norm(found.V[:, 4].astype(float))
    np.testing.assert_allclose(made[1, 0], expected, rtol=1e-12)


@pytest.fixture(scope="module")
def model():
    return wrap(tiny_llama(3, num_hidden_layers=2), LLAMA | {"num_hidden_layers": 2}, name="gqa")


def turning(model, layer):
    found = rotary(model, layer)
    return lambda v, p: np.array(found.at(v.astype(np.float32), p)), found.scale


def test_the_closed_form_agrees_with_the_models_own_rope(model):
    found = svd(model, ("q", "k")).maps
    q, k = (offsets.heads_of(found[f"L1.{kind}"], range(5)) for kind in "qk")
    rotate, scale = turning(model, 1)
    own = offsets.contributions(q, k, rotate, offsets.OFFSETS, scale)
    half = q.shape[-1] // 2
    angles = 10000.0 ** (-np.arange(half) / half)
    closed = closed_form(q, k, angles, scale)
    assert np.abs(own - closed).max() < 1e-5 * np.abs(closed).max()


def test_all_contributions_together_are_the_models_scores(model):
    """Every activation times its direction: q . k of the model, cell by cell."""
    found, maps = svd(model, ("q", "k")).maps, decomposable(model, ("q", "k"))
    rows = mx.array(np.random.default_rng(0).integers(0, 64, (1, 12)))
    x = np.array(inputs(model, maps.values(), rows)["L1.q"])[0].astype(float)
    vectors, amounts = [], []
    for kind in "qk":
        one = found[f"L1.{kind}"]
        vectors.append(offsets.heads_of(one, range(one.n)))
        amounts.append(x @ one.V / np.linalg.norm(one.V.astype(float), axis=0))
    rotate, scale = turning(model, 1)
    w = offsets.contributions(*vectors, rotate, range(12), scale)
    run = forward(model.network, rows, keep=["q", "k"], layers=[1], logits=False)
    q, k = (np.array(run[name, 1])[0].astype(float) for name in "qk")
    for m in range(12):
        for n in range(m + 1):
            for h in range(4):
                made = amounts[0][m] @ w[m - n, h] @ amounts[1][n]
                assert made == pytest.approx(scale * q[m, h] @ k[n, h // 2], abs=2e-4)


def chance_of(q, k):
    """Contributions of these vectors under a rotation of halves, and how they stand to chance."""
    half = q.shape[-1] // 2
    angles = 10000.0 ** (-np.arange(half) / half)

    def rotate(vectors, position):
        cos, sin = np.cos(position * angles), np.sin(position * angles)
        one, two = vectors[..., :half], vectors[..., half:]
        return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)

    values = offsets.contributions(q, k, rotate, offsets.OFFSETS, 0.25)
    return values, offsets.chance(q, k, values, rotate, offsets.OFFSETS, scale=0.25)


def test_pairs_beyond_chance_are_five_of_a_hundred_among_random_ones():
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 30, 16)), rng.standard_normal((1, 40, 16))
    values, found = chance_of(q, k)
    assert np.abs(found.above - 0.05).max() < 0.025
    assert 0.05 < found.most < 0.12
    aligned = q[:1] + 0.1 * k[:, :30]
    values, planted = chance_of(q, aligned)
    assert planted.above[0] > max(planted.most, found.above[0])
    assert np.abs(values.sum(axis=1)).max() > planted.of_all


def test_the_largest_peaks_of_random_keys_are_below_their_limit_in_95_of_100():
    """Sizes differ by head and component, two query heads share a key head."""
    rng = np.random.default_rng(4)
    q, sizes = rng.standard_normal((4, 2, 8)), rng.uniform(0.2, 3, (2, 5, 1))
    below, below_all = [], []
    for _ in range(60):
        k = rng.standard_normal((2, 5, 8))
        k *= sizes / np.linalg.norm(k, axis=-1, keepdims=True)
        values, found = chance_of(q, k)
        largest = np.abs(values.sum(axis=1)).max(axis=(0, 2))
        below.append(largest < found.of_query)
        below_all.append(largest.max() < found.of_all)
    assert np.mean(below) == pytest.approx(0.95, abs=0.05)
    assert np.mean(below_all) == pytest.approx(0.95, abs=0.05)


def test_peaks_keep_their_sign():
    values = np.array([[1.0, -2.0], [-3.0, 0.5]])
    at, peak = offsets.peaks(values)
    assert at.tolist() == [1, 0]
    assert peak.tolist() == [-3.0, -2.0]


def some_offsets(layer):
    values = RNG.standard_normal((3, 4, 2, 5)).astype(np.float32)
    return offsets.Offsets(
        layer,
        np.array([4, 1]),
        np.arange(5),
        np.arange(3),
        values,
        offsets.Chance(np.full(4, 0.1), 0.2, np.array([1.0, 2.0]), 3.0),
    )


def test_a_missing_layer_does_not_drop_the_later_ones(tmp_path):
    path = tmp_path / "offsets.h5"
    kept = {layer: some_offsets(layer) for layer in (0, 2, 11)}
    offsets.write(path, kept, "made of this")
    found = offsets.read(path, "made of this")
    assert sorted(found) == [0, 2, 11]
    for layer, each in found.items():
        pairs = zip(
            (*each[1:-1], *each.chance), (*kept[layer][1:-1], *kept[layer].chance), strict=True
        )
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


def test_contributions_of_something_else_are_not_taken(tmp_path):
    path = tmp_path / "offsets.h5"
    assert offsets.read(path) == {}
    offsets.write(path, {0: some_offsets(0)}, "one")
    assert offsets.read(path, "other") == {}
    path.write_bytes(b"no HDF5")
    with pytest.raises(StoreError, match="delete it"):
        offsets.read(path)
