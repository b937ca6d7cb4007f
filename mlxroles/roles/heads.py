"""Every head's entropy in the contrasted categories: effect sizes, and tests that count all heads.

Among 1,024 heads 51 reach p = .05 by chance, so each list says how many heads there are, how many
of them are expected below .05, and how many are left after both kinds of correction. The tests are
of differences in entropy (nats, or shares on the normalised scale); RFC and RSI stand beside them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.roles.contrast import Contrast
from mlxroles.roles.head_ratios import HeadRatios
from mlxroles.roles.metrics import NEAR_ZERO
from mlxroles.roles.sampling import ALPHA, FEWEST, Draws, LabelTest
from mlxroles.roles.scales import Averages
from mlxroles.stats import (
    Estimate,
    cliffs_delta,
    cohens_d,
    cohens_d_interval,
    nan_mean,
)

TOP = 20
DIFFERENCE = "difference"
"""What stands beside the models' names: instruct - base, prompt by prompt."""
DIFFERENCE_IN_ROWS = "instruct - base"
"""What a table of heads calls it, where it stands beside a column ``diff``."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadStatistics:
    """The statistics of all heads of one model, or of the difference, on one scale.

    Arrays over heads in the order of layers [layer × head].
    """

    means: Mapping[str, Numbers | None]
    """Mean over prompts of the ``focus``, ``reference`` and ``confounder``; None without one."""
    d: Estimate
    """Cohen's d of focus against reference; bounds are NaN below ``sampling.FEWEST`` prompts."""
    delta: Estimate
    """Cliff's delta of the same."""
    test: LabelTest
    """Of the difference in entropy, focus minus reference."""
    ratios: HeadRatios
    """RFC, RSI and log ratio."""

    @classmethod
    def of(cls, models: Sequence[Averages], contrast: Contrast, draws: Draws) -> "HeadStatistics":
        """Compares the categories head by head.

        Args:
            models: one, or base and instruct for their difference.
            contrast: the categories.
            draws: resamples and permutations.
        """
        values, members = models[-1].per_head, models[0].members
        if len(models) > 1:
            values = values - models[0].per_head
        units = values.reshape(len(values), -1)
        roles = {"focus": contrast.focus, "reference": contrast.reference}
        first, second = (members[name] for name in roles.values())
        means: dict[str, Numbers | None] = {
            role: nan_mean(units[members[name]]) for role, name in roles.items()
        }
        other = contrast.confounder
        means["confounder"] = None if other is None else nan_mean(units[members[other]])
        d = cohens_d(units[first], units[second])
        delta = cliffs_delta(units[first], units[second])
        low, high = np.full((2, units.shape[1]), np.nan)
        if min(len(first), len(second)) < FEWEST:
            delta = Estimate(delta.value, low, high)
        else:
            low, high = cohens_d_interval(units, first, second, draws.counts[1:])
        return cls(
            means,
            Estimate(d, low, high),
            delta,
            draws.test(units, first, second),
            HeadRatios.of(models, contrast, draws),
        )

    @property
    def diff(self) -> Numbers:
        """Mean of the focus minus mean of the reference."""
        focus, reference = self.means["focus"], self.means["reference"]
        assert focus is not None
        assert reference is not None
        return focus - reference

    @property
    def significant(self) -> NDArray[np.bool_]:
        """Which heads have a false discovery rate below .05."""
        return self.test.q < ALPHA

    @property
    def holds_at_equal_length(self) -> NDArray[np.bool_]:
        """Which of these differ alike among prompts of equal length, significantly there too."""
        agrees = np.sign(self.test.statistic) * np.sign(self.test.statistic_same_length) > 0
        return self.significant & agrees & (self.test.q_same_length < ALPHA)

    @property
    def smallest_q(self) -> float:
        """The least false discovery rate that one head alone could reach; NaN without a test."""
        tested = int((~np.isnan(self.test.p)).sum())
        return min(1.0, tested * self.test.smallest_p) if tested else math.nan

    def summary(self, labels: list[dict[str, Any]]) -> dict[str, Any]:
        """How many heads differ, and the rows of those that differ most.

        Args:
            labels: those of :class:`HeadResults`.
        """
        present = np.flatnonzero(~np.isnan(self.diff))
        p = np.where(np.isnan(self.test.p), np.inf, self.test.p)
        order = sorted(present, key=lambda i: (p[i], -np.nan_to_num(abs(self.d.value[i])), i))
        return {
            "n": len(present),
            "significant_bh": int(self.significant.sum()),
            "significant_max": int((self.test.p_max < ALPHA).sum()),
            "significant_same_length": int(self.holds_at_equal_length.sum()),
            "below_05": int((self.test.p < ALPHA).sum()),
            "expected": ALPHA * len(present),
            "n_permutations": self.test.n_permutations,
            "exact": self.test.exact,
            "smallest_q": self.smallest_q,
            "top": [self.row(i, labels[i]) for i in order[:TOP]],
        }

    def row(self, i: int, label: Mapping[str, Any]) -> dict[str, Any]:
        """Everything about one head."""
        means = {k: None if m is None else float(m[i]) for k, m in self.means.items()}
        return {
            "layer": label["layer"],
            "head": label["head"],
            **means,
            "diff": float(self.diff[i]),
            "diff_same_length": float(self.test.statistic_same_length[i]),
            **self.ratios.row(i),
            "d": float(self.d.value[i]),
            "d_low": float(self.d.low[i]),
            "d_high": float(self.d.high[i]),
            "delta": float(self.delta.value[i]),
            "delta_low": float(self.delta.low[i]),
            "delta_high": float(self.delta.high[i]),
            "p": float(self.test.p[i]),
            "q": float(self.test.q[i]),
            "p_max": float(self.test.p_max[i]),
            "p_same_length": float(self.test.p_same_length[i]),
            "q_same_length": float(self.test.q_same_length[i]),
            "flagged": label["flagged"],
        }


