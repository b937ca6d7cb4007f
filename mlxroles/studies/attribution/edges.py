"""Edges of an attribution run: what their ends are called, and which of them are the largest."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.plan import LayerRange

Triple = tuple[int, str, int | None]
"""Layer, part and head of one end, as the journal holds it."""


def triple(layer: int, part: str, head: int | None) -> Triple:
    """One end of an edge as plain data."""
    return int(layer), str(part), None if head is None else int(head)


def name(end: Sequence[Any]) -> str:
    """What an end is called: ``L3H5``, ``MLP 4``, ``L7H2.q``, ``L9 kv1.v``, ``embed``, ``output``.

    Queries belong to query heads, keys and values to kv heads, which may be fewer.
    """
    layer, part, head = end
    if part in ("mlp", "embed", "resid"):
        return {"mlp": f"MLP {layer}", "embed": "embed", "resid": "output"}[part]
    if part in ("k", "v"):
        return f"L{layer} kv{head}.{part}"
    return f"L{layer}H{head}" + (f".{part}" if part == "q" else "")


def within(ends: Sequence[Sequence[Any]], layers: LayerRange) -> NDArray[np.bool_]:
    """Which ends belong to the tested layers; embedding and output belong to all of them."""
    return np.array([end[1] in ("embed", "resid") or end[0] in layers for end in ends], dtype=bool)


def kept(
    scores: NDArray[np.floating],
    sources: Sequence[Sequence[Any]],
    targets: Sequence[Sequence[Any]],
    layers: LayerRange,
) -> NDArray[np.float64]:
    """Scores [..., source, target] in float64, NaN where an end is in no tested layer."""
    inside = within(sources, layers)[:, None] & within(targets, layers)[None, :]
    return np.where(inside, np.asarray(scores, dtype=np.float64), np.nan)


def ranked(scores: NDArray[np.float64], count: int) -> list[tuple[int, ...]]:
    """Indices of the ``count`` largest absolute numbers, largest first; the first on ties."""
    flat = np.abs(scores).ravel()
    known = np.flatnonzero(~np.isnan(flat))
    order = known[np.argsort(-flat[known], kind="stable")][:count]
    return [tuple(int(i) for i in np.unravel_index(at, scores.shape)) for at in order]
