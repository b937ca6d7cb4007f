"""Every head's entropy in the contrasted categories: effect sizes, and tests that count all heads.

Among 1,024 heads 51 reach p = .05 by chance, so each list says how many heads there are, how many
of them are expected below .05, and how many are left after both kinds of correction.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.roles.contrast import Contrast
from mlxroles.roles.metrics import NEAR_ZERO
from mlxroles.roles.sampling import Draws, LabelTest
from mlxroles.roles.scales import Averages
from mlxroles.stats import (
    Estimate,
    cliffs_delta,
    cohens_d,
    cohens_d_interval,
    nan_mean,
)

ALPHA = 0.05
TOP = 20
DIFFERENCE = "difference"
"""What stands beside the models' names: instruct - base, prompt by prompt."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadStatistics:
    """The statistics of all heads of one model, or of the difference, on one scale.

    Arrays over heads in the order of layers [layer × head].
    """

    means: Mapping[str, Numbers | None]
    """Mean over prompts of the ``focus``, ``reference`` and ``confounder``; None without one."""
    d: Estimate
    """Cohen's d of focus against reference."""
    delta: Estimate
    """Cliff's delta of the same."""
    test: LabelTest

    @classmethod
    def of(
        cls,
        values: Numbers,
        members: Mapping[str, NDArray[np.integer]],
        contrast: Contrast,
        draws: Draws,
    ) -> "HeadStatistics":
        """Compares the categories head by head.

        Args:
            values: mean entropy over queries, or its change ``(prompt, layer, head)``.
            members: the prompts of each category.
            contrast: the categories.
            draws: resamples and permutations.
        """
        units = values.reshape(len(values), -1)
        roles = {"focus": contrast.focus, "reference": contrast.reference}
        first, second = (members[name] for name in roles.values())
        means: dict[str, Numbers | None] = {
            role: nan_mean(units[members[name]]) for role, name in roles.items()
        }
        other = contrast.confounder
        means["confounder"] = None if other is None else nan_mean(units[members[other]])
        low, high = np.full((2, units.shape[1]), np.nan)
        if len(first) > 1 and len(second) > 1:
            low, high = cohens_d_interval(units, first, second, draws.counts[1:])
        value = cohens_d(units[first], units[second])
        return cls(
            means,
            Estimate(value, low, high),
            cliffs_delta(units[first], units[second]),
            draws.test(units, first, second),
        )

    @property
    def diff(self) -> Numbers:
        """Mean of the focus minus mean of the reference."""
        focus, reference = self.means["focus"], self.means["reference"]
        assert focus is not None
        assert reference is not None
        return focus - reference

    def summary(self, labels: list[dict[str, Any]]) -> dict[str, Any]:
        """How many heads differ, and the rows of those that differ most.

        Args:
            labels: ``layer``, ``head`` and ``flagged`` of each head.
        """
        present = np.flatnonzero(~np.isnan(self.diff))
        p = np.where(np.isnan(self.test.p), np.inf, self.test.p)
        order = sorted(present, key=lambda i: (p[i], -np.nan_to_num(abs(self.d.value[i])), i))
        return {
            "n": len(present),
            "significant_bh": int((self.test.q <= ALPHA).sum()),
            "significant_max": int((self.test.p_max <= ALPHA).sum()),
            "significant_same_length": int((self.test.q_same_length <= ALPHA).sum()),
            "below_05": int((self.test.p <= ALPHA).sum()),
            "expected": ALPHA * len(present),
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
            "flagged": label["flagged"],
        }


@dataclass(frozen=True, eq=False)
class HeadResults:
    """The statistics of all heads of a run."""

    labels: list[dict[str, Any]]
    statistics: Mapping[str, Mapping[str, HeadStatistics]]
    """By model, or ``difference``; then by scale."""

    def document(self) -> dict[str, Any]:
        """The part of a result document about heads: counts, and the heads that differ most."""
        return {
            "n": len(self.labels),
            "flagged": [[one["layer"], one["head"]] for one in self.labels if one["flagged"]],
            "what": {
                what: {scale: found.summary(self.labels) for scale, found in by_scale.items()}
                for what, by_scale in self.statistics.items()
            },
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per head that a layer has, model and scale; what a table of heads lists."""
        return [
            {"what": what, "scale": scale, **found.row(i, self.labels[i])}
            for what, by_scale in self.statistics.items()
            for scale, found in by_scale.items()
            for i in np.flatnonzero(~np.isnan(found.diff))
        ]


def head_results(
    layers: tuple[int, ...],
    averages: Mapping[str, Mapping[str, Averages]],
    contrast: Contrast | None,
    draws: Draws,
) -> HeadResults:
    """Compares the categories in every head of every model, and in their difference.

    Args:
        layers: the numbers of the layers.
        averages: by scale, then by model, base first.
        contrast: the categories; without it there are no statistics.
        draws: resamples and permutations.
    """
    labels = _labels(layers, averages["raw"], contrast)
    if contrast is None:
        return HeadResults(labels, {})
    found: dict[str, dict[str, HeadStatistics]] = {}
    for scale, by_model in averages.items():
        for what, values, members in _subjects(by_model):
            statistics = HeadStatistics.of(values, members, contrast, draws)
            found.setdefault(what, {})[scale] = statistics
    return HeadResults(labels, found)


def _subjects(
    by_model: Mapping[str, Averages],
) -> Iterator[tuple[str, Numbers, Mapping[str, NDArray[np.integer]]]]:
    for name, one in by_model.items():
        yield name, one.per_head, one.members
    if len(by_model) > 1:
        base, instruct = by_model.values()
        yield DIFFERENCE, instruct.per_head - base.per_head, base.members


def _labels(
    layers: tuple[int, ...], raw: Mapping[str, Averages], contrast: Contrast | None
) -> list[dict[str, Any]]:
    n_heads = next(iter(raw.values())).per_head.shape[2]
    flagged = np.zeros((len(layers), n_heads), dtype=bool)
    if contrast is not None:
        for one in raw.values():
            reference = nan_mean(one.per_head[one.members[contrast.reference]])
            flagged |= reference < NEAR_ZERO
    return [
        {"layer": number, "head": head, "flagged": bool(flagged[row, head])}
        for row, number in enumerate(layers)
        for head in range(n_heads)
    ]
