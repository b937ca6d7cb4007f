"""How far two groups of prompts lie apart, and how sure that is."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxroles.stats.bootstrap import Interval, nan_mean, percentile_interval, weighted_means

_BLOCK = 64
"""Units worked on at a time: 10,000 resamples of them are 5 MB."""
_ROUNDING = 1e-12
"""A spread below this share of the values, or a variance of their squares, is 0."""


class Estimate(NamedTuple):
    """A number and the bounds of its interval, of the shape of one observation."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def cohens_d(first: ArrayLike, second: ArrayLike, *, ddof: int = 1) -> NDArray[np.float64]:
    """Cohen's d, (m1 - m2) / sqrt((v1 + v2) / 2), over axis 0.

    Both groups weigh the same whatever their sizes. 0 where neither group varies, as the original
    study has it. NaN values are left out; NaN where a group keeps no more than ``ddof`` values or
    has an infinite one.

    Args:
        first: one observation per row, ``(n1, ...)``.
        second: the same for the other group, ``(n2, ...)``.
        ddof: 1 for sample variances, 0 for population variances (the study's violin figure).
    """
    one, other = (_without_infinite(group) for group in _groups(first, second))
    spread = (_variance(one, ddof) + _variance(other, ddof)) / 2
    apart = nan_mean(one) - nan_mean(other)
    return np.divide(
        apart, np.sqrt(spread), out=np.where(np.isnan(spread), np.nan, 0.0), where=spread > 0
    )


