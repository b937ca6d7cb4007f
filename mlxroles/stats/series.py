"""How two sequences along the layers go together, when neighbouring layers are alike.

Layers are not independent observations: differences that drift with depth correlate in any two
models. The plain p-values therefore stand beside three others. Of unrelated pairs of 32 values
whose neighbours correlate with .8, 29 % have ``pearson_p`` <= .05, 3 % ``n_eff_p``, 4 % ``shift_p``
and 22 % ``detrended_p``, which takes a trend away and nothing else (measured).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDING = 1e-12
"""A sequence whose spread is below this share of its values is constant."""
_RESIDUE = 1e-10
"""What a trend leaves below this share of the sequence's spread is nothing."""
_TIE = 1e-9
"""Correlations that differ by less are the same number computed in another order."""


@dataclass(frozen=True)
class Correlation:
    """How two sequences go together; NaN where a number is not defined."""

    n: int
    """Pairs with two finite values."""
    pearson_r: float
    pearson_p: float
    """Two-sided, as if the pairs were independent."""
    pearson_low: float
    pearson_high: float
    """Fisher's z interval with ``n_eff`` in place of n; NaN if that is 3 or less."""
    spearman_r: float
    spearman_p: float
    """From the t distribution, as if the pairs were independent."""
    lag1_x: float
    """Pearson's r of the first sequence with itself one place on."""
    lag1_y: float
    """The same of the second."""
    n_eff: float
    """Bartlett's effective number of pairs, n (1 - r1 r2) / (1 + r1 r2), between 2 and n."""
    n_eff_p: float
    """Two-sided p of ``pearson_r`` with n_eff - 2 degrees of freedom."""
    shift_p: float
    """Share of the n circular shifts of y whose |r| is at least that of no shift."""
    detrended_r: float
    """Correlation of what a quadratic in the position leaves of both."""
    detrended_p: float
    """Two-sided, with n - 4 degrees of freedom, as if what is left were independent."""
    leave_one_out: tuple[float, ...]
    """``pearson_r`` without each element; the full one for a pair that was not counted."""


def correlation(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Correlation:
    """Correlates two sequences, with and without allowance for their order.

    Pairs with a value that is not finite are left out; the others keep their positions for the
    trend and count as neighbours otherwise. With fewer than 4 pairs or a constant sequence nothing
    but ``n`` is defined.

    Args:
        x: one value per layer.
        y: the same of the other model.
        level: the coverage of the interval, between 0 and 1.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"sequences of shapes {first.shape} and {second.shape} do not fit")
    if not 0 < level < 1:
        raise ValueError(f"level {level} must be inside (0, 1)")
    known = np.isfinite(first) & np.isfinite(second)
    position = np.flatnonzero(known)
    first, second = first[known], second[known]
    n = len(position)
    r = _pearson(first, second) if n > 3 else math.nan
    if math.isnan(r):
        nothing = (math.nan,) * 13
        return Correlation(n, *nothing, leave_one_out=(math.nan,) * len(known))
    ranked = _pearson(_ranks(first), _ranks(second))
    lags = [_pearson(values[:-1], values[1:]) for values in (first, second)]
    n_eff = _effective(n, lags[0] * lags[1])
    low, high = _fisher(r, n_eff, level)
    detrended = _pearson(_detrended(first, position), _detrended(second, position))
    without = np.full(len(known), r)
    without[position] = [_pearson(np.delete(first, i), np.delete(second, i)) for i in range(n)]
    return Correlation(
        n=n,
        pearson_r=r,
        pearson_p=_p(r, n - 2),
        pearson_low=low,
        pearson_high=high,
        spearman_r=ranked,
        spearman_p=_p(ranked, n - 2),
        lag1_x=lags[0],
        lag1_y=lags[1],
        n_eff=n_eff,
        n_eff_p=_p(r, n_eff - 2),
        shift_p=_shift_p(first, second),
        detrended_r=detrended,
        detrended_p=_p(detrended, n - 4),
        leave_one_out=tuple(without.tolist()),
    )


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations from the mean; zeros if they are rounding only."""
    moved = values - values[0]
    moved -= moved.mean()
    constant = np.abs(moved).max() <= _ROUNDING * np.abs(values).max()
    return np.zeros_like(moved) if constant else moved


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson's r; NaN if a sequence is constant."""
    a, b = _centred(x), _centred(y)
    size = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return min(max(float(a @ b) / size, -1.0), 1.0) if size > 0 else math.nan


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which]


def _effective(n: int, shared: float) -> float:
    """Bartlett's n from the product of two autocorrelations, between 2 and n."""
    if math.isnan(shared):
        return math.nan
    return min(max(n * (1 - shared) / (1 + shared), 2.0), float(n)) if shared > -1 else float(n)


def _p(r: float, df: float) -> float:
    """Two-sided p of a correlation: t = r sqrt(df / (1 - r²)) with df degrees of freedom."""
    from scipy.special import betainc

    if math.isnan(r) or math.isnan(df) or df <= 0:
        return math.nan
    return float(betainc(df / 2, 0.5, 1 - r * r))


def _fisher(r: float, n: float, level: float) -> tuple[float, float]:
    if math.isnan(n) or n <= 3:
        return math.nan, math.nan
    if abs(r) == 1:
        return r, r
    half = NormalDist().inv_cdf((1 + level) / 2) / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def _shift_p(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The share of circular shifts (by 0 included) that correlate as strongly."""
    shifted = np.array([abs(_pearson(x, np.roll(y, shift))) for shift in range(len(y))])
    return float((shifted >= shifted[0] - _TIE).mean())


def _detrended(values: NDArray[np.float64], position: NDArray[np.integer]) -> NDArray[np.float64]:
    """What a quadratic in the position leaves; zeros if that is rounding only."""
    depth = 2 * (position - position[0]) / (position[-1] - position[0]) - 1
    basis, _ = np.linalg.qr(np.vander(depth, 3))
    moved = _centred(values)
    left = moved - basis @ (basis.T @ moved)
    return left if np.abs(left).max() > _RESIDUE * np.abs(moved).max() else np.zeros_like(left)
