"""Means over prompts and their uncertainty, by resampling the prompts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 256
"""Columns worked on at a time: 10,000 resamples of them are 20 MB."""


class Interval(NamedTuple):
    """Lower and upper bounds, of the shape of one observation."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def nan_mean(values: ArrayLike, *, axis: int = 0) -> NDArray[np.float64]:
    """The mean over an axis of what is not NaN; NaN where nothing is left."""
    array = _observations(values)
    missing = np.isnan(array)
    counts = (~missing).sum(axis=axis)
    total = np.where(missing, 0.0, array).sum(axis=axis)
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
    _check_options(level, n_resamples)
    array = _observations(values)
    columns = array.reshape(len(array), math.prod(array.shape[1:]))
    missing = np.isnan(columns)
    sizes = (~missing).sum(axis=0)
    sizes[np.isinf(columns).any(axis=0)] = 0
    bounds = np.full((2, columns.shape[1]), np.nan)
    for size in sorted({int(size) for size in sizes if size > 1}):
        # A resample is known by how often each observation was drawn.
        draws = rng.multinomial(size, np.full(size, 1 / size), size=n_resamples) / size
        chosen = np.flatnonzero(sizes == size)
        for start in range(0, len(chosen), _BLOCK):
            block = chosen[start : start + _BLOCK]
            kept = columns[:, block].T[~missing[:, block].T].reshape(len(block), size).T
            origin = kept[0]
            means = draws @ (kept - origin)  # exact for a constant column
            bounds[:, block] = origin + np.stack(percentile_interval(means, level=level))
    low, high = bounds.reshape(2, *array.shape[1:])
    return Interval(low, high)


def resample_counts(
    labels: Sequence[str], rng: np.random.Generator, *, n_resamples: int = 10_000
) -> NDArray[np.float64]:
    """How often each prompt is drawn by a bootstrap within categories [resample, prompt].

    Each category of n prompts is drawn n times with replacement from itself, independently of the
    others, in the order of their first prompts. What is computed with the same counts (two
    models, two layers) comes from the same prompts.

    Args:
        labels: the category of each prompt.
        rng: the source of the resamples.
        n_resamples: how many there are.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples {n_resamples} must be positive")
    names = np.array(labels, dtype=object)
    counts = np.zeros((n_resamples, len(names)))
    for name in dict.fromkeys(labels):
        members = np.flatnonzero(names == name)
        size = len(members)
        counts[:, members] = rng.multinomial(size, np.full(size, 1 / size), size=n_resamples)
    return counts


def weighted_means(
    values: ArrayLike, members: ArrayLike, counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The means of some prompts in every resample [resample, ...].

    A NaN is left out of its column and the weights of the rest sum to 1 again; a resample that
    drew nothing else is NaN there, and so is a whole column with an infinite value. The means of a
    constant column are that constant exactly. The result takes 8 bytes x resamples x columns: pass
    1,024 heads in blocks where several such results are held at once.

    Args:
        values: one observation per prompt, ``(prompt, ...)``.
        members: indices of the prompts that are averaged.
        counts: how often each prompt was drawn, from :func:`resample_counts`; a row of ones gives
            the plain means.
    """
    array = _observations(values)
    if counts.ndim != 2 or counts.shape[1] != len(array):
        raise ValueError(f"counts of shape {counts.shape} do not fit {len(array)} prompts")
    draws = counts[:, np.asarray(members)]
    columns = array[np.asarray(members)].reshape(draws.shape[1], math.prod(array.shape[1:]))
    whole = np.isfinite(columns).all(axis=0)
    if whole.all():
        return _means(draws, columns).reshape(len(draws), *array.shape[1:])
    means = np.full((len(draws), columns.shape[1]), np.nan)
    means[:, whole] = _means(draws, columns[:, whole])
    known = ~np.isnan(columns)
    gaps = ~whole & known.any(axis=0) & ~np.isinf(columns).any(axis=0)
    for column in np.flatnonzero(gaps):
        kept = known[:, column]
        means[:, column] = _means(draws[:, kept], columns[kept, column, None])[:, 0]
    return means.reshape(len(draws), *array.shape[1:])


def percentile_interval(samples: ArrayLike, *, level: float = 0.95) -> Interval:
    """The (1 - level)/2 and (1 + level)/2 quantiles over axis 0, interpolated linearly.

    Samples that are NaN or infinite are left out; a column in which fewer than half are finite
    has the interval (NaN, NaN).

    Args:
        samples: one value per resample, ``(resample, ...)``.
        level: the share of the samples inside, between 0 and 1.
    """
    _check_options(level)
    array = _observations(samples)
    columns = array.reshape(len(array), math.prod(array.shape[1:]))
    bounds = np.full((2, columns.shape[1]), np.nan)
    for start in range(0, columns.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        rows = np.ascontiguousarray(columns[:, block].T)
        rows = np.where(np.isfinite(rows), rows, np.nan)
        rows.sort(axis=1)  # NaN last
        sizes = (~np.isnan(rows)).sum(axis=1)
        enough = np.flatnonzero((sizes > 0) & (2 * sizes >= len(columns)))
        for bound, tail in zip(bounds, ((1 - level) / 2, (1 + level) / 2), strict=True):
            bound[start + enough] = _sorted_quantile(rows[enough], sizes[enough], tail)
    low, high = bounds.reshape(2, *array.shape[1:])
    return Interval(low, high)


def _sorted_quantile(
    rows: NDArray[np.float64], sizes: NDArray[np.integer], share: float
) -> NDArray[np.float64]:
    """A quantile of the first ``sizes`` entries of each ascending row, as numpy interpolates."""
    position = share * (sizes - 1)
    below = np.floor(position).astype(int)
    above = np.minimum(below + 1, sizes - 1)
    row = np.arange(len(rows))
    start, end = rows[row, below], rows[row, above]
    part = position - below
    near_end = end - (end - start) * (1 - part)
    return np.where(part < 0.5, start + (end - start) * part, near_end)


def _means(draws: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of finite columns [resample, column]; NaN for a resample that drew nothing."""
    if not len(columns):
        return np.full((len(draws), columns.shape[1]), np.nan)
    total = draws.sum(axis=1, keepdims=True)
    weights = np.divide(draws, total, out=np.full_like(draws, np.nan), where=total > 0)
    origin = columns[0]
    means = weights @ (columns - origin)
    means += origin  # exact for a constant column
    return means


def _check_options(level: float, n_resamples: int = 1) -> None:
    if not 0 < level < 1 or n_resamples < 1:
        raise ValueError(f"level {level} must be inside (0, 1), n_resamples {n_resamples} positive")


def _observations(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        raise ValueError("observations must have an axis to average over")
    return array
