"""One pass of a set of rows over a model: every score of every head, no pattern kept.

Each layer's pattern is read as it passes: the places of all scores are gathered and summed, in
float32 and in MLX, and the pattern is gone before the next layers' are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxroles.backend import mx, on_gpu
from mlxroles.detectors.material import RowSet
from mlxroles.detectors.places import Numbers
from mlxroles.models.model import Model

_AT_ONCE, _AT_ONCE_ON_GPU = 1 << 23, 1 << 25
"""Weights of one layer that are made at once."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Scores of one set; NaN where a layer has no pattern, or no such head, or a row no places."""

    values: dict[str, Numbers]
    """Name of a score -> [row, layer, head]."""
    uniform: dict[str, Numbers]
    """The same from uniform attention over what each query sees [row, layer]."""
    profile: NDArray[np.float32] | None = None
    """Mean weight at each offset [row, layer, head, offset], where the set has a profile."""
    profile_uniform: NDArray[np.float32] | None = None
    """[row, layer, offset]"""


def seen_layers(model: Model, layers: Sequence[int] | None = None) -> list[int]:
    """Layers whose attention pattern can be had, all or of those named."""
    blocks = model.network.anatomy.blocks
    chosen = range(len(blocks)) if layers is None else layers
    return [i for i in chosen if blocks[i].heads and "pattern" not in blocks[i].missing]


def read(model: Model, rows: RowSet, *, layers: Sequence[int] | None = None) -> Reading:
    """All scores of a set on a model, in one pass.

    Args:
        model: Any model; layers without a pattern stay NaN.
        rows: From ``material``.
        layers: Layers to read; None for all.

    Raises:
        PromptError: ids that the model does not have, or rows too long for it.
    """
    blocks = model.network.anatomy.blocks
    heads = max((b.heads for b in blocks), default=0)
    chosen = seen_layers(model, layers)
    names = list(rows.scores)
    values = np.full((len(names), len(rows), model.n_layers, heads + 1), np.nan)
    profile = np.full((len(rows), model.n_layers, heads + 1, rows.offsets), np.nan, np.float32)
    longest = max(len(row) for row in rows.ids)
    weights = _AT_ONCE_ON_GPU if on_gpu() else _AT_ONCE
    at_once = max(1, weights // max(1, heads * longest**2))
    for start in range(0, len(rows) if chosen else 0, at_once):
        part = slice(start, min(start + at_once, len(rows)))
        gather = _Gather(rows, part)
        ids = [list(row) for row in rows.ids[part]]
        run = model.run(ids, keep=["pattern"], layers=chosen, logits=False, summary=gather)
        for i in chosen:
            found = np.array(run["pattern", i].astype(mx.float32))  # the last head is uniform
            own = [*range(found.shape[1] - 1), heads]
            values[:, part, i, own] = np.moveaxis(found[..., : len(names)], -1, 0)
            profile[part, i, own] = found[..., len(names) :]
    for n, name in enumerate(names):
        empty = [not len(given.queries) for given in rows.scores[name]]
        values[n, empty] = np.nan
    whole = rows.offsets > 0
    return Reading(
        {name: values[n, ..., :-1] for n, name in enumerate(names)},
        {name: values[n, ..., -1] for n, name in enumerate(names)},
        profile[:, :, :-1] if whole else None,
        profile[:, :, -1] if whole else None,
    )


class _Gather:
    """The summary of a pattern [row, head + 1, score and offset]; the last head is uniform."""

    def __init__(self, rows: RowSet, part: slice) -> None:
        self.length = max(len(row) for row in rows.ids[part])
        self.offsets, self.start = rows.offsets, rows.start
        index, weights, self.slices = [], [], []
        for given in rows.scores.values():
            own = given[part]
            width = max(1, *(len(p.queries) for p in own))
            first = self.slices[-1].stop if self.slices else 0
            self.slices.append(slice(first, first + width))
            index.append(_padded([p.queries * self.length + p.keys for p in own], width))
            weights.append(_padded([p.weights for p in own], width))
        self.index = mx.array(np.concatenate(index, axis=1).astype(np.int32))[:, None]
        self.weights = mx.array(np.concatenate(weights, axis=1).astype(np.float32))[:, None]

    def __call__(self, layer: int, weights: mx.array, visible: mx.array) -> mx.array:
        seen = visible.astype(mx.float32)
        even = seen / mx.maximum(seen.sum(axis=-1, keepdims=True), 1)
        even = mx.broadcast_to(even, (weights.shape[0], 1, *weights.shape[2:]))
        return mx.concatenate([self._read(weights), self._read(even)], axis=1)

    def _read(self, pattern: mx.array) -> mx.array:
        """Scores and profile [row, head, score and offset]."""
        rows, heads, queries, keys = pattern.shape
        flat = pattern.reshape(rows, heads, queries * keys)
        index = mx.broadcast_to(self.index, (rows, heads, self.index.shape[-1]))
        picked = mx.take_along_axis(flat, index, axis=-1) * self.weights
        found = mx.stack([picked[..., part].sum(axis=-1) for part in self.slices], axis=-1)
        if not self.offsets:
            return found
        return mx.concatenate([found, self._profile(pattern)], axis=-1)

    def _profile(self, pattern: mx.array) -> mx.array:
        """Means of the sub-diagonals [row, head, offset], without what stands in front."""
        inner = pattern[:, :, self.start :, self.start :]
        length = inner.shape[-1]
        index = mx.arange(length)[:, None] - mx.arange(self.offsets)
        there = (index >= 0).astype(mx.float32)
        index = mx.broadcast_to(mx.maximum(index, 0), (*inner.shape[:3], self.offsets))
        diagonals = mx.take_along_axis(inner, index, axis=-1) * there
        return diagonals.sum(axis=2) / (length - mx.arange(self.offsets))


def _padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Rows of different lengths as one array [row, width], filled with 0."""
    found = np.zeros((len(rows), width), dtype=rows[0].dtype)
    for n, row in enumerate(rows):
        found[n, : len(row)] = row
    return found
