"""Tests by rearranging prompts: which group they belong to, or which sign their value has."""

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_UNITS, _ARRANGEMENTS = 256, 1_024
"""Worked on at a time: 2 MB."""
_TIE = 1e-9
"""Standardised statistics that differ by less are the same number computed in another order."""
_ROUNDING = 1e-12
"""A unit whose values differ by less than this share of themselves is constant."""


class PermutationTest(NamedTuple):
    """What a permutation test of every unit found; arrays of the shape of one observation."""

    statistic: NDArray[np.float64]
    """Mean of the first group minus mean of the second; with strata, see the function."""
    p: NDArray[np.float64]
    """Two-sided, each unit by itself."""
    p_max: NDArray[np.float64]
    """Two-sided, and small for any true null unit with that probability only (familywise)."""
    n_permutations: int
    """Arrangements looked at; 0 if nothing can be permuted."""
    exact: bool
    """Whether these are all the arrangements that there are."""
    smallest_p: float
    """The least p that any values could have; NaN if nothing can be permuted."""


def permutation_test(
    values: ArrayLike,
    is_first: ArrayLike,
    rng: np.random.Generator,
    *,
    n_permutations: int = 10_000,
    strata: ArrayLike | None = None,
) -> PermutationTest:
    """Tests for every unit whether two groups of prompts have the same mean.

    The statistic is T = mean(first) - mean(second). The group labels are permuted over the
    prompts, the same permutation for every unit, and p = (1 + #{|T*| >= |T|}) / (1 + N)
    (Phipson & Smyth 2010). Where there are no more than ``n_permutations`` distinct arrangements
    all of them are looked at and p = #{|T*| >= |T|} / total.

    With ``strata`` (equal prompt lengths) labels move within a stratum only, and T is the mean of
    the differences inside the strata with the weights n1 n2 / (n1 + n2), so that T* has mean 0
    however the groups are spread over the strata. A stratum that holds one group only
    contributes nothing.

    ``p_max`` compares |T| / s of a unit with the largest |T*| / s of all units (Westfall & Young
    1993), s being the exact standard deviation of T* over all arrangements. Units that do not
    vary have p = 1 and p_max NaN. A unit with a value that is not finite is NaN throughout, and
    everything is NaN if nothing can be permuted.

    Args:
        values: one observation per prompt, ``(prompt, unit)`` or ``(prompt, ...)``.
        is_first: whether a prompt belongs to the first group [prompt].
        rng: the source of the permutations.
        n_permutations: how many there are.
        strata: the stratum of each prompt [prompt]; one for all by default.
    """
    array = np.asarray(values, dtype=np.float64)
    first = np.asarray(is_first, dtype=bool)
    stratum = np.zeros(len(first)) if strata is None else np.asarray(strata)
    if array.ndim == 0 or first.shape != array.shape[:1] or stratum.shape != first.shape:
        shapes = f"{array.shape}, {first.shape}, {stratum.shape}"
        raise ValueError(f"values, is_first and strata of shapes {shapes} do not fit")
    if n_permutations < 1:
        raise ValueError(f"n_permutations {n_permutations} must be positive")
    groups = _mixed_strata(first, stratum)
    columns = array.reshape(len(array), math.prod(array.shape[1:]))
    if not groups:
        nothing = np.full(array.shape[1:], np.nan)
        return PermutationTest(nothing, nothing.copy(), nothing.copy(), 0, True, math.nan)
    known = np.isfinite(columns).all(axis=0)
    labels = [first[members] for members in groups]
    statistic, deviation, standard = _standardised(np.where(known, columns, 0.0), groups, labels)
    total = math.prod(math.comb(len(one), int(one.sum())) for one in labels)
    exact = total <= n_permutations
    arranged = _all_arrangements(labels) if exact else _shuffled(labels, rng, n_permutations)
    observed = np.abs(np.concatenate(labels).astype(np.float64) @ standard)
    as_extreme, largest = _count_extremes(arranged, standard, observed)
    own = 0 if exact else 1
    p = (own + as_extreme) / (own + len(arranged))
    above = len(arranged) - np.searchsorted(np.sort(largest), observed - _TIE)
    p_max = (own + above) / (own + len(arranged))
    found = (
        np.where(known, statistic, np.nan),
        np.where(known, p, np.nan),
        np.where(known & (deviation > 0), p_max, np.nan),
    )
    shaped = [one.reshape(array.shape[1:]) for one in found]
    least = (own or _mirrored(labels)) / (own + len(arranged))
    return PermutationTest(shaped[0], shaped[1], shaped[2], len(arranged), exact, least)


