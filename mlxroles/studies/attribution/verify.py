"""Verification of estimates: which cells are run exactly, and how well the estimates agree.

The largest cells show whether what a reader will quote is right, the random ones whether the
ranking is: picked from the rest with a seed, they stand for all the cells that were not run.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2_000
_MISSES = 5
LEAST_FOR_RANKS = 5
"""Fewer cells than this have no rank correlation worth a number."""
LEAST_FOR_INTERVAL = 10
"""Fewer cells than this have no interval: resamples of so few ranks hardly differ."""

Numbers = NDArray[np.float64]
Place = tuple[int, ...]


def choose(estimates: Numbers, k: int, rng: np.random.Generator) -> list[tuple[Place, str]]:
    """The k largest cells by absolute estimate, and k random ones of the rest.

    Args:
        estimates: Of any shape; NaN is no cell.
        k: How many of each, fewer where there are fewer cells.
        rng: Draws the random ones.

    Returns:
        Index and ``largest`` or ``random``, the largest first and the random ones in the order of
        their places.
    """
    flat = np.abs(estimates).ravel()
    known = np.flatnonzero(~np.isnan(flat))
    order = known[np.argsort(-flat[known], kind="stable")]
    rest = order[k:]
    drawn = np.sort(rng.choice(rest, size=min(k, len(rest)), replace=False)) if len(rest) else rest
    picked = [(at, "largest") for at in order[:k]] + [(at, "random") for at in drawn]
    return [
        (tuple(int(i) for i in np.unravel_index(at, estimates.shape)), why) for at, why in picked
    ]


def agreement(
    rows: Sequence[dict[str, Any]], rng: np.random.Generator, cells: int
) -> dict[str, Any]:
    """How estimates and exact effects of verified cells go together.

    Args:
        rows: Each with ``estimate``, ``exact`` and ``kind``.
        rng: Draws the bootstrap over cells.
        cells: How many cells there are in all.

    Returns:
        ``n``, ``spearman`` with ``spearman_ci``, the same of the random cells alone under
        ``random``, ``sign_agreement`` (share of the cells whose estimate and exact effect have
        the same sign), ``ratio`` (slope through zero of the estimates on the exact effects),
        ``complete`` (whether these are all the cells), ``largest_difference`` (estimate - exact
        of the cell that is farthest off, with its sign) and ``misses``: numbers of the rows that
        are farthest off, worst first.
    """
    random = [row for row in rows if row["kind"] == "random"]
    found = _agreement(rows, rng) | {"random": _agreement(random, rng)}
    off = np.array([row["estimate"] - row["exact"] for row in rows], dtype=np.float64)
    order = np.argsort(-np.nan_to_num(np.abs(off), nan=-1.0), kind="stable")[:_MISSES]
    return found | {
        "complete": len(rows) >= cells and bool(np.isfinite(off).all()),
        "largest_difference": float(off[order[0]]) if len(off) else None,
        "misses": [int(i) for i in order],
    }


def _agreement(rows: Sequence[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    x, y = (np.array([row[n] for row in rows], dtype=np.float64) for n in ("estimate", "exact"))
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    size = float(y @ y)
    return {
        "n": len(x),
        "spearman": spearman(x, y),
        "spearman_ci": spearman_interval(x, y, rng),
        "sign_agreement": float(np.mean(np.sign(x) == np.sign(y))) if len(x) else math.nan,
        "ratio": float(x @ y) / size if size > 0 else math.nan,
    }


def spearman(x: Numbers, y: Numbers) -> float:
    """Spearman's rank correlation with mean ranks on ties; NaN below 5 pairs or for a constant."""
    if len(x) < LEAST_FOR_RANKS:
        return math.nan
    return float(_rows(x[None], y[None])[0])


def spearman_interval(x: Numbers, y: Numbers, rng: np.random.Generator) -> list[float] | None:
    """The 95 % percentile bootstrap interval over cells; None for few cells or a constant."""
    if len(x) < LEAST_FOR_INTERVAL or math.isnan(spearman(x, y)):
        return None
    drawn = rng.integers(len(x), size=(_RESAMPLES, len(x)))
    values = _rows(x[drawn], y[drawn])
    values = values[~np.isnan(values)]
    if len(values) < _RESAMPLES / 2:
        return None
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]


def _rows(x: Numbers, y: Numbers) -> Numbers:
    """Spearman's correlation of each row [row, pair]."""
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=1) for values in (x, y))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    size = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), size, out=np.full(len(a), np.nan), where=size > 0)
