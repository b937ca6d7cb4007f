"""A decomposition of any model at once: the singular values of each map's weight.

W = A diag(s) B^T gives V = B and U = diag(s) A^T, component by component from the largest: V's
columns have length 1, so that a component's activation is the input's coordinate along them, and
the length of U[c] is its singular value. With all components V U = W^T to the last digits of
float32. Nothing here was trained: what a component is for follows from directions of the weight
alone, and singular vectors of nearly equal values may turn among themselves.
"""

from collections.abc import Callable, Iterable

import numpy as np

from mlxroles.components.decomposition import Components, Decomposition
from mlxroles.components.file import identity
from mlxroles.components.maps import KINDS, Map, decomposable
from mlxroles.models.model import Model

SMALL = 1024
"""Sides of a matrix up to which float64 costs little."""


def svd(
    model: Model,
    kinds: Iterable[str] = KINDS,
    *,
    layers: Iterable[int] | None = None,
    rank: int | None = None,
    told: Callable[[Map, int, int], None] = lambda m, n, of: None,
) -> Components:
    """The maps of a model as components, each of as many as its rank, or the ``rank`` largest.

    Args:
        model: Any model whose maps can be decomposed.
        kinds: Of ``maps.KINDS``.
        layers: None for all.
        rank: Most components of a map.
        told: Called before each map with it, its number from 1 and the number of maps.

    Raises:
        ModelError: a map that the model does not have; see ``maps.decomposable``.
        ValueError: a kind or layer that does not exist.
    """
    found, made = decomposable(model, kinds, layers=layers), {}
    left_out = 0.0
    for n, m in enumerate(found.values(), 1):
        told(m, n, len(found))
        v, u, rest = factors(m.weight(model), rank)
        left_out = max(left_out, rest)
        made[m.key] = Decomposition(m.key, m.layer, m.kind, v, u, m.n_heads, m.d_head)
    meta = {"model": identity(model), "made": "svd", "rank": rank, "left_out": left_out}
    return Components(made, meta=meta)


def factors(weight: np.ndarray, rank: int | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """V [d_in, C], U [C, d_out] of a weight [d_out, d_in], and the share of its squares left out.

    C is the numerical rank (singular values above the largest times 1e-7), or ``rank`` if smaller.
    """
    wide = weight.astype(np.float64) if max(weight.shape) <= SMALL else weight
    a, s, b = np.linalg.svd(wide, full_matrices=False)
    held = max(1, int((s > s[0] * 1e-7).sum()))
    c = held if rank is None else min(rank, held)
    total = float((s.astype(np.float64) ** 2).sum())
    rest = float((s[c:].astype(np.float64) ** 2).sum()) / total if total else 0.0
    return b[:c].T.astype(np.float32), (s[:c, None] * a.T[:c]).astype(np.float32), rest
