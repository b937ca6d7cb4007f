"""Heads worth patching: those whose entropy instruction tuning moved for the focus alone.

Per head, with f and r the change of the mean entropy from base to instruct on the prompts of the
focus and of the reference: how large (medians of log ratios), how consistent, and how focused the
head was before. The three are standardised over all heads and summed, as the original study does;
prompts of different categories are not paired. Such a sum always has a largest ten, so the same
is done again with the categories of the changes permuted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles.roles.contrast import Contrast
from mlxroles.roles.sampling import ALPHA, CANDIDATES, FEWEST, Draws, Indices
from mlxroles.roles.scales import Averages
from mlxroles.stats import percentile_interval

Numbers = NDArray[np.float64]

TOP = 10
PERMUTATIONS = 1_000
"""Of the ranking; fewer where a document has fewer permutations."""
_EPSILON = 0.05
"""What is added to both sides of a ratio, as a share of the head's median focus entropy."""
_NORMAL = math.sqrt(math.pi / 2)
"""Of a normal distribution: the standard deviation in mean distances from the median, and the
standard error of the median in standard errors of the mean."""
_TIE = 1e-9
"""Scores that differ by less are the same number computed in another order."""


class Tests(NamedTuple):
    """How the composite scores compare with those of permuted categories [head]."""

    z: Numbers
    """How far the composite stands out of chance (:meth:`Scores.standing_out`)."""
    p: Numbers
    p_max: Numbers
    largest: Numbers
    """The largest z of all heads [permutation]."""


def find(
    layers: tuple[int, ...],
    averages: Mapping[str, Averages],
    contrast: Contrast | None,
    draws: Draws,
    *,
    top_k: int = TOP,
) -> dict[str, Any] | None:
    """The highest ranked heads with the permutation null of the ranking; None for one model.

    ``p`` of a head is the share of permutations in which it scores as high. ``z_null`` is how far
    the score stands out of chance, in standard deviations of what the head's own scatter inside
    the categories would give: the ratios of a head with hardly any entropy score high whatever is
    permuted. ``p_max`` is the share of permutations in which any head stands out as far, which is
    what picking the best of all heads has to be held against. ``significant`` counts heads with
    ``p_max`` below .05, listed or not. Heads that lack a prompt's value, or
    have no entropy to take a ratio of, are not ranked.

    Args:
        layers: the numbers of the layers.
        averages: of ``base`` and ``instruct``, in nats.
        contrast: the categories.
        draws: resamples, seed and number of permutations.
        top_k: how many heads are listed.
    """
    if contrast is None or len(averages) < 2:
        return None
    heads = Heads.of(averages, contrast)
    n = len(heads.index)
    found: dict[str, Any] = {
        "paired": False,
        "rows": [],
        "chance_consistency": chance_consistency(heads.n_focus, heads.n_reference),
        "n_heads": n,
        "null": {"n": 0, "max_z_95": math.nan},
        "significant": 0,
    }
    if n < 2:
        return found
    scores = heads.scores()
    tests = _tests(heads, scores, draws.rng(CANDIDATES), min(PERMUTATIONS, draws.n_permutations))
    order = np.argsort(-scores.composite, kind="stable")[:top_k]
    return found | {
        "rows": [
            {**_place(heads, int(i), layers), "rank": rank}
            | _effects(heads, int(i), draws)
            | _row(scores, tests, int(i))
            for rank, i in enumerate(order, start=1)
        ],
        "null": {
            "n": len(tests.largest),
            "max_z_95": float(np.quantile(tests.largest, 0.95)),
        },
        "significant": int((tests.p_max < ALPHA).sum()),
    }


