"""Attention from what the model handed to its kernel: pattern, z and entropy, in float32.

Free functions on arrays; where the arrays come from is the business of ``taps`` and ``engine``.
The model's fused kernel never shows its weights, so they are computed again from q and k as the
kernel received them: after RoPE and q/k norms, with the model's own scale, mask and sinks.

Where only summaries of the pattern are wanted it is never made: scores in base 2 pass by in
blocks of queries, and of each row remain z = sum 2^t and s = sum t 2^t with t = score - row
maximum. They give the entropy ln 2 (log2 z - s / z) without a logarithm per weight, to 1e-6 nats
also where nearly all weight lies on one key.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

from mlxroles.backend import mx, on_gpu
from mlxroles.taps import AttentionCall

SMALLEST = mx.finfo(mx.float32).min
HIDDEN = -3e4
"""Scores below this are those of keys that a mask hides: float16 models write -65504."""
TINY = 1e-37
LOG2_E = 1 / math.log(2)


class Pattern(NamedTuple):
    """Attention weights [batch, head, query, key] and the share that sinks take, or None.

    Rows sum to 1, less the sink's share [batch, head, query, 1] where the model has sinks.
    """

    weights: mx.array
    sink: mx.array | None


def plain(array: Any, cache: Any) -> mx.array:
    """Keys or values [batch, kv_head, key, d]; those of a quantised cache come as triples."""
    if isinstance(array, (tuple, list)):
        return mx.dequantize(*array, group_size=cache.group_size, bits=cache.bits)
    return array


def pattern(call: AttentionCall) -> Pattern:
    """Softmax of scale * q k^T under the call's mask [batch, head, query, key], float32.

    Query head h reads kv head h // (heads / kv heads), which is shared and not copied.
    """
    q = call.q.astype(mx.float32) * call.scale
    k = plain(call.k, call.cache).astype(mx.float32)
    batch, heads, queries, d = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, queries, d)
    scores = (grouped @ k[:, :, None].swapaxes(-1, -2)).reshape(batch, heads, queries, keys)
    scores = masked(scores, call.mask)
    if call.sinks is None:
        return Pattern(mx.softmax(scores, axis=-1, precise=True), None)
    sinks = call.sinks.astype(mx.float32)[None, :, None, None]
    column = mx.broadcast_to(sinks, (batch, heads, queries, 1))
    rows = mx.softmax(mx.concatenate([scores, column], axis=-1), axis=-1, precise=True)
    return Pattern(rows[..., :-1], rows[..., -1:])


def masked(scores: mx.array, mask: mx.array | str | None) -> mx.array:
    """Scores under a mask of any of MLX's kinds: None, "causal" (lower right), bool or additive.

    Hidden scores become the smallest finite number and not -inf, so that a row that sees no key
    at all (left padding) stays finite.

    Args:
        scores: [batch, head, query, key], float32.
        mask: As the model handed it to its kernel; arrays broadcast to the scores.
    """
    queries, keys = scores.shape[-2:]
    if mask is None:
        return scores
    if isinstance(mask, str):
        mask = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)[None]
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, SMALLEST)
    return mx.maximum(scores + mask.astype(mx.float32), SMALLEST)


def visible(mask: mx.array | str | None, queries: int, keys: int) -> mx.array:
    """Which keys each query sees, bool [1 or batch, 1, query, key].

    Args:
        mask: As in ``masked``; where its heads see different keys, those that any of them sees.
        queries: Number of queries.
        keys: Number of keys.
    """
    return seen_scores(masked(mx.zeros((1, 1, queries, keys)), mask))


def seen_scores(scores: mx.array) -> mx.array:
    """The same from scores under their mask [batch, head, query, key]."""
    return (scores > HIDDEN).any(axis=1, keepdims=True)


def z_from(weights: mx.array, v: mx.array) -> mx.array:
    """Weighted values [batch, head, query, d] of every head, float32."""
    batch, heads, queries, keys = weights.shape
    kv_heads = v.shape[1]
    grouped = weights.reshape(batch, kv_heads, heads // kv_heads, queries, keys)
    z = grouped @ v.astype(mx.float32)[:, :, None]
    return z.reshape(batch, heads, queries, -1)


def entropy(weights: mx.array) -> mx.array:
    """-sum p ln p over keys, in nats [batch, head, query]; 0 ln 0 is 0.

    Where the model has sinks the sum runs over the real keys only, with their weights as they are.
    """
    return mx.maximum(-_terms(weights).sum(axis=-1), 0.0)


def _terms(weights: mx.array) -> mx.array:
    return weights * mx.log(mx.where(weights > 0, weights, 1.0))


SUMMARIES = ("entropy", "entropy_no_first", "first_keys", "recent_keys")
"""What can be kept of a pattern without the pattern."""

NEAR = 3
"""Keys at either end of what a query sees whose weights are kept one by one."""


def summaries(weights: mx.array, names: Collection[str] = SUMMARIES) -> dict[str, mx.array]:
    """Those of ``SUMMARIES`` that are named, of given weights [batch, head, query, key].

    ``entropy_no_first`` is the entropy after key 0 is dropped and the rest of the row, of weight
    s, renormalised: ln s - (sum of p ln p over the rest) / s. NaN where nothing is left (less
    than 1e-37), as for query 0, which sees no other key.
    """
    terms = _terms(weights)
    rest = weights[..., 1:].sum(axis=-1)
    part = mx.maximum(rest, TINY)
    no_first = mx.maximum(mx.log(part) - terms[..., 1:].sum(axis=-1) / part, 0.0)
    found = {
        "entropy": mx.maximum(-terms.sum(axis=-1), 0.0),
        "entropy_no_first": mx.where(rest > TINY, no_first, mx.nan),
        "first_keys": first_keys(weights),
        "recent_keys": recent_keys(weights, weights.shape[-1] - weights.shape[-2]),
    }
    return {name: found[name] for name in names}


def summaries_of_call(
    call: AttentionCall, names: Collection[str] = SUMMARIES
) -> dict[str, mx.array]:
    """The same numbers from q and k, by blocks of queries and without the pattern.

    Under a causal mask a block meets the keys up to its last query only. Arrays as large as the
    scores exist for one block at a time.
    """
    q = call.q.astype(mx.float32) * (call.scale * LOG2_E)
    k = plain(call.k, call.cache).astype(mx.float32)
    batch, heads, queries, d = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    q = q.reshape(batch, kv_heads, heads // kv_heads, queries, d)
    k = k.swapaxes(-1, -2)
    sinks = None
    if call.sinks is not None:
        sinks = call.sinks.astype(mx.float32)[None, :, None, None] * LOG2_E
    mask = call.mask
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        mask = mask.astype(mx.float32) * LOG2_E
    parts: list[dict[str, mx.array]] = []
    size = _block_rows(batch * heads * keys)
    for first in range(0, queries, size):
        end = min(first + size, queries)
        own = keys - queries + first
        seen = keys - queries + end if isinstance(mask, str) else keys
        rows = q[..., first:end, :].reshape(batch, kv_heads, -1, d)
        if parts:  # one block after the other, so that no two are in memory
            (rows,) = mx.depends([rows], list(parts[-1].values()))
        scores = (rows @ k[..., :seen]).reshape(batch, heads, end - first, seen)
        scores = masked(scores, _mask_rows(mask, first, end))
        parts.append(_summed(scores, names, own, sinks))
    return {name: mx.concatenate([part[name] for part in parts], axis=2) for name in names}


def summaries_of_scores(
    scores: mx.array, names: Collection[str] = SUMMARIES
) -> dict[str, mx.array]:
    """The same numbers from scores after mask and softcap [batch, head, query, key]."""
    queries, keys = scores.shape[-2:]
    powers_of_two = mx.maximum(scores.astype(mx.float32) * LOG2_E, SMALLEST)
    return _summed(powers_of_two, names, keys - queries, None)


def _block_rows(row: int) -> int:
    """Queries worked on at a time, where one of them has ``row`` scores.

    On a CPU the scores of a block should stay in its cache (measured: 1.6 times as fast as 64 MB
    at a time), but eight queries share the reading of the keys; on a GPU few kernels count.
    """
    return max(8, (1 << 24 if on_gpu() else 1 << 18) // row)


def _mask_rows(mask: mx.array | str | None, first: int, end: int) -> mx.array | str | None:
    """The part of a mask that belongs to some queries."""
    if mask is None or isinstance(mask, str) or mask.ndim < 2 or mask.shape[-2] == 1:
        return mask
    return mask[..., first:end, :]


def _summed(
    scores: mx.array, names: Collection[str], own: int, sinks: mx.array | None
) -> dict[str, mx.array]:
    """Summaries from masked scores in base 2; what is not named is never evaluated.

    Args:
        scores: [batch, head, query, key], finite; those of hidden keys far below all others.
        names: Those of ``SUMMARIES`` that are wanted.
        own: The key of the first query.
        sinks: Their scores [1, head, 1, 1], in base 2.
    """
    highest = scores.max(axis=-1, keepdims=True)
    highest = highest if sinks is None else mx.maximum(highest, sinks)
    shifted = scores - highest
    powers = mx.power(2.0, shifted)  # a third of the time of exp on a CPU
    terms = powers * shifted
    # a product with ones adds more exactly than a sum over the axis, and in half the time
    others = (mx.arange(scores.shape[-1]) > 0).astype(mx.float32)[:, None]
    rest, rest_terms = powers @ others, terms @ others
    real, real_terms = rest + powers[..., :1], rest_terms + terms[..., :1]
    total = real if sinks is None else real + mx.power(2.0, sinks - highest)
    entropy = (real * mx.log2(total) - real_terms) / (total * LOG2_E)
    part = mx.maximum(rest, TINY)
    no_first = mx.maximum((mx.log2(part) - rest_terms / part) / LOG2_E, 0.0)
    found = {
        "entropy": mx.maximum(entropy, 0.0)[..., 0],
        "entropy_no_first": mx.where(rest > TINY, no_first, mx.nan)[..., 0],
        "first_keys": first_keys(powers) / total,
        "recent_keys": recent_keys(powers, own) / total,
    }
    return {name: found[name] for name in names}


def first_keys(weights: mx.array) -> mx.array:
    """Weights on keys 0, 1, 2 [batch, head, query, 3]; 0 for a key that is not there."""
    lacking = max(0, NEAR - weights.shape[-1])
    return mx.pad(weights[..., :NEAR], [(0, 0)] * 3 + [(0, lacking)])


def recent_keys(weights: mx.array, own: int) -> mx.array:
    """Weights on a query's own key and the two before it [batch, head, query, 3], own key first.

    0 for a key that is not there. ``own`` is the key of the first query.
    """
    at = mx.arange(own, own + weights.shape[-2])[:, None] - mx.arange(NEAR)
    index = mx.broadcast_to(mx.maximum(at, 0), (*weights.shape[:-1], NEAR))
    return mx.where(at >= 0, mx.take_along_axis(weights, index, axis=-1), 0.0)
