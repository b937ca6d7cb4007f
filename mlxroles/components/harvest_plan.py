"""The plan of a harvest: what runs together, in which pass, and which pairs of maps are counted."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxroles.backend import mx
from mlxroles.components.decomposition import Decomposition
from mlxroles.components.harvest_sums import EXAMPLE_BYTES, Span
from mlxroles.components.maps import ATTENTION

POSITIONS = 1024
"""Positions that run at once, about; fixed, so that a harvest has the same numbers everywhere."""
AT_ONCE = 1 << 30
"""Bytes of sums up to which several layers are harvested in one pass over the text, and bytes of a
layer's pair counts."""
COLUMNS = 2048
"""Ids that have a PMI at most: all of a small vocabulary, else the commonest of the text."""

Array = np.ndarray[Any, Any]
Maps = Mapping[str, Decomposition]
Pair = tuple[str, str]
Rows = Sequence[Sequence[int]]


class Batch(NamedTuple):
    """Rows of text that run together, padded on the right."""

    tokens: mx.array
    """[row, position]"""
    flat: mx.array
    """Places of the real positions in [row * position]."""
    span: Span


def cuts(rows: Rows) -> list[range]:
    """Numbers of the rows of each batch: in order, as many as make about ``POSITIONS``."""
    found, start = [], 0
    while start < len(rows):
        stop, longest = start, 0
        while stop < len(rows):
            longer = max(longest, len(rows[stop]))
            if stop > start and longer * (stop - start + 1) > POSITIONS:
                break
            stop, longest = stop + 1, longer
        found.append(range(start, stop))
        start = stop
    return found


def batch(rows: Rows, chosen: range, columns: Array, seed: int) -> Batch:
    """The batch of these rows.

    Args:
        rows: All rows of the text.
        chosen: Their numbers.
        columns: Ids that have a PMI, ascending.
        seed: Of the choice of random examples.
    """
    own = [np.asarray(rows[n], dtype=np.int32) for n in chosen]
    lengths = np.array([len(row) for row in own])
    ids = np.concatenate(own)
    position = np.concatenate([np.arange(n) for n in lengths])
    local = np.repeat(np.arange(len(own)), lengths)
    padded = np.zeros((len(own), lengths.max()), dtype=np.int32)
    padded[local, position] = ids
    column = np.minimum(np.searchsorted(columns, ids), len(columns) - 1)
    span = Span(
        chosen.start + local,
        position,
        np.repeat(lengths, lengths),
        np.random.default_rng([seed, 1, chosen.start]).random(len(ids)),
        np.where(columns[column] == ids, column, -1),
    )
    return Batch(mx.array(padded), mx.array(local * padded.shape[1] + position), span)


def common_ids(rows: Rows, vocab: int) -> Array:
    """Ids that have a PMI, ascending: all of a small vocabulary, else the text's commonest."""
    if vocab <= COLUMNS:
        return np.arange(vocab)
    ids, counts = np.unique(np.concatenate([np.asarray(row) for row in rows]), return_counts=True)
    return np.sort(ids[np.argsort(-counts, kind="stable")[:COLUMNS]])


def counted_pairs(maps: Maps) -> tuple[list[Pair], list[Pair]]:
    """Pairs of maps whose components are counted together, and those there is no room for.

    Within a layer the maps of attention and those of the MLP, each also with itself. The counts
    of a layer take ``AT_ONCE`` bytes at most; two of q, k and v come first.
    """
    kept: list[Pair] = []
    left_out: list[Pair] = []
    for layer in sorted({d.layer for d in maps.values()}):
        ours = [key for key, d in maps.items() if d.layer == layer]
        near = [
            (a, b)
            for n, a in enumerate(ours)
            for b in ours[n:]
            if (maps[a].kind in ATTENTION) == (maps[b].kind in ATTENTION)
        ]
        near.sort(key=lambda pair: pair[0] == pair[1] or not _reads({maps[k].kind for k in pair}))
        room = AT_ONCE
        for pair in near:
            size = _bytes(maps, pair)
            (kept if size <= room else left_out).append(pair)
            room -= size if size <= room else 0
    return kept, left_out


def passes(maps: Maps, pairs: Sequence[Pair], n_columns: int, n_examples: int) -> list[list[str]]:
    """The maps of each pass: whole layers, as many as ``AT_ONCE`` allows, at least one."""
    groups: list[list[str]] = []
    used = 0
    for layer in sorted({d.layer for d in maps.values()}):
        ours = [key for key, d in maps.items() if d.layer == layer]
        size = sum(_bytes(maps, pair) for pair in pairs if pair[0] in ours)
        for d in (maps[key] for key in ours):
            size += d.n * (16 * n_columns + EXAMPLE_BYTES * n_examples)
            size += 4 * POSITIONS * (d.d_in + 3 * d.n)
        if groups and used + size <= AT_ONCE:
            groups[-1] += ours
            used += size
        else:
            groups.append(ours)
            used = size
    return groups


def _reads(kinds: set[str]) -> bool:
    """Whether these are of q, k and v alone."""
    return kinds <= {"q", "k", "v"}


def _bytes(maps: Maps, pair: Pair) -> int:
    return 8 * maps[pair[0]].n * maps[pair[1]].n
