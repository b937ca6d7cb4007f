"""Pattern, z and entropy against loops over single queries in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxroles import attention as attn
from mlxroles.backend import mx
from mlxroles.taps import AttentionCall, Frame

GENERATOR = np.random.default_rng(7)
B, H, KV, D, V = 2, 6, 3, 8, 5


def random(*shape, scale=1.0):
    return (scale * GENERATOR.standard_normal(shape)).astype(np.float32)


def call(q, k, v, *, mask=None, sinks=None, scale=0.3, cache=None):
    def fused(*_):
        raise AssertionError("the pattern does not run the kernel")

    as_mx = [mx.array(a) if isinstance(a, np.ndarray) else a for a in (q, k, v, mask, sinks)]
    return AttentionCall(
        as_mx[0], as_mx[1], as_mx[2], scale, as_mx[3], as_mx[4], cache, fused, Frame(0, 0)
    )


def looped(c, v=None):
    """Weights, sink shares, z and entropies of a call, query by query in float64."""
    q, k = np.array(c.q, np.float64), np.array(c.k, np.float64)
    v = np.array(c.v if v is None else v, np.float64)
    batch, heads, queries, keys = *q.shape[:3], k.shape[2]
    group = heads // k.shape[1]
    weights = np.zeros((batch, heads, queries, keys))
    sink, entropy = np.zeros((batch, heads, queries, 1)), np.zeros((batch, heads, queries))
    z = np.zeros((batch, heads, queries, v.shape[-1]))
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                scores = [c.scale * (q[b, h, i] @ k[b, h // group, j]) for j in range(keys)]
                for j in range(keys):
                    if isinstance(c.mask, str):
                        hidden = j > i + keys - queries
                        scores[j] = -math.inf if hidden else scores[j]
                    elif c.mask is not None:
                        full = np.broadcast_to(np.array(c.mask), weights.shape)[b, h, i, j]
                        if c.mask.dtype == mx.bool_:
                            scores[j] = scores[j] if full else -math.inf
                        else:
                            scores[j] += full
                e = [math.exp(s) for s in scores]
                extra = 0.0 if c.sinks is None else math.exp(float(c.sinks[h].item()))
                total = sum(e) + extra
                sink[b, h, i] = extra / total
                for j in range(keys):
                    p = e[j] / total
                    weights[b, h, i, j] = p
                    z[b, h, i] += p * v[b, h // group, j]
                    entropy[b, h, i] -= p * math.log(p) if p > 0 else 0.0
    return weights, sink, z, entropy


CAUSAL = np.tril(np.ones((7, 7), bool))
WINDOW = CAUSAL & ~np.tril(np.ones((7, 7), bool), -3)
MASKS = {
    "none": None,
    "causal": "causal",
    "bool": CAUSAL,
    "window": WINDOW,
    "bool of batch": np.stack([CAUSAL, WINDOW])[:, None],
    "additive": np.where(CAUSAL, 0, -np.inf).astype(np.float32),
    "finite additive": np.where(CAUSAL, random(7, 7), -1e9).astype(np.float32),
    "per head": (random(B, H, 7, 7) + np.where(CAUSAL, 0, -1e30)).astype(np.float32),
}


@pytest.mark.parametrize("sinks", [None, random(H)], ids=["", "sinks"])
@pytest.mark.parametrize("mask", MASKS)
def test_pattern_z_and_entropy_equal_the_loops(mask, sinks):
    c = call(
        random(B, H, 7, D),
        random(B, KV, 7, D),
        random(B, KV, 7, V),
        mask=MASKS[mask],
        sinks=sinks,
    )
    weights, sink, z, entropy = looped(c)
    got = attn.pattern(c)
    assert np.abs(np.array(got.weights) - weights).max() <= 1e-6
    assert (got.sink is None) == (sinks is None)
    if got.sink is not None:
        assert np.abs(np.array(got.sink) - sink).max() <= 1e-6
        assert sink.max() > 0.1
    assert np.abs(np.array(attn.z_from(got.weights, c.v)) - z).max() <= 2e-6
    assert np.abs(np.array(attn.entropy(got.weights)) - entropy).max() <= 2e-6
    assert (np.array(got.weights)[weights == 0] == 0).all()


@pytest.mark.parametrize("kv", [1, 2, 3, 6])
def test_query_heads_share_the_right_kv_head(kv):
    c = call(random(1, 6, 5, D), random(1, kv, 5, D), random(1, kv, 5, V), mask="causal")
    weights, _, z, _ = looped(c)
    p = attn.pattern(c).weights
    assert np.abs(np.array(p) - weights).max() <= 1e-6
    assert np.abs(np.array(attn.z_from(p, c.v)) - z).max() <= 2e-6
    if kv in (2, 3):
        rolled = np.array(attn.z_from(p, mx.roll(c.v, 1, axis=1)))
        assert np.abs(rolled - z).max() > 0.1


@pytest.mark.parametrize("queries", [1, 3])
def test_causal_means_the_last_queries_where_keys_came_before(queries):
    c = call(random(1, 2, queries, D), random(1, 2, 9, D), random(1, 2, 9, V), mask="causal")
    got = np.array(attn.pattern(c).weights)
    assert np.abs(got - looped(c)[0]).max() <= 1e-6
    for i in range(queries):
        assert (got[..., i, 9 - queries + i + 1 :] == 0).all()
        assert (got[..., i, : 9 - queries + i + 1] > 0).all()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    arrays = [
        mx.array(random(*s)).astype(dtype) for s in ((1, 4, 6, D), (1, 2, 6, D), (1, 2, 6, V))
    ]
    exact = [np.array(a.astype(mx.float32)) for a in arrays]
    got = attn.pattern(call(*arrays, mask="causal"))
    want = looped(call(*exact, mask="causal"))
    assert got.weights.dtype == mx.float32
    assert np.abs(np.array(got.weights) - want[0]).max() <= 1e-6
    assert np.abs(np.array(attn.z_from(got.weights, arrays[2])) - want[2]).max() <= 2e-6


@pytest.mark.parametrize(
    "mask", [np.zeros((1, 1, 3, 3), bool), np.full((3, 3), -np.inf, np.float32)]
)
def test_row_that_sees_nothing_stays_finite(mask):
    """Left padding: such rows mean nothing, but a NaN would spread."""
    c = call(random(1, 2, 3, D), random(1, 2, 3, D), random(1, 2, 3, V), mask=mask)
    got = attn.pattern(c).weights
    assert np.isfinite(np.array(got)).all()
    assert np.isfinite(np.array(attn.z_from(got, c.v))).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_keys_and_values_are_unpacked(bits):
    class Cache:
        group_size = 32

    Cache.bits = bits
    k, v = random(1, 2, 6, 64), random(1, 2, 6, 64)
    packed = [mx.quantize(mx.array(a), group_size=32, bits=bits) for a in (k, v)]
    c = call(random(1, 4, 6, 64), *packed, mask="causal", cache=Cache)
    plain = [attn.plain(a, Cache) for a in packed]
    assert np.abs(np.array(plain[0]) - k).max() < 8 / 2**bits
    want = looped(call(np.array(c.q), *(np.array(a) for a in plain), mask="causal"))
    assert np.abs(np.array(attn.pattern(c).weights) - want[0]).max() <= 1e-6
    assert np.abs(np.array(attn.z_from(attn.pattern(c).weights, plain[1])) - want[2]).max() <= 2e-6


def assert_same(got, weights):
    """Summaries against those of the weights, row by row."""
    wanted = attn.summaries(weights)
    assert set(got) <= set(wanted)
    for name, array in got.items():
        np.testing.assert_allclose(np.array(array), np.array(wanted[name]), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("sinks", [None, random(H, scale=3)], ids=["", "sinks"])
@pytest.mark.parametrize("mask", MASKS)
def test_summaries_without_the_pattern_are_those_of_the_pattern(monkeypatch, mask, sinks, rows):
    monkeypatch.setattr(attn, "_block_rows", lambda row: rows)
    c = call(random(B, H, 7, D), random(B, KV, 7, D), None, mask=MASKS[mask], sinks=sinks)
    got = attn.summaries_of_call(c)
    assert_same(got, attn.pattern(c).weights)
    assert np.abs(np.array(got["entropy"]) - looped(c, v=random(B, KV, 7, V))[3]).max() <= 2e-6


@pytest.mark.parametrize("queries", [1, 4])
def test_summaries_of_the_last_queries_after_a_prefix(monkeypatch, queries):
    monkeypatch.setattr(attn, "_block_rows", lambda row: 2)
    c = call(random(2, 4, queries, D), random(1, 2, 9, D), None, mask="causal")
    assert_same(attn.summaries_of_call(c), attn.pattern(c).weights)


@pytest.mark.parametrize("bits", [4, 8])
def test_summaries_of_quantised_keys(bits):
    class Cache:
        group_size = 32

    Cache.bits = bits
    k = mx.quantize(mx.array(random(1, 2, 6, 64)), group_size=32, bits=bits)
    c = call(random(1, 4, 6, 64), k, None, mask="causal", cache=Cache)
    assert_same(attn.summaries_of_call(c), attn.pattern(c).weights)


def test_only_the_named_summaries_are_made_and_they_are_the_same_bits():
    c = call(random(1, 4, 9, D), random(1, 2, 9, D), None, mask="causal")
    whole = attn.summaries_of_call(c)
    assert set(whole) == set(attn.SUMMARIES)
    for name in attn.SUMMARIES:
        (alone,) = attn.summaries_of_call(c, [name]).items()
        assert alone[0] == name
        assert np.array(alone[1]).tobytes() == np.array(whole[name]).tobytes()


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 60.0])
def test_entropies_are_exact_however_sure_a_head_is(scale):
    """Against float64: the weights of a sure row are smaller than float32 tells from 0."""
    q, k = random(1, 4, 40, D), random(1, 2, 40, D)
    c = call(q, k, None, mask="causal", scale=scale)
    wanted = np.zeros((1, 4, 40))
    for head, i in np.ndindex(4, 40):
        s = scale * (k[0, head // 2, : i + 1].astype(np.float64) @ q[0, head, i])
        log_p = s - s.max() - math.log(np.exp(s - s.max()).sum())
        wanted[0, head, i] = -(np.exp(log_p) * log_p).sum()
    got = np.array(attn.summaries_of_call(c, ["entropy"])["entropy"])
    assert (got >= 0).all()
    assert np.abs(got - wanted).max() <= 1e-5 * max(1, scale)


def test_entropy_over_many_keys_does_not_gather_rounding():
    q, k = random(1, 2, 1, D, scale=0.1), random(1, 1, 50_000, D)
    c = call(q, k, None, scale=1.0)
    s = (np.array(q, np.float64)[0, :, 0] @ np.array(k, np.float64)[0, 0].T).astype(np.float64)
    p = np.exp(s) / np.exp(s).sum(axis=-1, keepdims=True)
    got = np.array(attn.summaries_of_call(c, ["entropy"])["entropy"])[0, :, 0]
    assert np.abs(got + (p * np.log(p)).sum(axis=-1)).max() <= 2e-5  # of 10.8 nats


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min, -65504.0])
def test_summaries_of_scores_after_a_mask(hidden):
    s = np.where(CAUSAL, random(B, H, 7, 7, scale=4), hidden).astype(np.float32)
    got = attn.summaries_of_scores(mx.array(s))
    assert_same(got, mx.softmax(mx.array(s), axis=-1, precise=True))


@pytest.mark.parametrize(
    "mask", [np.zeros((1, 1, 3, 3), bool), np.full((3, 3), -np.inf, np.float32)]
)
def test_summaries_of_a_row_that_sees_nothing_stay_finite(mask):
    c = call(random(1, 2, 3, D), random(1, 2, 3, D), None, mask=mask)
    assert_same(attn.summaries_of_call(c), attn.pattern(c).weights)
    assert np.isfinite(np.array(attn.summaries_of_call(c)["entropy"])).all()


def test_a_value_that_is_no_number_is_not_hidden():
    q = random(1, 2, 3, D)
    q[0, 1, 2, 0] = np.nan
    got = np.array(
        attn.summaries_of_call(call(q, random(1, 1, 3, D), None, mask="causal"))["entropy"]
    )
    assert np.isnan(got[0, 1, 2])
    assert np.isfinite(got[0, 0]).all()


@pytest.mark.parametrize("keys", [1, 2, 17])
def test_entropy_of_known_distributions(keys):
    uniform = mx.full((1, 1, 1, keys), 1 / keys)
    sure = (mx.arange(keys) == 0).astype(mx.float32).reshape(1, 1, 1, keys)
    assert attn.entropy(uniform).item() == pytest.approx(math.log(keys), abs=1e-6)
    assert attn.entropy(sure).item() == 0.0
    assert math.isnan(attn.entropy(uniform * math.nan).item())


def test_pattern_of_scores_too_large_for_exp():
    q = np.array([[[[1.0, 0.0], [0.0, 1.0]]]], np.float32) * 300
    c = call(q, q, q, mask="causal", scale=1.0)
    assert np.array(attn.pattern(c).weights).tolist() == [[[[1.0, 0.0], [0.0, 1.0]]]]


shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(1, 9)
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.floats(0.01, 30), st.integers(0, 2**32 - 1), st.booleans())
def test_properties_of_causal_attention(shape, spread, seed, has_sinks):
    batch, kv, group, length, d = shape
    generator = np.random.default_rng(seed)

    def draw(*s):
        return (spread * generator.standard_normal(s)).astype(np.float32)

    c = call(
        draw(batch, kv * group, length, d),
        draw(batch, kv, length, d),
        draw(batch, kv, length, d),
        mask="causal",
        sinks=draw(kv * group) if has_sinks else None,
    )
    got = attn.pattern(c)
    weights, entropy = np.array(got.weights), np.array(attn.entropy(got.weights))
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert (np.triu(weights, 1) == 0).all()
    total = weights.sum(-1, keepdims=True) + (0 if got.sink is None else np.array(got.sink))
    assert np.abs(total - 1).max() <= 1e-5
    assert (entropy >= 0).all()
    if not has_sinks:
        assert (entropy <= np.log(np.arange(length) + 1) + 1e-5).all()
        assert (entropy[..., 0] == 0).all()
        assert (weights[..., 0, 0] == 1).all()


def test_what_each_query_sees_under_masks_of_every_kind():
    causal = np.tril(np.ones((3, 4), dtype=bool), 1)  # one key comes from a prefix
    window = np.triu(causal, 0)

    def seen(mask):
        return np.array(attn.visible(mask, 3, 4))[..., 0, :, :]

    assert seen(None).all()
    assert np.array_equal(seen("causal")[0], causal)
    assert np.array_equal(seen(mx.array(window))[0], window)
    for hidden in (-np.inf, np.finfo(np.float32).min, np.finfo(np.float16).min):
        slopes = np.arange(4) * -2.5  # as ALiBi adds them
        added = mx.array(np.where(window, slopes, hidden).astype(np.float32))
        assert np.array_equal(seen(added)[0], window)
        assert np.array_equal(seen(added.astype(mx.float16))[0], window)
    heads = mx.array(np.stack([window, causal])[None])  # what any head sees
    assert np.array_equal(seen(heads)[0], causal)
    rows = mx.array(np.stack([window, causal])[:, None])
    assert np.array_equal(seen(rows), np.stack([window, causal]))
