"""Edits while a text grows: one call after the other with a cache, each given its part of them.

Positions are absolute: they count from the first token of the text, whichever call it comes in. An
edit of the stream, of q, z or the pattern is carried out when its position is run and never again:
what it changed lives on in the cache. Keys and values are edited where attention reads them, as
in a run of the whole text, and so again in every later call: the cache keeps them unedited.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlxroles import attention as attn
from mlxroles.anatomy import stream
from mlxroles.backend import mx
from mlxroles.edits import STREAM_SITES, Edit, LowRank
from mlxroles.errors import ModelError
from mlxroles.forward.asked import Asked
from mlxroles.forward.job import Job
from mlxroles.forward.network import Network
from mlxroles.taps import AttentionCall

Slots = range | np.ndarray
"""The absolute position of each entry along an array's position axis."""

CACHED = ("k", "v")


@dataclass(frozen=True, eq=False)
class Lasting:
    """An edit and the absolute positions ``first`` to ``end`` - 1 at which it may act."""

    edit: Edit
    first: int
    end: int

    def onto(self, slots: Slots) -> Edit | None:
        """The edit on an array that holds these positions; None where it changes none of them.

        The key axis of a pattern's values is cut, or filled with what changes nothing, to one
        key for every position up to the last of ``slots``.
        """
        edit, places = self.edit, np.asarray(slots)
        acts = (places >= self.first) & (places < self.end)
        if edit.positions is not None:
            acts &= np.isin(places, np.asarray(edit.positions))
        if not acts.any():
            return None
        value = self._fitted(int(places[-1]) + 1) if key_count(edit) > 1 else edit.value
        if value_count(edit) > 1 and not isinstance(value, LowRank):
            named = range(self.end) if edit.positions is None else edit.positions
            row = {int(position): n for n, position in enumerate(named)}
            rows = mx.array([row[int(position)] for position in places[acts]])
            value = mx.take(mx.array(value), rows, axis=position_axis(edit))
        left = None if acts.all() else tuple(int(n) for n in np.flatnonzero(acts))
        return replace(edit, value=value, positions=left)

    def _fitted(self, keys: int) -> mx.array:
        value = self.edit.numbers[..., :keys]
        lacking = keys - value.shape[-1]
        nothing = mx.array(1.0 if self.edit.op == "scale" else 0.0, value.dtype)
        widths = [(0, 0)] * (value.ndim - 1) + [(0, lacking)]
        return mx.pad(value, widths, constant_values=nothing) if lacking else value


def position_axis(edit: Edit) -> int:
    """The axis of positions (queries), counted from the end, in a value that has all axes."""
    return -2 if edit.site in STREAM_SITES or edit.site == "pattern" else -3


def value_count(edit: Edit) -> int:
    """Number of positions for which an edit has values of their own; 1 where all share one."""
    shape, axis = _shape(edit), position_axis(edit)
    return shape[axis] if len(shape) >= -axis else 1


def key_count(edit: Edit) -> int:
    """Number of keys for which an edit of the pattern has values of their own; else 1."""
    shape = _shape(edit)
    return shape[-1] if edit.site == "pattern" and shape else 1


def numbers(edit: Edit) -> np.ndarray:
    """The values of an edit, float32."""
    return np.array(edit.numbers.astype(mx.float32))


def _shape(edit: Edit) -> tuple[int, ...]:
    return tuple(getattr(edit.value, "shape", ()))


class Steps(Job):
    """A network that is called with the next tokens of one text and a cache, under edits.

    It stands where mlx_lm expects the model: ``steps(tokens, cache=caches)``. The tap is active
    within a call only, so that several texts may grow in turns and anything else may run between.

    Raises:
        ModelError: a site that cannot be edited, naming it and why.
        ValueError: a layer that does not exist.
    """

    def __init__(self, network: Network, edits: Sequence[Lasting], caches: Sequence[Any]) -> None:
        whole = tuple(lasting.edit for lasting in edits)
        super().__init__(network, Asked((), (), whole, None, None, 0, through=True))
        self.caches = caches
        self.lasting: dict[tuple[str, int], list[Lasting]] = {}
        for one in edits:
            self.lasting.setdefault((one.edit.site, one.edit.layer), []).append(one)
        self.watch = self.tap()
        self.edits = {}
        self.now = range(0)

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        """Logits [1, position, vocab] of the next tokens [1, position]."""
        self.now = range(self.now.stop, self.now.stop + tokens.shape[1])
        self.output = None
        self.edits = {key: due for key in self.lasting if (due := self._due(key))}
        run: Callable[..., Any] = self.network.module
        if not self.edits:
            return stream(run(tokens, cache=cache))
        with self.watch:
            return stream(run(tokens, cache=cache))

    def _due(self, key: tuple[str, int]) -> list[Any]:
        """The edits of a site and layer that change something in this call."""
        slots = range(self.now.stop) if self._from_cache(*key) else self.now
        found = (lasting.onto(slots) for lasting in self.lasting[key])
        return [edit for edit in found if edit is not None]

    def _from_cache(self, site: str, layer: int) -> bool:
        """Whether the site is edited where attention reads its cache, and not before it."""
        block = self.network.block(layer)
        before = {"k": block.rope, "v": block.v_proj}
        return site in CACHED and not before[site]

    def _own_positions(self, name: str, i: int, call: AttentionCall) -> mx.array:
        """Keys or values of all positions that attention reads, after the edits of them all."""
        whole = attn.plain(getattr(call, name), call.cache)
        slots = self._slots(i, call, whole.shape[2])
        found = (lasting.onto(slots) for lasting in self.lasting[name, i])
        self.edits[name, i] = [edit for edit in found if edit is not None]
        return self._pass_heads(name, i, whole.swapaxes(1, 2), 2).swapaxes(1, 2)

    def _slots(self, i: int, call: AttentionCall, n_keys: int) -> Slots:
        """The position of every key that a layer reads.

        Raises:
            ModelError: the cache dropped some of them and does not tell which.
        """
        end = self.now.stop
        if n_keys == end:
            return range(end)
        cache = call.cache
        if cache is None and len(self.caches) == len(self.network.layers):
            cache = self.caches[i]
        oldest_first = end - n_keys + np.arange(n_keys)
        kind = type(cache).__name__
        if kind == "ChunkedKVCache":
            return oldest_first
        if kind == "RotatingKVCache" and not cache.keep:
            # the newest key lies before the place that is written next, the oldest behind it
            return np.roll(oldest_first, cache.state[-1])
        raise ModelError(
            f"keys and values of layer {i} of {self.network.architecture} cannot be edited while "
            f"it generates: its cache ({kind}) hands on {n_keys} of {end} positions, in no known "
            "order; edit the stream or z instead"
        )

    def _check_form(self, i: int, call: AttentionCall, z: mx.array) -> None:
        """Zeroing and scaling mean the same for z in the latent space; the others are refused."""
        if any((site, i) in self.edits for site in ("q", "k", "v")) or not all(
            is_linear(edit) for edit in self.edits.get(("z", i), ())
        ):
            super()._check_form(i, call, z)


def is_linear(edit: Edit) -> bool:
    """Whether an edit of z only scales whole heads, so that it holds in any basis."""
    shape = _shape(edit)
    if shape and shape[-1] > 1:
        return False
    return edit.op == "scale" or (edit.op == "replace" and not numbers(edit).any())
