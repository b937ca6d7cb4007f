"""What clean and patched runs share: caches of the engine, and a last layer that reads late."""

from collections.abc import Sequence
from typing import Any

from mlxroles.anatomy import stream
from mlxroles.backend import mx, on_gpu
from mlxroles.edits import ATTENTION_SITES, DERIVED
from mlxroles.engine.caches import LayerCache
from mlxroles.engine.rows import Shape
from mlxroles.forward import Network
from mlxroles.forward.asked import Asked
from mlxroles.forward.job import Job
from mlxroles.taps import AttentionCall, ModuleCall

BLOCK, BLOCKS = 32, 8
"""Queries of a block of attention on a CPU at least, and blocks of a prompt at most."""


class Drive(Job):
    """A forward whose layers read and write caches that the engine holds.

    ``first`` is the position at which the arrays of the call that is running begin.
    """

    def __init__(self, network: Network, asked: Asked, shape: Shape, first: int) -> None:
        super().__init__(network, asked)
        self.shape, self.first = shape, first
        self.caches = [LayerCache(first) for _ in network.layers] if shape.late else None

    @property
    def n(self) -> int:
        """Number of layers."""
        return len(self.network.layers)

    def go(self, tokens: mx.array) -> mx.array:
        """Logits of the model's own forward on tokens [1, position] from ``first`` on."""
        extra: dict[str, Any] = {} if self.caches is None else {"cache": self.caches}
        with self.tap():
            out = self.network.module(tokens, **extra)
        return stream(out)

    def wants_attention(self) -> bool:
        """On a CPU the kernel is handed fewer keys than the model would hand it."""
        return super().wants_attention() or not on_gpu()

    def attention(self, call: AttentionCall) -> mx.array:
        """Outputs z [row, head, query, d]; where nothing is asked of it, by blocks of queries.

        MLX's kernel for CPUs works out the scores of later keys and hides them: a third of a
        layer's time at 512 tokens. A block of queries is handed the keys up to its last one.
        """
        i, queries = call.frame.layer, call.q.shape[2]
        causal = isinstance(call.mask, str) and isinstance(call.k, mx.array)
        asked = any(self._has(site, i) for site in (*ATTENTION_SITES, *DERIVED))
        if on_gpu() or not causal or asked or queries < 2 * BLOCK:
            return super().attention(call)
        size, first = max(BLOCK, -(-queries // BLOCKS)), call.k.shape[2] - queries
        parts = []
        for begin in range(0, queries, size):
            end = min(begin + size, queries)
            seen = first + end
            q, k, v = call.q[:, :, begin:end], call.k[:, :, :seen], call.v[:, :, :seen]
            parts.append(call.fused(q, k, v))
        return mx.concatenate(parts, axis=2)

    def late_block(self, call: ModuleCall, place: int | str, h: mx.array) -> mx.array:
        """What leaves the last block at the positions from the first one read on.

        The block is called twice: what the first call hands to its cache are the keys and values
        of all positions, the rest of it is never evaluated; the second call runs the last
        positions with those before the prefix.
        """
        assert self.caches is not None
        assert call.frame is not None
        skipped = self.shape.first_read - self.first
        cache = self.caches[call.frame.layer]
        kept, known = h.shape[1] - skipped, cache.before
        self._muted(again(call), place, h)
        assert cache.shown is not None
        k, v = (a[:, :, : self.shape.first_read] for a in cache.shown)
        cache.put((k, v))
        begun, self.first = self.first, self.shape.first_read
        self.offset = cache.offset
        after, _ = self._block(cut(call, h.shape[1], kept), place, h[:, skipped:])
        self.first = begun
        cache.put(known)
        self.offset = cache.offset
        return after

    def _muted(self, call: ModuleCall, place: int | str, h: mx.array) -> None:
        """Runs a block for its keys and values alone."""
        kept = {site: dict(arrays) for site, arrays in self.kept.items()}
        self._block(call, place, h)
        self.kept = kept


def again(call: ModuleCall) -> ModuleCall:
    """A call of the same block with the same arguments, to be changed and run by itself."""
    return ModuleCall(call.module, call.cls, call.args, dict(call.kwargs), call.frame)


def cut(call: ModuleCall, length: int, kept: int) -> ModuleCall:
    """The call with arguments per position, masks above all, for the last ``kept`` of them."""
    made = again(call)
    made.args = tuple(_cut(a, length, kept) for a in call.args)
    made.kwargs = {name: _cut(a, length, kept) for name, a in call.kwargs.items()}
    return made


def _cut(value: Any, length: int, kept: int) -> Any:
    """An argument of a block, a mask as a rule, at the last ``kept`` of its positions."""
    if not isinstance(value, mx.array) or value.ndim < 1:
        return value
    axis = -1 if value.ndim == 1 else -2
    if value.shape[axis] != length:
        return value
    return value[-kept:] if axis == -1 else value[..., -kept:, :]


def rows_of(array: mx.array, prompts: Sequence[int]) -> mx.array:
    """The array's rows of these prompts; one prompt's row stands for all of them, uncopied."""
    if array.shape[0] == 1:
        return array
    if len({*prompts}) == 1:
        return array[prompts[0] : prompts[0] + 1]
    return mx.take(array, mx.array(list(prompts)), axis=0)
