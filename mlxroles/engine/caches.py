"""Keys and values of one layer while the engine runs it: a shared prefix and a row's own."""

from mlxroles.attention import masked
from mlxroles.backend import mx
from mlxroles.forward import Prefix
from mlxroles.taps import AttentionCall


class LayerCache(Prefix):
    """A read-only KV cache whose prefix can be another one for every call of its layer.

    ``shown`` are the keys and values of the last call [row, kv_head, position, d], ``own`` those
    of them that do not come from the prefix.
    """

    def __init__(self, offset: int) -> None:
        self.offset = offset  # masks are made before the first prefix is put in
        self.before: tuple[mx.array, mx.array] | None = None
        self.own: tuple[mx.array, mx.array] | None = None
        self.shown: tuple[mx.array, mx.array] | None = None

    def put(self, before: tuple[mx.array, mx.array] | None) -> None:
        """Sets the prefix [row or 1, kv_head, position, d] of the next calls."""
        self.before = before if before is not None and before[0].shape[2] else None
        self.offset = 0 if self.before is None else int(self.before[0].shape[2])

    def clear(self) -> None:
        """Lets go of all keys and values: a batch would hold those of every layer to its end."""
        self.before = self.own = self.shown = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The prefix followed by ``keys`` and ``values``, of which it takes note."""
        self.own = (keys[...], values[...])
        if self.before is None:
            shown = (keys, values)
        else:
            shown = (after(self.before[0], keys), after(self.before[1], values))
        self.shown = shown
        return shown


def after(before: mx.array, own: mx.array) -> mx.array:
    """A prefix of one row or all, and what comes after it in every row, along axis 2."""
    rows = mx.broadcast_to(before, (own.shape[0], *before.shape[1:]))
    return mx.concatenate([rows, own], axis=2)


def shares(call: AttentionCall, cache: LayerCache) -> bool:
    """Whether rows had better read one prefix in place than each a copy of it.

    Copying costs two arrays of keys per row, not copying a second look at its scores. Only where
    the kernel is handed what the cache gave out, so that the prefix is known to be its beginning.
    """
    if cache.before is None or cache.shown is None or call.k is not cache.shown[0]:
        return False
    if call.v is not cache.shown[1] or cache.before[0].shape[0] != 1 or call.q.shape[0] == 1:
        return False
    if isinstance(call.mask, mx.array) and call.mask.size != call.q.shape[2] * call.k.shape[2]:
        return False  # one of its own for every row or head
    _, heads, queries, _ = call.q.shape
    kv_heads, d = call.k.shape[1], call.k.shape[-1] + call.v.shape[-1]
    return heads * queries < kv_heads * d


def attend_shared(call: AttentionCall, cache: LayerCache) -> mx.array:
    """Outputs z [row, head, query, d] of rows whose prefix of keys and values is read once for all.

    Scores with the prefix are one matrix product over all rows, those with a row's own keys a
    second one; one softmax in float32 runs over both.
    """
    assert cache.before is not None
    assert cache.own is not None
    q = call.q
    k0, v0 = (a[0].astype(mx.float32) for a in cache.before)  # [kv_head, key, d]
    k1, v1 = (a.astype(mx.float32).swapaxes(0, 1) for a in cache.own)  # [kv_head, row, key, d]
    rows, heads, queries, d = q.shape
    kv_heads, first = k0.shape[:2]
    group = heads // kv_heads
    asked = (q.astype(mx.float32) * call.scale).reshape(rows, kv_heads, group * queries, d)
    asked = asked.swapaxes(0, 1)  # [kv_head, row, group query, d]
    to_prefix = asked.reshape(kv_heads, -1, d) @ k0.swapaxes(-1, -2)
    to_prefix = to_prefix.reshape(kv_heads, rows, group * queries, first)
    scores = mx.concatenate([to_prefix, asked @ k1.swapaxes(-1, -2)], axis=-1)
    keys = scores.shape[-1]
    scores = scores.reshape(kv_heads, rows, group, queries, keys)
    mask = call.mask
    if not isinstance(mask, str) and mask is not None and mask.ndim > 2:
        mask = mask.reshape(mask.shape[-2:])
    scores = masked(scores, mask)
    if call.sinks is not None:
        sinks = call.sinks.astype(mx.float32).reshape(kv_heads, 1, group, 1, 1)
        sinks = mx.broadcast_to(sinks, (*scores.shape[:-1], 1))
        scores = mx.concatenate([scores, sinks], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)
    weights = weights[..., :keys].reshape(kv_heads, rows, group * queries, keys)
    z = (weights[..., :first].reshape(kv_heads, -1, first) @ v0).reshape(
        kv_heads, rows, group * queries, -1
    ) + weights[..., first:] @ v1
    z = z.swapaxes(0, 1).reshape(rows, heads, queries, -1)
    return z.astype(q.dtype)