def sign_flip_test(
    values: ArrayLike, rng: np.random.Generator, *, n: int = 10_000
) -> NDArray[np.float64]:
    """Tests for every unit whether its values lie symmetrically about 0: two-sided p [...].

    The statistic is the mean over prompts, and each prompt's sign is flipped or not (Fisher
    1935). Where there are no more than ``n`` patterns of signs all of them are looked at and
    p = #{|T*| >= |T|} / 2^prompts, which is 2 / 2^prompts at least; otherwise ``n`` are drawn and
    p = (1 + #{|T*| >= |T|}) / (1 + n). Units with equally many prompts share their flips.

    Values that are NaN are left out unit by unit. A unit with fewer than two numbers, or with an
    infinite one, has p NaN; one of zeros has p 1.

    Args:
        values: one observation per prompt, ``(prompt, ...)``.
        rng: the source of the flips.
        n: how many there are.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or n < 1:
        raise ValueError(f"values of shape {array.shape} and n {n}: expected prompts, and flips")
    columns = array.reshape(len(array), math.prod(array.shape[1:]))
    missing = np.isnan(columns)
    sizes = np.where(np.isinf(columns).any(axis=0), 0, (~missing).sum(axis=0))
    p = np.full(columns.shape[1], np.nan)
    for size in sorted({int(size) for size in sizes if size > 1}):
        signs, own = _signs(size, rng, n)
        chosen = np.flatnonzero(sizes == size)
        for start in range(0, len(chosen), _UNITS):
            units = chosen[start : start + _UNITS]
            block = columns[:, units].T[~missing[:, units].T].reshape(len(units), size).T
            scale = np.maximum(np.abs(block).max(axis=0), np.finfo(np.float64).tiny)
            p[units] = (own + _reached(signs, block / scale)) / (own + len(signs))
    return p.reshape(array.shape[1:])


def smallest_flip_p(prompts: int, n: int = 10_000) -> float:
    """The least p that :func:`sign_flip_test` can give for this many prompts; NaN below two."""
    if prompts < 2:
        return math.nan
    return 2 / 2**prompts if 2**prompts <= n else 1 / (1 + n)


def _signs(size: int, rng: np.random.Generator, n: int) -> tuple[NDArray[np.int8], int]:
    """Patterns of signs [pattern, prompt], and how often the observed one is to be added.

    |T*| is the same when all signs are turned, so that of all patterns one half is enough.
    """
    if 2**size > n:
        return (2 * rng.integers(0, 2, (n, size), dtype=np.int8) - 1), 1
    bits = np.arange(2 ** (size - 1))[:, None] >> np.arange(size) & 1
    return (1 - 2 * bits).astype(np.int8), 0


def _reached(signs: NDArray[np.int8], block: NDArray[np.float64]) -> NDArray[np.integer]:
    """How many patterns give each unit a sum as far from 0 as its own."""
    observed = np.abs(block.sum(axis=0)) - _TIE
    found = np.zeros(block.shape[1], dtype=int)
    for first in range(0, len(signs), _ARRANGEMENTS):
        rows = signs[first : first + _ARRANGEMENTS].astype(np.float64)
        found += np.count_nonzero(np.abs(rows @ block) >= observed, axis=0)
    return found


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """The false discovery rate at which each p-value is significant (Benjamini & Hochberg 1995).

    All entries are one family; NaN stays NaN and does not count.
    """
    array = np.asarray(p, dtype=np.float64)
    flat = array.ravel()
    known = np.flatnonzero(~np.isnan(flat))
    falling = known[np.argsort(-flat[known], kind="stable")]
    rank = np.arange(len(known), 0, -1)
    q = np.full(flat.shape, np.nan)
    q[falling] = np.minimum(np.minimum.accumulate(flat[falling] * len(known) / rank), 1.0)
    return q.reshape(array.shape)


def _mixed_strata(
    first: NDArray[np.bool_], stratum: NDArray[np.generic]
) -> list[NDArray[np.integer]]:
    """The prompts of each stratum that holds both groups."""
    found = [np.flatnonzero(stratum == one) for one in np.unique(stratum)]
    return [members for members in found if 0 < first[members].sum() < len(members)]


def _standardised(
    columns: NDArray[np.float64],
    groups: list[NDArray[np.integer]],
    labels: list[NDArray[np.bool_]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Statistic, its standard deviation, and what labels are multiplied with to give T / s.

    Returns:
        T [unit]; s over all arrangements [unit], 0 where a unit does not vary; the centred values
        of the groups' prompts divided by s [prompt of all groups, unit], 0 where s is.
    """
    weight, variance, centred = 0.0, np.zeros(columns.shape[1]), []
    for members, label in zip(groups, labels, strict=True):
        size, n_first = len(members), int(label.sum())
        share = n_first * (size - n_first) / size
        moved = columns[members] - columns[members[0]]  # exact zeros for a constant unit
        moved -= moved.mean(axis=0)
        weight += share
        variance += share / (size - 1) * (moved**2).sum(axis=0)
        centred.append(moved)
    residuals = np.concatenate(centred) / weight
    statistic = np.concatenate(labels).astype(np.float64) @ residuals
    scale = np.abs(columns[np.concatenate(groups)]).max(axis=0)
    varies = np.abs(residuals).max(axis=0) * weight > _ROUNDING * scale
    deviation = np.where(varies, np.sqrt(variance) / weight, 0.0)
    standard = np.divide(residuals, deviation, out=np.zeros_like(residuals), where=deviation > 0)
    return statistic, deviation, standard