@dataclass(frozen=True)
class Scores:
    """What the ranking is made of [head]."""

    log_ratio: Numbers
    """Median log ratio of the focus minus that of the reference."""
    consistency: Numbers
    """P(f > r) over all pairs of prompts, ties counting half, or 1 minus that if it is more."""
    baseline: Numbers
    """Median entropy of the focus in base."""
    scatter: Numbers
    """Standard deviation of ``log_ratio`` by chance, from the log ratios' distances to the median
    of their category."""
    scatter_of_consistency: float
    """The same of P(f > r), which is the same for every head without ties."""

    @property
    def measures(self) -> Numbers:
        """What is standardised: |log_ratio|, consistency and -baseline [3, head]."""
        return np.stack([np.abs(self.log_ratio), self.consistency, -self.baseline])

    @property
    def parts(self) -> Numbers:
        """Standard scores of the measures over heads [3, head]."""
        return self.standard(self.measures)

    @property
    def composite(self) -> Numbers:
        """The sum of the parts [head]."""
        return self.parts.sum(axis=0)

    def standard(self, measures: Numbers) -> Numbers:
        """Others' measures by these scores' mean and deviation (ddof 1); 0 if nothing varies."""
        moved = measures - self.measures.mean(axis=1, keepdims=True)
        return moved * self.weights

    @property
    def weights(self) -> Numbers:
        """What one unit of each measure adds to the composite [3, 1]."""
        spread = self.measures.std(axis=1, ddof=1, keepdims=True)
        return np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)

    def standing_out(self, other: "Scores") -> Numbers:
        """How far others' composites lie above chance, in standard deviations of chance [head].

        Chance is what the head's scatter inside the two categories would give if they did not
        differ: with s the deviation of a measure, |N(0, s)| has the mean s sqrt(2 / pi) and the
        deviation s sqrt(1 - 2 / pi). Both measures move together, so their deviations add up. The
        weights are those of these scores. 0 for a head without scatter.
        """
        magnitude, consistency, _ = self.weights
        found = magnitude * np.abs(other.log_ratio) + consistency * (other.consistency - 0.5)
        spread = magnitude * other.scatter + consistency * other.scatter_of_consistency
        above = found - spread * math.sqrt(2 / math.pi)
        chance = spread * math.sqrt(1 - 2 / math.pi)
        return np.divide(above, chance, out=np.zeros_like(above), where=chance > 0)


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads that can be ranked; prompts of the focus first [head, prompt]."""

    base: Numbers
    """Mean entropy over queries, in nats."""
    instruct: Numbers
    prompts: Indices
    """Which of all prompts each is."""
    n_focus: int
    index: Indices
    """Which of all heads each is, in the order of layers [layer × head]."""
    per_layer: int
    ratios: Numbers
    """ln((instruct + e) / (base + e)), e a twentieth of the head's median focus entropy in base."""
    ranks: Numbers
    """Of instruct - base within the head, from 1; equal changes share the mean of theirs."""

    @classmethod
    def of(cls, averages: Mapping[str, Averages], contrast: Contrast) -> "Heads":
        """Takes the prompts of focus and reference from the averages of base and instruct."""
        first, second = averages.values()
        focus, reference = (first.members[n] for n in (contrast.focus, contrast.reference))
        prompts = np.concatenate([focus, reference])
        base, instruct = (
            np.ascontiguousarray(one.per_head[prompts].reshape(len(prompts), -1).T)
            for one in (first, second)
        )
        ratios = _log_ratios(base, instruct, len(focus))
        known = np.flatnonzero(np.isfinite(ratios).all(axis=1))
        if not (len(focus) and len(reference)):
            known = known[:0]
        base, instruct = base[known], instruct[known]
        moved = instruct - base
        ranks = np.array([_ranks(row) for row in moved]) if moved.size else moved
        per_layer = first.per_head.shape[2]
        return cls(base, instruct, prompts, len(focus), known, per_layer, ratios[known], ranks)

    @property
    def n_reference(self) -> int:
        """How many prompts are of the reference."""
        return len(self.prompts) - self.n_focus

    def scores(self, order: Indices | None = None) -> Scores:
        """The ingredients of the ranking.

        Args:
            order: the prompts in another order, so that others are the focus; what the head did
                before, its baseline, stays.
        """
        places = np.arange(len(self.prompts)) if order is None else order
        focus, reference = places[: self.n_focus], places[self.n_focus :]
        (first, first_away), (second, second_away) = (
            _median_and_distance(self.ratios[:, chosen]) for chosen in (focus, reference)
        )
        pairs = self.n_focus * self.n_reference
        lowest = self.n_focus * (self.n_focus + 1) / 2
        ahead = (self.ranks[:, focus].sum(axis=1) - lowest) / pairs
        baseline = np.median(self.base[:, : self.n_focus], axis=1)
        size = len(places)
        deviation = _NORMAL * (first_away + second_away) / size
        return Scores(
            first - second,
            np.maximum(ahead, 1 - ahead),
            baseline,
            _NORMAL * deviation * math.sqrt(size / pairs),
            math.sqrt((size + 1) / (12 * pairs)),
        )


def chance_consistency(n_focus: int, n_reference: int) -> float:
    """The mean consistency of a head where labels mean nothing and no two changes are equal.

    Exact, from the distribution of the Mann-Whitney U: of all orders of the two categories, how
    many have U pairs in which the focus is ahead.
    """
    pairs = n_focus * n_reference
    if not pairs:
        return math.nan
    orders = _mann_whitney(n_focus, n_reference)
    folded = sum(max(u, pairs - u) * count for u, count in enumerate(orders))
    return folded / (pairs * math.comb(n_focus + n_reference, n_focus))


