"""The pairs of tokens that a head's circuits join most, found without a table of all pairs.

QK: the score of a query at one token with a key at another, at distance 0 as far as RoPE goes. OV:
the logit that attending to one token gives another. Tokens enter as a norm without gain would make
of their embeddings, so that in layer 0 a QK entry is the score that the model itself computes, but
for its scale. A pair's z is its distance from the mean of all pairs in standard deviations of all
pairs, both from moments and not from a sample.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxroles.backend import mx, number
from mlxroles.circuits.ends import Ends
from mlxroles.circuits.matrices import Heads

Numbers = NDArray[np.float64]

BLOCK = 1 << 22
"""Entries of a circuit that are made at a time: few enough to stay near the processor."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """The largest and the smallest entries of one circuit of a head."""

    left: NDArray[np.int64]
    """Ids of the first tokens [2, k]: row 0 the largest entries, row 1 the smallest."""
    right: NDArray[np.int64]
    value: Numbers
    """Entries [2, k], the most extreme first."""
    mean: float
    """Of all entries."""
    spread: float
    """Standard deviation of all entries."""
    same: float
    """Mean entry of a token with itself."""
    expected: float
    """z that the largest of as many independent normal numbers would have, about."""

    @property
    def z(self) -> Numbers:
        """Distance of every entry from the mean, in standard deviations [2, k]."""
        return (self.value - self.mean) / (self.spread or 1.0)


def ends_of_head(ends: Ends, heads: Heads, head: int, *, fold_norms: bool) -> dict[str, mx.array]:
    """Both ends of both circuits of a head for all ids [vocab, d].

    Ids are read with q, k and v, and written to with o.
    """
    kv, found = head // heads.group, {name: [] for name in "qkvo"}
    bias = {
        "q": 0.0 if heads.q_bias is None else heads.q_bias[head],
        "k": 0.0 if heads.k_bias is None else heads.k_bias[kv],
    }
    for ids in ends.blocks():
        x = heads.normed(ends.embedding(ids))
        found["q"].append(x @ heads.q[head] + bias["q"])
        found["k"].append(x @ heads.k[kv] + bias["k"])
        found["v"].append(x @ heads.v[kv])
        found["o"].append(ends.unembedding(ids, fold_norms=fold_norms) @ heads.o[head].T)
        mx.eval([parts[-1] for parts in found.values()])
    return {name: mx.concatenate(parts) for name, parts in found.items()}


def top_pairs(left: mx.array, right: mx.array, k: int) -> Pairs:
    """The k largest and k smallest of all products left . right of rows [n, d] and [m, d]."""
    n, m = left.shape[0], right.shape[0]
    k = min(k, n * m)
    largest, smallest = _Best(k, 1), _Best(k, -1)
    size = max(1, BLOCK // m)
    for start in range(0, n, size):
        entries = np.asarray(left[start : start + size] @ right.T)
        largest.take(entries, start)
        smallest.take(entries, start)
    mean, spread = _moments(left, right)
    shared = min(n, m)
    same = number((left[:shared] * right[:shared]).sum(axis=-1).mean())
    both = (largest, smallest)
    return Pairs(
        np.stack([one.left for one in both]),
        np.stack([one.right for one in both]),
        np.stack([one.sign * one.values.astype(np.float64) for one in both]),
        mean,
        spread,
        same,
        math.sqrt(2 * math.log(max(n * m, 2))),
    )


class _Best:
    """The k largest entries so far, with ``sign`` -1 the k smallest; the most extreme first."""

    def __init__(self, k: int, sign: int) -> None:
        self.k, self.sign = k, sign
        self.values = np.empty(0, dtype=np.float32)
        """Times the sign."""
        self.left, self.right = np.empty(0, np.int64), np.empty(0, np.int64)

    def take(self, entries: NDArray[np.float32], start: int) -> None:
        """A block of the circuit [row, m], of which the first row is row ``start`` of all."""
        highest = entries.max(axis=1) if self.sign > 0 else -entries.min(axis=1)
        least = float(self.values.min()) if self.values.size >= self.k else -math.inf
        rows = np.flatnonzero(highest > least)
        if not rows.size:
            return
        # only the rows of the k largest maxima can hold the k largest
        rows = rows[np.argsort(-highest[rows], kind="stable")[: self.k]]
        found = self.sign * entries[rows]
        flat = found.ravel()
        k = min(self.k, flat.size)
        at = np.argpartition(-flat, k - 1)[:k]
        values = np.concatenate([self.values, flat[at]])
        left = np.concatenate([self.left, rows[at // found.shape[1]] + start])
        right = np.concatenate([self.right, at % found.shape[1]])
        order = np.lexsort((right, left, -values))[: self.k]
        self.values, self.left, self.right = values[order], left[order], right[order]


def _moments(left: mx.array, right: mx.array) -> tuple[float, float]:
    """Mean and standard deviation of all products of the rows of two arrays."""
    a, b = (np.array(x, dtype=np.float64) for x in (left, right))
    mean = float(a.mean(axis=0) @ b.mean(axis=0))
    square = float(((a.T @ a / len(a)) * (b.T @ b / len(b))).sum())
    return mean, math.sqrt(max(square - mean * mean, 0.0))
