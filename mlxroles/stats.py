"""Means and their uncertainty over prompts.

The prompts are the sample: what is resampled is always axis 0. The generator is passed in, so a
run with the same seed gives the same interval.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 2048
"""Columns worked on at a time: 10,000 resamples of them are 160 MB."""


class Interval(NamedTuple):
    """Lower and upper bounds, of the shape of one observation."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def nan_mean(values: ArrayLike) -> NDArray[np.float64]:
    """The mean over axis 0 of what is not NaN; NaN where nothing is left."""
    array = _observations(values)
    missing = np.isnan(array)
    counts = (~missing).sum(axis=0)
    total = np.where(missing, 0.0, array).sum(axis=0)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def bootstrap_mean_ci(
    values: ArrayLike,
    rng: np.random.Generator,
    *,
    n_resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """The percentile bootstrap interval of the mean over axis 0 (Efron 1979, 1981).

    Draws n observations with replacement, takes their mean, and returns the (1 - level)/2 and
    (1 + level)/2 quantiles of those means, for every column at once. NaN entries are left out
    column by column. A column with fewer than two numbers, or with an infinite one, has the
    interval (NaN, NaN). Columns with equally many numbers share their resamples.

    With few prompts the percentile interval is too short: of normal data it covers 84 % at
    n = 5, 89 % at n = 10 and 92 % at n = 20, where 95 % is asked for (measured).

    Args:
        values: one observation per row, ``(n, ...)``.
        rng: the source of the resamples.
        n_resamples: how many there are.
        level: the coverage aimed at, between 0 and 1.
    """
    if not 0 < level < 1 or n_resamples < 1:
        raise ValueError(f"level {level} must be inside (0, 1), n_resamples {n_resamples} positive")
    array = _observations(values)
    columns = array.reshape(len(array), math.prod(array.shape[1:]))
    missing = np.isnan(columns)
    sizes = (~missing).sum(axis=0)
    sizes[np.isinf(columns).any(axis=0)] = 0
    bounds = np.full((2, columns.shape[1]), np.nan)
    tails = [(1 - level) / 2, (1 + level) / 2]
    for size in sorted({int(size) for size in sizes if size > 1}):
        # A resample is known by how often each observation was drawn.
        draws = rng.multinomial(size, np.full(size, 1 / size), size=n_resamples) / size
        chosen = np.flatnonzero(sizes == size)
        for start in range(0, len(chosen), _BLOCK):
            block = chosen[start : start + _BLOCK]
            kept = columns[:, block].T[~missing[:, block].T].reshape(len(block), size).T
            origin = kept[0]
            means = draws @ (kept - origin)  # exact for a constant column
            bounds[:, block] = origin + np.quantile(means, tails, axis=0)
    low, high = bounds.reshape(2, *array.shape[1:])
    return Interval(low, high)


def _observations(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        raise ValueError("observations must have an axis to average over")
    return array