def _log_ratios(base: Numbers, instruct: Numbers, n_focus: int) -> Numbers:
    """The log ratio of each change [head, prompt]; NaN where there is nothing to divide by."""
    if not n_focus:
        return np.full(base.shape, np.nan)
    epsilon = _EPSILON * np.median(base[:, :n_focus], axis=1, keepdims=True)
    above, below = instruct + epsilon, base + epsilon
    known = (above > 0) & (below > 0)
    ratio = np.divide(above, below, out=np.ones(base.shape), where=known)
    return np.where(known, np.log(ratio), np.nan)


def _median_and_distance(values: Numbers) -> tuple[Numbers, Numbers]:
    """The median over prompts and the summed distances to it [head]."""
    ordered = np.sort(values, axis=1)
    n = ordered.shape[1]
    half = n // 2
    median = (ordered[:, (n - 1) // 2] + ordered[:, half]) / 2
    away = ordered[:, n - half :].sum(axis=1) - ordered[:, :half].sum(axis=1)
    return median, away


def _ranks(values: Numbers) -> Numbers:
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which]


def _tests(heads: Heads, observed: Scores, rng: np.random.Generator, n_permutations: int) -> Tests:
    """Permutes which changes are the focus' and scores every head on the observed ruler."""
    composite, z = observed.composite, observed.standing_out(observed)
    reached = np.zeros(len(composite))
    largest = np.empty(n_permutations)
    for i in range(n_permutations):
        permuted = heads.scores(rng.permutation(len(heads.prompts)))
        reached += observed.standard(permuted.measures).sum(axis=0) >= composite - _TIE
        largest[i] = observed.standing_out(permuted).max()
    above = n_permutations - np.searchsorted(np.sort(largest), z - _TIE)
    total = 1 + n_permutations
    return Tests(z, (1 + reached) / total, (1 + above) / total, largest)


def _place(heads: Heads, i: int, layers: tuple[int, ...]) -> dict[str, int]:
    layer, head = divmod(int(heads.index[i]), heads.per_layer)
    return {"layer": layers[layer], "head": head}


def _effects(heads: Heads, i: int, draws: Draws) -> dict[str, float]:
    """What the entropies of one head did, in nats."""
    base, instruct, n_focus = heads.base[i], heads.instruct[i], heads.n_focus
    change = instruct - base
    low = high = math.nan
    if min(n_focus, heads.n_reference) >= FEWEST:
        counts = draws.counts[1:, heads.prompts]
        resampled = _resampled_medians(change[:n_focus], counts[:, :n_focus])
        resampled -= _resampled_medians(change[n_focus:], counts[:, n_focus:])
        low, high = map(float, percentile_interval(resampled))
    return {
        "focus_base_median": float(np.median(base[:n_focus])),
        "focus_instruct_median": float(np.median(instruct[:n_focus])),
        "reference_base_median": float(np.median(base[n_focus:])),
        "reference_instruct_median": float(np.median(instruct[n_focus:])),
        "did_median": float(np.median(change[:n_focus]) - np.median(change[n_focus:])),
        "did_low": low,
        "did_high": high,
    }


def _row(scores: Scores, tests: Tests, i: int) -> dict[str, float]:
    magnitude, consistency, baseline = scores.parts[:, i]
    return {
        "did_log_ratio_median": float(scores.log_ratio[i]),
        "consistency": float(scores.consistency[i]),
        "baseline_entropy": float(scores.baseline[i]),
        "magnitude_score": float(magnitude),
        "consistency_score": float(consistency),
        "baseline_score": float(baseline),
        "composite_score": float(scores.composite[i]),
        "z_null": float(tests.z[i]),
        "p": float(tests.p[i]),
        "p_max": float(tests.p_max[i]),
    }


def _resampled_medians(values: Numbers, counts: Numbers) -> Numbers:
    """The median of each resample [resample], from how often each value was drawn."""
    order = np.argsort(values, kind="stable")
    reached = counts[:, order].cumsum(axis=1)
    size = reached[:, -1:]
    low = np.argmax(reached > (size - 1) // 2, axis=1)
    high = np.argmax(reached > size // 2, axis=1)
    ordered = values[order]
    found = (ordered[low] + ordered[high]) / 2
    return np.where(size[:, 0] > 0, found, np.nan)


def _mann_whitney(n_first: int, n_second: int) -> list[int]:
    """How many orders of two groups have each number of pairs with the first ahead.

    The coefficients of the product over i of (1 - x^(n_second + i)) / (1 - x^i), i from 1 to
    n_first, in whole numbers (Mann & Whitney 1947).
    """
    size = n_first * n_second + 1
    found = [1] + [0] * (size - 1)
    for i in range(1, n_first + 1):
        for u in range(size - 1, n_second + i - 1, -1):
            found[u] -= found[u - n_second - i]
        for u in range(i, size):
            found[u] += found[u - i]
    return found
