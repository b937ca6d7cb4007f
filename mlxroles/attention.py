"""Attention from what the model handed to its kernel: pattern, z and entropy, in float32.

Free functions on arrays; where the arrays come from is the business of ``taps`` and ``engine``.
The model's fused kernel never shows its weights, so they are computed again from q and k as the
kernel received them: after RoPE and q/k norms, with the model's own scale, mask and sinks.
"""

from typing import Any, NamedTuple

from mlxroles.backend import mx
from mlxroles.taps import AttentionCall

SMALLEST = mx.finfo(mx.float32).min
TINY = 1e-37


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


def summaries(weights: mx.array) -> dict[str, mx.array]:
    """Everything of ``SUMMARIES``; one logarithm of the weights serves both entropies.

    ``entropy_no_first`` is the entropy after key 0 is dropped and the rest of the row, of weight
    s, renormalised: ln s - (sum of p ln p over the rest) / s. NaN where nothing is left, as for
    query 0, which sees no other key.
    """
    terms = _terms(weights)
    rest = weights[..., 1:].sum(axis=-1)
    part = mx.maximum(rest, TINY)
    no_first = mx.maximum(mx.log(part) - terms[..., 1:].sum(axis=-1) / part, 0.0)
    return {
        "entropy": mx.maximum(-terms.sum(axis=-1), 0.0),
        "entropy_no_first": mx.where(rest > 0, no_first, mx.nan),
        "first_keys": first_keys(weights),
        "recent_keys": recent_keys(weights),
    }


NEAR = 3
"""Keys at either end of what a query sees whose weights are kept one by one."""


def first_keys(weights: mx.array) -> mx.array:
    """Weights on keys 0, 1, 2 [batch, head, query, 3]; 0 for a key that is not there."""
    lacking = max(0, NEAR - weights.shape[-1])
    return mx.pad(weights[..., :NEAR], [(0, 0)] * 3 + [(0, lacking)])


def recent_keys(weights: mx.array) -> mx.array:
    """Weights on a query's own key and the two before it [batch, head, query, 3], own key first.

    0 for a key that is not there. The last query is the last key.
    """
    queries, keys = weights.shape[-2:]
    at = mx.arange(keys - queries, keys)[:, None] - mx.arange(NEAR)
    index = mx.broadcast_to(mx.maximum(at, 0), (*weights.shape[:-1], NEAR))
    return mx.where(at >= 0, mx.take_along_axis(weights, index, axis=-1), 0.0)


SUMMARIES = ("entropy", "entropy_no_first", "first_keys", "recent_keys")
"""What can be kept of a pattern without the pattern."""
