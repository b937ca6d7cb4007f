"""What the weights of components say by themselves: norms, heads, spread, what they read alike.

A component is the rank-one matrix ``outer(U[c], V[:, c])`` of a map [d_out, d_in]; its Frobenius
norm is the product of two vectors' norms. In a map with heads, U's columns (q, k, v) or V's rows
(o) fall into heads of ``d_head``, with as many heads as *this* map has: key and value maps of
grouped attention have fewer than the query map. Everything here is arithmetic in float64 on numpy
arrays; a ``Decomposition`` is read, never changed.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.components.decomposition import Decomposition

Numbers = NDArray[np.float64]

LEAST = 1e-12
"""Norms below this count as this, where they divide."""
_DRAWS = 1000


def norms(found: Decomposition) -> Numbers:
    """Frobenius norm of every component [component]: ``|U[c]| |V[:, c]|``."""
    read, written = _sides(found)
    return np.linalg.norm(read, axis=0) * np.linalg.norm(written, axis=1)


def head_norms(found: Decomposition) -> Numbers:
    """Frobenius norm of every component's part in every head [component, head].

    ``|U[c, of the head]| |V[:, c]|`` for q, k and v; ``|V[of the head, c]| |U[c]|`` for o.

    Raises:
        ValueError: the map has no heads.
    """
    if not found.n_heads:
        raise ValueError(f"{found.key} has no heads")
    read, written = _sides(found)
    if found.kind == "o":
        parts = read.T.reshape(read.shape[1], found.n_heads, -1)
        return np.linalg.norm(parts, axis=2) * np.linalg.norm(written, axis=1)[:, None]
    parts = written.reshape(len(written), found.n_heads, -1)
    return np.linalg.norm(parts, axis=2) * np.linalg.norm(read, axis=0)[:, None]


def shares(by_head: Numbers) -> Numbers:
    """The share of each head in the sum of a component's head norms [component, head].

    NaN for a component without any norm.
    """
    total = by_head.sum(axis=-1, keepdims=True)
    return by_head / np.where(total > 0, total, np.nan)


def spread(by_head: Numbers) -> Numbers:
    """How a component spreads over heads: ``-sum p ln p`` in nats of its shares [component].

    0 in one head alone, ln(heads) in all alike, NaN without any norm.
    """
    share = shares(by_head)
    return -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1)


def chance_share(n_heads: int, d_head: int, *, seed: int = 0) -> float:
    """The largest share of a head that 95 of 100 random directions stay below."""
    draws = np.random.default_rng(seed).standard_normal((_DRAWS, n_heads, d_head))
    return float(np.quantile(shares(np.linalg.norm(draws, axis=2)).max(axis=1), 0.95))


def head_activity(found: Decomposition, firing: NDArray[Any]) -> Numbers:
    """How strongly a component writes to every head while it fires [component, head].

    Args:
        found: A map whose output has heads (q, k, v).
        firing: Mean of ``|a| |U[c]|`` over the positions where the component fires [component].

    Raises:
        ValueError: the map's output has no heads.
    """
    if not found.n_heads or found.kind == "o":
        raise ValueError(f"the output of {found.key} has no heads")
    _, written = _sides(found)
    parts = np.linalg.norm(written.reshape(len(written), found.n_heads, -1), axis=2)
    whole = np.maximum(np.linalg.norm(written, axis=1), LEAST)
    return np.asarray(firing, dtype=np.float64)[:, None] * parts / whole[:, None]


def similarity(one: Decomposition, other: Decomposition) -> Numbers:
    """Cosine between what the components of two maps read: columns of V [one's, other's].

    Raises:
        ValueError: the maps do not read the same number of features.
    """
    first, second = _sides(one)[0], _sides(other)[0]
    if len(first) != len(second):
        raise ValueError(f"{one.key} reads {len(first)} features, {other.key} {len(second)}")
    first, second = (
        v / np.maximum(np.linalg.norm(v, axis=0, keepdims=True), LEAST) for v in (first, second)
    )
    return first.T @ second


def chance_cosine(d_in: int, pairs: int = 1) -> float:
    """``|cosine|`` that the largest of so many pairs of random directions stays below (95 %).

    By the normal approximation of a cosine's distribution, whose tails are the heavier ones.
    """
    return min(1.0, NormalDist().inv_cdf(1 - 0.025 / max(pairs, 1)) / math.sqrt(d_in))


def _sides(found: Decomposition) -> tuple[Numbers, Numbers]:
    """V [d_in, C] and U [C, d_out] in float64."""
    return np.asarray(found.V, dtype=np.float64), np.asarray(found.U, dtype=np.float64)
