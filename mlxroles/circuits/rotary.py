"""What a position does to queries and keys: the model's own RoPE, asked and not parsed.

The module that turns queries and keys is found by watching a short run, and called with vectors of
ours at positions of ours. So it does not matter what it is called, which pairs of elements it
turns, how many of them, with which frequencies and scaling. That it is linear and that only the
distance counts is checked. Layers that turn nothing have a curve too: a constant one.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mlxroles.anatomy import PROBE, distance
from mlxroles.anatomy.watch import Seen, watch
from mlxroles.attribution.trace import Trace
from mlxroles.backend import mx, nn, number
from mlxroles.circuits.matrices import unturned
from mlxroles.errors import ModelError
from mlxroles.forward import Network
from mlxroles.models.model import Model
from mlxroles.taps import real_class

CLOSE = 1e-3
"""Largest error of what is checked, as a share of the largest number."""
LEAST = -1e4
"""A mask hides the keys at which it adds less than this."""
TINY = 1e-6
"""Products smaller than this tell no scale."""


@dataclass(frozen=True, eq=False)
class Rotary:
    """How a layer turns queries and keys by position, and the scale of its scores."""

    layer: int
    d_head: int
    scale: float
    """Factor of q . k before mask, soft-cap and softmax."""
    module: nn.Module | None
    """What turns them; None where positions leave queries and keys as they are."""
    first: int = 0
    """First element of a head that the module is handed; those before and after are not turned."""
    width: int = 0
    """Number of elements that it is handed; how many of those it turns is its own business."""
    notes: tuple[str, ...] = ()

    def at(self, vectors: mx.array | np.ndarray, position: int) -> mx.array:
        """Vectors [..., d_head] as they stand at a position, float32.

        Raises:
            ValueError: vectors of another width, or a position below 0.
        """
        x = mx.array(vectors).astype(mx.float32)
        if x.ndim == 0 or x.shape[-1] != self.d_head:
            raise ValueError(f"vectors of shape {x.shape} are not [..., {self.d_head}]")
        if position < 0:
            raise ValueError(f"position {position} is below 0")
        if self.module is None or not x.size:
            return x
        end = self.first + self.width
        rows = x.reshape(1, -1, 1, self.d_head)
        turned = _turned(self.module, rows[..., self.first : end], position)
        parts = [rows[..., : self.first], turned.astype(mx.float32), rows[..., end:]]
        return mx.concatenate(parts, axis=-1).reshape(x.shape)

    def curve(
        self,
        u_q: mx.array | np.ndarray,
        u_k: mx.array | np.ndarray,
        offsets: Sequence[int],
    ) -> mx.array:
        """W(D) = scale * q(m) . k(n) at every distance D = m - n [..., offset], float32.

        Args:
            u_q: Queries [..., d_head], before any RoPE.
            u_k: Keys of a shape that goes with it.
            offsets: Distances D; negative ones put the key after the query.
        """
        q, k = mx.array(u_q), mx.array(u_k)
        at_zero = {"q": self.at(q, 0), "k": self.at(k, 0)}
        found = []
        for offset in (int(o) for o in offsets):
            turned_q = self.at(q, offset) if offset > 0 else at_zero["q"]
            turned_k = self.at(k, -offset) if offset < 0 else at_zero["k"]
            found.append((turned_q * turned_k).sum(axis=-1))
        return self.scale * mx.stack(found, axis=-1)


def rotary(model: Model, layer: int) -> Rotary:
    """How positions enter the attention of a layer.

    Raises:
        ModelError: positions enter in a way that cannot be asked: by name.
        ValueError: the layer does not exist.
    """
    if not 0 <= layer < model.n_layers:
        raise ValueError(f"layer {layer} is outside 0..{model.n_layers - 1}")
    known = _KNOWN.setdefault(model.network, {})
    if layer not in known:
        known[layer] = _found(model.network, layer)
    return known[layer]


_KNOWN: "WeakKeyDictionary[Network, dict[int, Rotary]]" = WeakKeyDictionary()


class _Kernel(NamedTuple):
    """What the softmax of a layer is made of."""

    q: mx.array
    """[batch, head, position, d_head], after RoPE and norms."""
    k: mx.array
    """[batch, kv_head, position, d_head]."""
    scale: float
    notes: tuple[str, ...]
    """What is in the scores besides."""


class _Turn(NamedTuple):
    """A submodule that was handed queries or keys, and what it made of them."""

    module: nn.Module
    taken: mx.array
    """[batch, head, position, d]."""
    given: mx.array


def _found(network: Network, layer: int) -> Rotary:
    where = f"positions in layer {layer} of {network.architecture}"
    why = network.anatomy.refused
    if not why:
        block = network.block(layer)
        why = block.missing.get("q") or block.missing.get("k")
    if why or network.parts > 1:
        raise ModelError(f"{where}: {why or 'several processes hold its heads together'}")
    seen = watch(network.module, list(network.layers), direct=network.anatomy.direct)[0][layer]
    named = dict(network.layers[layer].named_modules())
    turns = [
        _Turn(named[event.path], event.taken, event.given)
        for event in seen.events
        if event.taken is not None and event.given is not None and event.taken.ndim == 4
    ]
    turning = [turn for turn in turns if turn.taken.shape == turn.given.shape and _moves(turn)]
    kernel = _kernel(network, layer, seen)
    d_head, scale, notes = kernel.q.shape[-1], kernel.scale, kernel.notes
    if not turning:
        if not unturned(network, layer):
            raise ModelError(f"{where}: no module is seen to turn queries, and yet they turn")
        return Rotary(layer, d_head, scale, None, notes=notes)
    places = {
        site: {(id(turn.module), _place(array, turn.given)): turn for turn in turning}
        for site, array in (("q", kernel.q), ("k", kernel.k))
    }
    both = [at for at in places["q"] if at in places["k"] and at[1] is not None]
    if not both:
        width = turning[0].taken.shape[-1]
        raise ModelError(
            f"{where}: what is turned ({width} elements) does not reach the kernel ({d_head}) "
            "unchanged"
        )
    module, first = places["q"][both[0]].module, int(both[0][1] or 0)
    width = places["q"][both[0]].taken.shape[-1]
    found = Rotary(layer, d_head, scale, module, first, width, notes)
    _verify(found, where)
    return found


def _kernel(network: Network, layer: int, seen: Seen) -> _Kernel:
    """What the kernel of a layer was handed on the short run."""
    if seen.attention:
        call = seen.attention[0][1]
        mask, notes = call.mask, ()
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            finite = mx.where(mask > LEAST, mask, 0.0)
            if number(mx.abs(finite).max()) > 0:
                notes = ("the mask adds numbers to the scores, which are left out",)
        return _Kernel(call.q, call.k, float(call.scale), notes)
    trace = Trace(network, {}, watched=[("q", layer), ("k", layer)], last=layer)
    trace.run(mx.array([PROBE]))
    q, k = (trace.seen[site, layer].swapaxes(1, 2).astype(mx.float32) for site in "qk")
    scores, grouped = np.array(trace.scores[layer]), mx.repeat(k, q.shape[1] // k.shape[1], axis=1)
    products = np.array(q @ grouped.swapaxes(-1, -2))
    seen_keys = np.tril(np.ones(products.shape[-2:], dtype=bool)) & (np.abs(products) > TINY)
    # where they are small, a soft-cap leaves scores as they are
    flat, made = scores[seen_keys], products[seen_keys]
    small = np.argsort(np.abs(flat))[: max(1, flat.size // 4)]
    scale = float(np.median(flat[small] / made[small]))
    return _Kernel(q, k, scale, ("a soft-cap is left out, if there is one",))


def _moves(turn: _Turn) -> bool:
    """Whether a module makes something else of the same vectors at the next position."""
    if "offset" not in inspect.signature(real_class(turn.module).__call__).parameters:
        return False
    heads, width = turn.taken.shape[1], turn.taken.shape[-1]
    rng = np.random.default_rng(0)
    one = mx.array(rng.standard_normal((1, heads, 1, width)).astype(np.float32))
    return distance(_turned(turn.module, one, 1), _turned(turn.module, one, 0)) > CLOSE


def _turned(module: nn.Module, rows: mx.array, position: int) -> mx.array:
    """What a module makes of vectors [1, n, 1, d] at a position."""
    out: Any = module(rows, offset=position)
    return out.astype(mx.float32)


def _place(q: mx.array, given: mx.array) -> int | None:
    """Where in queries [..., d_head] what a module gave [..., width] stands, but for its size."""
    if q.shape[:-1] != given.shape[:-1]:
        return None
    q, given = q.astype(mx.float32), given.astype(mx.float32)
    width = given.shape[-1]
    squared = mx.maximum((given * given).sum(axis=-1, keepdims=True), 1e-30)
    for first in range(q.shape[-1] - width + 1):
        part = q[..., first : first + width]
        size = (part * given).sum(axis=-1, keepdims=True) / squared
        if distance(size * given, part) <= CLOSE:
            return first
    return None


def _verify(found: Rotary, where: str) -> None:
    """Checks that positions turn vectors linearly, and that only the distance counts.

    Raises:
        ModelError: they do not.
    """
    rng = np.random.default_rng(0)
    a, b = (mx.array(x) for x in rng.standard_normal((2, 4, found.d_head)).astype(np.float32))
    linear = distance(found.at(a, 7) - 2 * found.at(b, 7), found.at(a - 2 * b, 7))
    here = (found.at(a, 7) * found.at(b, 2)).sum(axis=-1)
    there = (found.at(a, 12) * found.at(b, 7)).sum(axis=-1)
    if linear > CLOSE:
        raise ModelError(f"{where}: what turns queries is not linear (off by {linear:.1e})")
    if distance(here, there) > CLOSE:
        raise ModelError(f"{where}: more than the distance of query and key counts")
