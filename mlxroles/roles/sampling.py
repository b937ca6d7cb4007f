"""The chance that statistics are held against: shared resamples and permutations of prompts."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles.roles.table import Entropies
from mlxroles.stats import benjamini_hochberg, permutation_test, resample_counts

Numbers = NDArray[np.float64]
Indices = NDArray[np.integer]

ALPHA = 0.05
"""A p or q below this is significant; the share of true nulls that may be."""

FEWEST = 5
"""Prompts of a category below which nothing has an interval: resamples of two prompts are mostly
one of them twice, and their spread says nothing."""

BOOTSTRAP, PERMUTATION, SAME_LENGTH, CANDIDATES = 1, 2, 3, 4
"""What a child generator is for; with the seed it names the stream."""


PER_UNIT = 100
"""Permutations per unit at least: the smallest p of one unit alone then survives the correction
for all of them, as 1 / (100 units) times the units is .01."""


class LabelTest(NamedTuple):
    """Whether two categories differ, tested for every unit by permuting the labels."""

    p: Numbers
    q: Numbers
    """False discovery rate over the units (Benjamini and Hochberg)."""
    p_max: Numbers
    """Familywise over the units."""
    p_same_length: Numbers
    """Labels permuted among prompts of equal length: what length explains is not counted."""
    q_same_length: Numbers
    statistic: Numbers
    """Mean of the first category minus mean of the second."""
    statistic_same_length: Numbers
    """Weighted mean of the same differences among prompts of equal length."""
    n_permutations: int
    exact: bool
    """Whether these are all the ways there are to hand out the labels."""
    n_permutations_same_length: int
    smallest_p: float
    """The least ``p`` that any values could have with these prompts and permutations."""


@dataclass(frozen=True, eq=False)
class Draws:
    """One bootstrap of the prompts and one set of permutations for everything in a document."""

    seed: int
    n_resamples: int
    n_permutations: int
    counts: Numbers = field(repr=False)
    """How often each prompt counts [1 + resample, prompt]; row 0 is the prompts as they are."""
    length: Indices = field(repr=False)
    """Tokens per prompt [prompt]."""

    @classmethod
    def of(cls, table: Entropies, *, seed: int, n_resamples: int, n_permutations: int) -> "Draws":
        """Draws prompts within categories; two models on the same prompts share them."""
        rng = np.random.default_rng([seed, BOOTSTRAP])
        counts = resample_counts(table.category, rng, n_resamples=n_resamples)
        counts = np.concatenate([np.ones((1, counts.shape[1])), counts])
        return cls(seed, n_resamples, n_permutations, counts, table.length)

    def rng(self, purpose: int) -> np.random.Generator:
        """A fresh generator for a purpose; always the same numbers."""
        return np.random.default_rng([self.seed, purpose])

    def test(self, values: Numbers, first: Indices, second: Indices) -> LabelTest:
        """Permutation tests of mean(first) - mean(second) for every unit.

        Prompts without any value take no part; a unit that lacks some of the others is NaN, and
        so is everything where labels cannot be permuted.

        Args:
            values: one row per prompt, ``(prompt, unit)``.
            first: indices of the first category's prompts.
            second: of the second's.
        """
        first, second = with_values(values, first), with_values(values, second)
        chosen = np.concatenate([first, second])
        is_first = np.arange(len(chosen)) < len(first)
        n = max(self.n_permutations, PER_UNIT * values.shape[1])
        plain = permutation_test(
            values[chosen],
            is_first,
            self.rng(PERMUTATION),
            n_permutations=n,
        )
        matched = permutation_test(
            values[chosen],
            is_first,
            self.rng(SAME_LENGTH),
            n_permutations=n,
            strata=self.length[chosen],
        )
        return LabelTest(
            plain.p,
            benjamini_hochberg(plain.p),
            plain.p_max,
            matched.p,
            benjamini_hochberg(matched.p),
            plain.statistic,
            matched.statistic,
            plain.n_permutations,
            plain.exact,
            matched.n_permutations,
            plain.smallest_p,
        )


def with_values(values: Numbers, members: Indices) -> Indices:
    """Those of the prompts that have any value at all."""
    chosen = values[members]
    return members[~np.isnan(chosen).all(axis=tuple(range(1, chosen.ndim)))]
