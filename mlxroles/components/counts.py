"""Co-activation of two sets of components from counts: phi, Jaccard and both conditionals.

From n_i, n_j (positions at which each fires), n_ij (both) and n (all positions). Counts stay
int64 and every product is made in float64: products of counts beyond 1e8 lose digits in float32,
and beyond 3e9 they leave int64. Where a measure is undefined (a component that never fires, or
always) it is 0.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]


class Coactivation(NamedTuple):
    """How the components i (rows) and j (columns) of two maps go together [C_i, C_j]."""

    phi: Numbers
    """Correlation of the two indicators, (n n_ij - n_i n_j) / sqrt(n_i (n-n_i) n_j (n-n_j))."""
    jaccard: Numbers
    """n_ij / (n_i + n_j - n_ij)."""
    of_first: Numbers
    """P(j fires | i fires) = n_ij / n_i."""
    of_second: Numbers
    """P(i fires | j fires) = n_ij / n_j."""


def coactivation(first: ArrayLike, second: ArrayLike, both: ArrayLike, n: int) -> Coactivation:
    """The measures of every pair.

    Args:
        first: n_i [C_i].
        second: n_j [C_j].
        both: n_ij [C_i, C_j].
        n: Positions.

    Raises:
        ValueError: shapes that do not fit, or counts that cannot be.
    """
    rows = np.asarray(first, dtype=np.float64)[:, None]
    columns = np.asarray(second, dtype=np.float64)[None, :]
    joint = np.asarray(both, dtype=np.float64)
    if joint.shape != (rows.shape[0], columns.shape[1]):
        raise ValueError(f"{joint.shape} pairs of {rows.shape[0]} and {columns.shape[1]}")
    most = np.minimum(rows, columns)
    least = np.maximum(rows + columns - n, 0)
    if (joint > most).any() or (joint < least).any() or (rows > n).any() or (columns > n).any():
        raise ValueError(f"counts that cannot be among {n} positions")
    # the root of each factor by itself: their product would reach 1e36 at 1e9 positions
    spread = np.sqrt(rows * (n - rows)) * np.sqrt(columns * (n - columns))
    return Coactivation(
        _ratio(n * joint - rows * columns, spread),
        _ratio(joint, rows + columns - joint),
        _ratio(joint, np.broadcast_to(rows, joint.shape)),
        _ratio(joint, np.broadcast_to(columns, joint.shape)),
    )


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