def cohens_d_interval(
    values: ArrayLike,
    first_members: ArrayLike,
    second_members: ArrayLike,
    counts: NDArray[np.float64],
    *,
    level: float = 0.95,
) -> Interval:
    """The percentile bootstrap interval of :func:`cohens_d` with ``ddof`` 1.

    Resamples in which neither group varies have no d and are left out; where no resample varies
    there is no interval (NaN). Of normal groups that lie 0 or .8 standard deviations apart the
    95 % interval covers 87 % at n = 5, 90-93 % at n = 10 and 94 % at n = 20 and 30 (measured).

    Args:
        values: one observation per prompt, ``(prompt, ...)``.
        first_members: indices of the first group's prompts.
        second_members: indices of the second group's.
        counts: how often each prompt was drawn, from :func:`~mlxroles.stats.resample_counts`.
        level: the coverage aimed at, between 0 and 1.
    """
    array = _without_infinite(np.asarray(values, dtype=np.float64))
    columns = array.reshape(len(array), math.prod(array.shape[1:]))
    bounds = np.full((2, columns.shape[1]), np.nan)
    for start in range(0, columns.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        mean_1, variance_1 = _resampled_moments(columns[:, block], first_members, counts)
        mean_2, variance_2 = _resampled_moments(columns[:, block], second_members, counts)
        spread = (variance_1 + variance_2) / 2
        apart = mean_1 - mean_2
        d = np.divide(apart, np.sqrt(spread), out=np.full_like(apart, np.nan), where=spread > 0)
        bounds[:, block] = percentile_interval(d, level=level)
    low, high = bounds.reshape(2, *array.shape[1:])
    return Interval(low, high)


def cliffs_delta(first: ArrayLike, second: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Cliff's delta, P(first > second) - P(first < second), over axis 0 of both.

    The interval uses the consistent variance estimate and the asymmetric bounds of Feng & Cliff
    (2004), which stay inside [-1, 1]; at delta = ±1, where the variance is 0, their bound
    (n - z²) / (n + z²) with the smaller group's n. NaN values are left out; the interval is NaN
    where a group keeps fewer than two values. Of normal groups that lie 0, 1 or 2 standard
    deviations apart the 95 % interval covers 96-99 % at n = 5, 96-97 % at n = 10 and 95 % at
    n = 30 (measured).

    Args:
        first: one observation per row, ``(n1, ...)``.
        second: the same for the other group, ``(n2, ...)``.
        level: the coverage aimed at, between 0 and 1.
    """
    one, other = _groups(first, second)
    if not 0 < level < 1:
        raise ValueError(f"level {level} must be inside (0, 1)")
    shape = one.shape[1:]
    units = math.prod(shape)
    one, other = one.reshape(len(one), units), other.reshape(len(other), units)
    z = NormalDist().inv_cdf((1 + level) / 2)
    found = np.full((3, units), np.nan)
    for start in range(0, units, _BLOCK):
        block = slice(start, start + _BLOCK)
        delta, variance, smaller = _dominance(one[:, block], other[:, block])
        found[0, block] = delta
        found[1:, block] = _feng_cliff(delta, variance, smaller, z)
    value, low, high = found.reshape(3, *shape)
    return Estimate(value, low, high)


def binomial_fold_mean(n: int) -> float:
    """The mean of max(k, n - k) / n when k of n fair coins show heads.

    What the study's "consistency" is when there is no effect at all: .5722 for its 30 prompts.
    """
    if n < 1:
        raise ValueError(f"n {n} must be positive")
    return 0.5 + math.comb(n - 1, n // 2) / 2**n


def _groups(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if one.ndim == 0 or other.ndim == 0 or one.shape[1:] != other.shape[1:]:
        raise ValueError(f"groups of shapes {one.shape} and {other.shape} do not fit together")
    return one, other


def _without_infinite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same with NaN for every column that has an infinite value."""
    return np.where(np.isinf(values).any(axis=0), np.nan, values)


def _variance(values: NDArray[np.float64], ddof: int) -> NDArray[np.float64]:
    """The variance over axis 0 of what is not NaN; exactly 0 for a constant."""
    size = (~np.isnan(values)).sum(axis=0)
    squares = np.nan_to_num(_deviations(values)) ** 2
    return np.where(size > ddof, squares.sum(axis=0) / np.maximum(size - ddof, 1), np.nan)


def _deviations(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values minus their mean over axis 0; zeros where that is rounding only."""
    moved = values - nan_mean(values)
    spread, size = (np.abs(np.nan_to_num(one)).max(axis=0, initial=0.0) for one in (moved, values))
    return np.where((spread <= _ROUNDING * size) & ~np.isnan(values), 0.0, moved)


def _resampled_moments(
    columns: NDArray[np.float64], members: ArrayLike, counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance (ddof 1) of every resample of a group [resample, column]."""
    kept, draws = columns[np.asarray(members)], counts[:, np.asarray(members)]
    everything = np.arange(len(kept))
    moved = _deviations(kept)
    mean = weighted_means(moved, everything, draws)
    square = weighted_means(moved**2, everything, draws)
    variance = square - mean**2
    variance[variance <= _ROUNDING * square] = 0.0
    known = ~np.isnan(kept)
    size = draws.sum(axis=1, keepdims=True) if known.all() else draws @ known.astype(np.float64)
    correction = np.divide(size, size - 1, out=np.full_like(size, np.nan), where=size > 1)
    return mean + nan_mean(kept), variance * correction


def _dominance(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Cliff's delta, its consistent variance and the smaller group's size [unit].

    With d the matrix of signs, the variance is ((n2 - 1) s²(row means) + (n1 - 1) s²(column
    means) + s²(d)) / (n1 n2), all three over their degrees of freedom (Feng & Cliff 2004).
    """
    known_1, known_2 = ~np.isnan(one), ~np.isnan(other)
    n_1, n_2 = known_1.sum(axis=0).astype(float), known_2.sum(axis=0).astype(float)
    signs = (one[:, None] > other).astype(np.float64) - (one[:, None] < other)  # 0 beside a NaN
    pairs = n_1 * n_2
    delta = np.divide(
        signs.sum(axis=(0, 1)), pairs, out=np.full_like(pairs, np.nan), where=pairs > 0
    )
    rows = signs.sum(axis=1) / np.maximum(n_2, 1) - delta
    of_columns = signs.sum(axis=0) / np.maximum(n_1, 1) - delta
    row_squares = (np.where(known_1, rows, 0.0) ** 2).sum(axis=0)
    column_squares = (np.where(known_2, of_columns, 0.0) ** 2).sum(axis=0)
    squares = np.abs(signs).sum(axis=(0, 1)) - pairs * delta**2
    enough = (n_1 > 1) & (n_2 > 1)
    less_1, less_2 = np.where(enough, n_1 - 1, 1.0), np.where(enough, n_2 - 1, 1.0)
    variance = (
        less_2 / less_1 * row_squares
        + less_1 / less_2 * column_squares
        + np.maximum(squares, 0.0) / (less_1 * less_2)
    ) / np.maximum(pairs, 1)
    return delta, np.where(enough, variance, np.nan), np.minimum(n_1, n_2)


def _feng_cliff(
    delta: NDArray[np.float64],
    variance: NDArray[np.float64],
    smaller: NDArray[np.float64],
    z: float,
) -> NDArray[np.float64]:
    """Lower and upper bounds [2, unit]."""
    spread = z**2 * variance
    scale = 1 - delta**2 + spread
    half = np.sqrt(spread * ((1 - delta**2) ** 2 + spread))
    apart = (np.abs(delta) == 1) & ~np.isnan(variance)
    safe = np.where(apart, 1.0, scale)
    bounds = (delta - delta**3 + np.stack([-half, half])) / safe
    nearer = (smaller - z**2) / (smaller + z**2)
    bounds[0] = np.where(apart, np.where(delta > 0, nearer, -1.0), bounds[0])
    bounds[1] = np.where(apart, np.where(delta > 0, 1.0, -nearer), bounds[1])
    return np.clip(bounds, -1.0, 1.0)
