"""Places of attention patterns: which weights a score reads, and what each of them counts.

A score is sum_i w_i p[q_i, k_i] over places (q, k) of one row's pattern. The same places read
from uniform attention give what a head without a preference would score there, and other places
of the same or of another row give the control; so one pass over a model serves all detectors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]

NEIGHBOURS = (2, 3, 4, 5)
"""Offsets whose mean is the control of the offsets 0 and 1."""
FIRST_KEYS = (1, 2, 3, 4)
"""Positions whose mean is the control of the first one."""
_NEAR = 8
"""How far from a place its control may lie, in queries."""


class Places(NamedTuple):
    """Places of one row's pattern and their weights; without any the row has no score."""

    queries: Integers
    keys: Integers
    weights: Numbers

    def read(self, pattern: ArrayLike) -> Numbers:
        """The score of patterns [..., query, key], shape [...]; NaN without places."""
        given = np.asarray(pattern)
        if not len(self.queries):
            return np.full(given.shape[:-2], np.nan)
        return given[..., self.queries, self.keys].astype(np.float64) @ self.weights

    def moved(self, by: int) -> "Places":
        """The same places in a row that begins with ``by`` further tokens."""
        return Places(self.queries + by, self.keys + by, self.weights)


def places(queries: ArrayLike, keys: ArrayLike, weights: ArrayLike | float | None = None) -> Places:
    """Places with weights of their own, or the mean over them."""
    q, k = np.asarray(queries, dtype=np.int64), np.asarray(keys, dtype=np.int64)
    share = 1 / max(len(q), 1) if weights is None else weights
    return Places(q, k, np.broadcast_to(np.asarray(share, dtype=np.float64), q.shape).copy())


def uniform(visible: ArrayLike) -> Numbers:
    """Attention without a preference over what each query sees; visible [..., query, key] bool."""
    seen = np.asarray(visible, dtype=np.float64)
    return seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1)


def causal(length: int, window: int | None = None) -> NDArray[np.bool_]:
    """What queries of a causal model see [query, key], with a sliding window of so many keys."""
    distance = np.arange(length)[:, None] - np.arange(length)
    return (distance >= 0) & (distance < (window or length))


# --- positions --------------------------------------------------------------------------------


def offset(length: int, d: int) -> Places:
    """Mean over queries q >= d of p[q, q - d]."""
    queries = np.arange(d, length)
    return places(queries, queries - d)


def mean_of(parts: Sequence[Places]) -> Places:
    """The mean of several scores of one row; those without places are left out."""
    found = [part for part in parts if len(part.queries)]
    if not found:
        return places([], [])
    return Places(
        np.concatenate([part.queries for part in found]),
        np.concatenate([part.keys for part in found]),
        np.concatenate([part.weights for part in found]) / len(found),
    )


def previous(length: int) -> Places:
    """Mean over queries q >= 1 of p[q, q - 1] (Olsson et al. 2022)."""
    return offset(length, 1)


def neighbours(length: int) -> Places:
    """The control of ``previous`` and ``own``: the mean of the same score at offsets 2 to 5."""
    return mean_of([offset(length, d) for d in NEIGHBOURS])


def own(length: int) -> Places:
    """Mean over queries q >= 1 of p[q, q]; query 0 sees nothing but itself."""
    queries = np.arange(1, length)
    return places(queries, queries)


def first(length: int, *, start: int = 1, key: int = 0) -> Places:
    """Mean over queries q >= start of p[q, key].

    With ``start=0`` query 0, which sees nothing else, counts its 1, as in the published score.
    """
    queries = np.arange(max(start, key), length)
    return places(queries, np.full(len(queries), key))


def other_first(length: int) -> Places:
    """The control of ``first``: the mean of the same score at the positions 1 to 4."""
    return mean_of([first(length, start=k + 1, key=k) for k in FIRST_KEYS])


# --- tokens -----------------------------------------------------------------------------------


def repeat(length: int) -> Places:
    """Induction on [x, x] of 2 L tokens: mean over k = 0..L-2 of p[L + k, k + 1]."""
    k = np.arange(max(length - 1, 0))
    return places(length + k, k + 1)


def same(length: int) -> Places:
    """Mean over k = 0..L-1 of p[L + k, k]: the token itself where it came before, on [x, x]."""
    k = np.arange(length)
    return places(length + k, k)


def duplicates(ids: Sequence[int]) -> Places:
    """sum_j p[i, j] over j < i with the same id, averaged over the queries that have one."""
    tokens = np.asarray(ids)
    queries, keys = np.nonzero(np.tril(tokens[:, None] == tokens, k=-1))
    return places(queries, keys, 1 / max(len(np.unique(queries)), 1))


def matched(given: Places, ids: Sequence[int], rng: np.random.Generator) -> Places:
    """The control of ``duplicates``: the same distances between tokens that differ.

    Each place (i, j) becomes one (i', j') with i' - j' = i - j, at most 8 queries away, drawn
    among those whose tokens differ; it keeps its own weight. A place without such a partner is
    left out and the rest weigh as much together.
    """
    tokens, kept = np.asarray(ids), []
    for q, k, w, drawn in zip(*given, rng.random(len(given.queries)), strict=True):
        distance = q - k
        around = np.arange(max(distance, q - _NEAR), min(q + _NEAR + 1, len(tokens)))
        can = around[tokens[around] != tokens[around - distance]]
        if len(can):
            at = can[int(drawn * len(can))]
            kept.append((at, at - distance, w))
    if not kept:
        return places([], [])
    queries, keys, weights = (np.array(part) for part in zip(*kept, strict=True))
    return places(queries, keys, weights * given.weights.sum() / weights.sum())


def onto(chosen: ArrayLike, *, start: int = 1) -> Places:
    """Mean over queries q >= start of the weight on chosen keys; chosen [key] bool."""
    marked = np.asarray(chosen, dtype=bool)
    length = len(marked)
    queries, keys = np.nonzero(np.tril(np.ones((length, length), dtype=bool))[start:] & marked)
    return places(queries + start, keys, 1 / max(length - start, 1))


def others(chosen: ArrayLike, rng: np.random.Generator, *, start: int = 0) -> NDArray[np.bool_]:
    """As many keys that are not chosen, each drawn among the nearest free ones [key] bool."""
    marked = np.asarray(chosen, dtype=bool)
    free = ~marked
    free[:start] = False
    found = np.zeros_like(marked)
    for at in np.flatnonzero(marked):
        can = np.flatnonzero(free)
        if not len(can):
            break
        near = can[np.argsort(np.abs(can - at), kind="stable")[:4]]
        drawn = int(rng.choice(near))
        found[drawn], free[drawn] = True, False
    return found


def spans(queries: Sequence[int], keys: Sequence[tuple[int, int]]) -> Places:
    """Mean over pairs of the weight that a query gives to a span [first, end) of keys."""
    rows = [(q, k) for q, (a, b) in zip(queries, keys, strict=True) for k in range(a, b)]
    return places([q for q, _ in rows], [k for _, k in rows], 1 / max(len(queries), 1))
