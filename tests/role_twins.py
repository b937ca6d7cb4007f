"""Plain twins of the role statistics: loops over lists of prompts, and all arrangements."""

import itertools
import math
import statistics

import numpy as np
import role_tables

from mlxroles.roles import document
from mlxroles.roles.contrast import Contrast
from mlxroles.roles.sampling import Draws
from mlxroles.roles.table import Reading

STUDY = Contrast("self_referent", "neutral", "confounder")
SCALES = ("raw", "normalised")
RESAMPLES = 40
PERMUTATIONS = 300
"""More than the 252 ways to halve ten prompts: the tests are exact there."""


def build(
    tables,
    *,
    reading=None,
    contrast=STUDY,
    seed=0,
    n_resamples=RESAMPLES,
    n=PERMUTATIONS,
    heads=True,
):
    return document.build(
        tables,
        reading=reading or Reading(),
        contrast=contrast,
        seed=seed,
        n_resamples=n_resamples,
        n_permutations=n,
        heads=heads,
    )


def five_per_category():
    """Two layers; the second has three heads of four."""
    found = role_tables.random_tables(7, layers=2, heads=4, per_category=5, effect=0.4)
    for table in found.values():
        for name in ("entropy", "entropy_no_first", "first_keys", "recent_keys"):
            getattr(table, name)[:, 1, 3] = np.nan
    return found


def counts_of(table):
    """How often each prompt is drawn [resample, prompt]."""
    return Draws.of(table, seed=0, n_resamples=RESAMPLES, n_permutations=1).counts[1:]


def mean(values):
    return sum(values) / len(values) if values else math.nan


class Twin:
    """Layers and heads of one model by loops over lists of prompts, which may repeat."""

    def __init__(self, table, reading, normalised):
        self.kept = role_tables.loop_entropies(table, reading, normalised=normalised)
        self.shape = table.entropy.shape[1:3]

    def e1(self, i, layer, head):
        return mean(self.kept[i, layer, head])

    def e2(self, i, layer):
        known = [self.e1(i, layer, head) for head in range(self.shape[1])]
        return mean([value for value in known if not math.isnan(value)])

    def layer_mean(self, prompts, layer):
        known = [self.e2(i, layer) for i in prompts]
        return mean([value for value in known if not math.isnan(value)])

    def head_mean(self, prompts, layer, head):
        known = [self.e1(i, layer, head) for i in prompts]
        return mean([value for value in known if not math.isnan(value)])

    def pooled(self, prompts, layer, head):
        return mean([value for i in prompts for value in self.kept[i, layer, head]])

    def forms(self, metric, focus, reference, confounder, layer):
        """Every form of one layer, from the prompts of each category."""

        def ratio(f, r, c, at_zero=math.nan):
            if r == 0:
                return at_zero
            return 1 - f / r if metric == "rfc" else (c - f) / r

        roles = (focus, reference, confounder)
        heads_there = [h for h in range(self.shape[1]) if self.kept[focus[0], layer, h]]
        by_head = [ratio(*(self.head_mean(p, layer, h) for p in roles)) for h in heads_there]
        pooled = [ratio(*(self.pooled(p, layer, h) for p in roles), 0.0) for h in heads_there]
        f, r, c = (self.layer_mean(p, layer) for p in roles)
        return {
            "ratio_of_means": ratio(f, r, c),
            "head_form": mean(pooled),
            "mean_of_ratios": mean(by_head),
            "median_of_ratios": statistics.median(by_head),
            "log_ratio": math.log((r if metric == "rfc" else c) / f),
        }


def roles_of(table, drawn=None):
    """Prompts of focus, reference and confounder, as often as they were drawn."""
    counts = np.ones(len(table.category), dtype=int) if drawn is None else drawn.astype(int)
    return [
        [i for i, one in enumerate(table.category) if one == name for _ in range(counts[i])]
        for name in (STUDY.focus, STUDY.reference, STUDY.confounder)
    ]


def exact_p(first, second):
    """The two-sided permutation p-value of a difference of means, over all arrangements."""
    values = first + second
    observed = abs(mean(first) - mean(second))
    reached = total = 0
    for chosen in itertools.combinations(range(len(values)), len(first)):
        one = [values[i] for i in chosen]
        other = [value for i, value in enumerate(values) if i not in chosen]
        reached += abs(mean(one) - mean(other)) >= observed - 1e-12
        total += 1
    return reached / total


def exact_p_same_length(first, second):
    """The same with labels moved among equal lengths; of (value, length) pairs."""
    lengths = sorted({n for _, n in first} & {n for _, n in second})
    if not lengths:
        return math.nan
    strata = [([v for v, m in first if m == n], [v for v, m in second if m == n]) for n in lengths]
    weights = [len(one) * len(other) / (len(one) + len(other)) for one, other in strata]

    def statistic(groups):
        return sum(w * (mean(a) - mean(b)) for w, (a, b) in zip(weights, groups, strict=True))

    def arrangements(one, other):
        values = one + other
        for chosen in itertools.combinations(range(len(values)), len(one)):
            yield (
                [values[i] for i in chosen],
                [value for i, value in enumerate(values) if i not in chosen],
            )

    observed = abs(statistic(strata))
    every = list(itertools.product(*(arrangements(*pair) for pair in strata)))
    return sum(abs(statistic(groups)) >= observed - 1e-12 for groups in every) / len(every)


def same_length_difference(first, second):
    """Mean difference inside lengths, weighted; of (value, length) pairs."""
    total = weights = 0.0
    for n in {n for _, n in first} & {n for _, n in second}:
        one, other = [v for v, m in first if m == n], [v for v, m in second if m == n]
        weight = len(one) * len(other) / (len(one) + len(other))
        total += weight * (mean(one) - mean(other))
        weights += weight
    return total / weights if weights else math.nan


def false_discovery(p):
    """Benjamini and Hochberg's q by its definition: the least n p_k / k from a rank upwards."""
    ordered = sorted(p)
    return [
        min(min(1.0, ordered[k] * len(p) / (k + 1)) for k in range(ordered.index(one), len(p)))
        for one in p
    ]