@dataclass(frozen=True, eq=False)
class HeadResults:
    """The statistics of all heads of a run."""

    labels: list[dict[str, Any]]
    """``layer``, ``head``, and whether the head ``exists`` and is ``flagged``."""
    statistics: Mapping[str, Mapping[str, HeadStatistics]]
    """By model, or ``difference``; then by scale."""

    def document(self) -> dict[str, Any]:
        """The part of a result document about heads: counts, and the heads that differ most."""
        return {
            "n": sum(one["exists"] for one in self.labels),
            "flagged": [[one["layer"], one["head"]] for one in self.labels if one["flagged"]],
            "what": {
                what: {scale: found.summary(self.labels) for scale, found in by_scale.items()}
                for what, by_scale in self.statistics.items()
            },
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per head that a layer has, model and scale; what a table of heads lists."""
        names = {DIFFERENCE: DIFFERENCE_IN_ROWS}
        return [
            {"what": names.get(what, what), "scale": scale, **found.row(i, self.labels[i])}
            for what, by_scale in self.statistics.items()
            for scale, found in by_scale.items()
            for i in np.flatnonzero(~np.isnan(found.diff))
        ]


def head_results(
    labels: list[dict[str, Any]],
    averages: Mapping[str, Mapping[str, Averages]],
    contrast: Contrast | None,
    draws: Draws,
) -> HeadResults:
    """Compares the categories in every head of every model, and in their difference.

    Args:
        labels: from :func:`labels_of`.
        averages: by scale, then by model, base first.
        contrast: the categories; without it there are no statistics.
        draws: resamples and permutations.
    """
    if contrast is None:
        return HeadResults(labels, {})
    found: dict[str, dict[str, HeadStatistics]] = {}
    for scale, by_model in averages.items():
        for what, models in _subjects(by_model):
            found.setdefault(what, {})[scale] = HeadStatistics.of(models, contrast, draws)
    return HeadResults(labels, found)


def _subjects(by_model: Mapping[str, Averages]) -> Iterator[tuple[str, Sequence[Averages]]]:
    for name, one in by_model.items():
        yield name, (one,)
    if len(by_model) > 1:
        yield DIFFERENCE, tuple(by_model.values())


def labels_of(
    layers: tuple[int, ...], raw: Mapping[str, Averages], contrast: Contrast | None
) -> list[dict[str, Any]]:
    """The ``layer`` and ``head`` of every place for a head, and what is known of it.

    ``exists``: the layer has that head. ``flagged``: its mean entropy on the reference is below
    .01 nat in a model, where ratios explode.

    Args:
        layers: the numbers of the layers.
        raw: the averages in nats, by model.
        contrast: the categories; without it nothing is flagged.
    """
    n_heads = next(iter(raw.values())).per_head.shape[2]
    flagged = np.zeros((len(layers), n_heads), dtype=bool)
    exists = np.any([~np.isnan(one.per_head).all(axis=0) for one in raw.values()], axis=0)
    if contrast is not None:
        for one in raw.values():
            reference = nan_mean(one.per_head[one.members[contrast.reference]])
            flagged |= reference < NEAR_ZERO
    return [
        {
            "layer": number,
            "head": head,
            "exists": bool(exists[row, head]),
            "flagged": bool(flagged[row, head]),
        }
        for row, number in enumerate(layers)
        for head in range(n_heads)
    ]
