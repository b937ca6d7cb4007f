"""Means over samples, their spread, and intervals: the prompts are drawn again, not the samples.

Positions of one prompt are no independent observations. Where there is a single prompt, its
positions are drawn instead, and an interval says nothing about other prompts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxroles import stats

Numbers = NDArray[np.float64]

_BLOCK = 128
"""Columns that are drawn again at a time: 10,000 resamples of them are 10 MB."""


class Means(NamedTuple):
    """One number per column."""

    mean: Numbers
    std: Numbers
    """Over samples, ddof 1."""
    low: Numbers
    """Of the 95 % interval."""
    high: Numbers
    n: NDArray[np.int64]
    """Samples that have a number."""

    def at(self, *index: int) -> dict[str, Any]:
        """One column: ``mean``, ``std``, ``ci`` and ``n``."""
        return {
            "mean": float(self.mean[index]),
            "std": float(self.std[index]),
            "ci": [float(self.low[index]), float(self.high[index])],
            "n": int(self.n[index]),
        }


def means(values: ArrayLike, prompts: Sequence[int], rng: np.random.Generator) -> Means:
    """Means over samples of every column, all with the same resamples.

    Args:
        values: [sample, ...]; NaN is left out of its column.
        prompts: Whose samples they are.
        rng: Draws the resamples.
    """
    array = np.asarray(values, dtype=np.float64)
    shape = array.shape[1:]
    columns = array.reshape(len(array), -1)
    known = np.isfinite(columns)
    n = known.sum(axis=0)
    mean = stats.nan_mean(np.where(known, columns, np.nan))
    off = np.where(known, columns - np.where(n > 0, mean, 0.0), 0.0)
    variance = np.where(n > 1, (off**2).sum(axis=0) / np.maximum(n - 1, 1), np.nan)
    # less their mean, so that what is the same everywhere has an interval of no width
    low, high = _interval(off, known.astype(np.float64), prompts, rng)
    found = (mean, np.sqrt(variance), mean + low, mean + high)
    return Means(*(column.reshape(shape) for column in found), n.reshape(shape))


def ratio(
    top: ArrayLike, bottom: ArrayLike, prompts: Sequence[int], rng: np.random.Generator
) -> tuple[float, list[float]]:
    """Sum of ``top`` over sum of ``bottom``, one of each per sample, and its 95 % interval."""
    a, b = (np.nan_to_num(np.asarray(x, dtype=np.float64))[:, None] for x in (top, bottom))
    low, high = _interval(a, b, prompts, rng)
    return share(top, bottom), [float(low[0]), float(high[0])]


def share(top: ArrayLike, bottom: ArrayLike) -> float:
    """Sum of ``top`` over sum of ``bottom``; NaN where that is 0."""
    whole = float(np.nansum(bottom))
    return float(np.nansum(top)) / whole if whole > 0 else np.nan


def generator(seed: int, *words: object) -> np.random.Generator:
    """A source of its own for every group of numbers that have intervals."""
    return np.random.default_rng([seed, *" ".join(map(str, words)).encode()])


def _units(prompts: Sequence[int]) -> NDArray[np.int64]:
    """The unit of each sample: its prompt or, where there is one prompt, the sample itself."""
    if len({*prompts}) < 2:
        return np.arange(len(prompts))
    return np.unique(np.asarray(prompts), return_inverse=True)[1].reshape(-1)


def _interval(
    top: Numbers, bottom: Numbers, prompts: Sequence[int], rng: np.random.Generator
) -> tuple[Numbers, Numbers]:
    """Of sum(top) / sum(bottom) [sample, column] over units that are drawn again.

    NaN where fewer than two units have anything.
    """
    of = _units(prompts)
    sums = np.zeros((2, int(of.max(initial=-1)) + 1, top.shape[1]))
    for kept, array in zip(sums, (top, bottom), strict=True):
        np.add.at(kept, of, array)
    counts = stats.resample_counts(["unit"] * sums.shape[1], rng)
    bounds = np.full((2, top.shape[1]), np.nan)
    for start in range(0, top.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        above, below = counts @ sums[0][:, block], counts @ sums[1][:, block]
        drawn = np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)
        bounds[:, block] = np.stack(stats.percentile_interval(drawn))
    bounds[:, (sums[1] > 0).sum(axis=0) < 2] = np.nan
    return bounds[0], bounds[1]


def against(value: float, null: Sequence[float], *, smaller: bool) -> dict[str, Any]:
    """A number beside those of random sets: their range, a percentile and a one-sided p.

    p = (1 + random sets that are as far) / (1 + random sets), so that it is never 0.

    Args:
        value: What was found.
        null: The same of each random set.
        smaller: Whether far is small.
    """
    known = np.asarray([x for x in null if np.isfinite(x)], dtype=np.float64)
    if not len(known) or not np.isfinite(value):
        return {"n": len(known), "mean": np.nan, "range": [np.nan, np.nan], "p": np.nan}
    far = (known <= value) if smaller else (known >= value)
    return {
        "n": len(known),
        "mean": float(known.mean()),
        "range": [float(known.min()), float(known.max())],
        "percentile": float(100 * np.mean(known < value)),
        "p": float((1 + far.sum()) / (1 + len(known))),
    }