def _mirrored(labels: list[NDArray[np.bool_]]) -> int:
    """How many arrangements have the |T| of one at least: with its mirror image where there is."""
    return 2 if all(2 * int(label.sum()) == len(label) for label in labels) else 1


def _all_arrangements(labels: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Every way to hand out the labels within their strata [arrangement, prompt], 0 or 1."""
    every = np.zeros((1, 0))
    for label in labels:
        chosen = np.array(list(itertools.combinations(range(len(label)), int(label.sum()))))
        rows = np.zeros((len(chosen), len(label)))
        np.put_along_axis(rows, chosen, 1.0, axis=1)
        before = np.repeat(every, len(rows), axis=0)
        every = np.concatenate([before, np.tile(rows, (len(every), 1))], axis=1)
    return every


def _shuffled(
    labels: list[NDArray[np.bool_]], rng: np.random.Generator, n_permutations: int
) -> NDArray[np.float64]:
    """Labels permuted within their strata [permutation, prompt], 0 or 1."""
    return np.concatenate(
        [
            rng.permuted(np.tile(label.astype(np.float64), (n_permutations, 1)), axis=1)
            for label in labels
        ],
        axis=1,
    )


def _count_extremes(
    arranged: NDArray[np.float64], standard: NDArray[np.float64], observed: NDArray[np.float64]
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """How many arrangements reach |T / s| [unit], and each one's largest over units."""
    as_extreme = np.zeros(len(observed), dtype=int)
    largest = np.zeros(len(arranged))
    for start in range(0, len(observed), _UNITS):
        units = slice(start, start + _UNITS)
        block = np.ascontiguousarray(standard[:, units])
        for first in range(0, len(arranged), _ARRANGEMENTS):
            rows = slice(first, first + _ARRANGEMENTS)
            found = np.abs(arranged[rows] @ block)
            as_extreme[units] += np.count_nonzero(found >= observed[units] - _TIE, axis=0)
            np.maximum(largest[rows], found.max(axis=1), out=largest[rows])
    return as_extreme, largest
