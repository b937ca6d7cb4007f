"""RFC, RSI and log ratio of every head, from its mean entropies, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxroles.roles.contrast import Contrast
from mlxroles.roles.metrics import METRICS, log_ratio, ratio_of_means
from mlxroles.roles.sampling import Draws
from mlxroles.roles.scales import Averages
from mlxroles.stats import Estimate, percentile_interval, weighted_means

Numbers = NDArray[np.float64]

_BLOCK = 64
"""Heads worked on at a time: 10,000 resamples of them are 5 MB."""


@dataclass(frozen=True, eq=False)
class HeadRatios:
    """Ratios of mean entropies; arrays over heads in the order of layers [layer × head]."""

    rfc: Estimate
    rsi: Estimate | None
    """None without a confounder."""
    log_ratio: Numbers
    """ln(reference / focus)."""

    @classmethod
    def of(cls, models: Sequence[Averages], contrast: Contrast, draws: Draws) -> "HeadRatios":
        """Those of one model, or instruct - base in every resample of the same prompts."""
        metrics = METRICS if contrast.confounder is not None else METRICS[:1]
        enough = [one.metrics_with_interval(contrast) for one in models]
        n_units = int(np.prod(models[0].per_head.shape[1:]))
        found = {metric: np.full((3, n_units), np.nan) for metric in metrics}
        logs = np.full(n_units, np.nan)
        for start in range(0, n_units, _BLOCK):
            block = slice(start, start + _BLOCK)
            parts = [_resampled(one, block, contrast, draws.counts) for one in models]
            ratios = [ratio_of_means(part, contrast) for part in parts]
            for metric in metrics:
                samples = _change([one[metric] for one in ratios])
                found[metric][0, block] = samples[0]
                if all(one[metric] for one in enough):
                    found[metric][1:, block] = percentile_interval(samples[1:])
            first = [{name: mean[0] for name, mean in part.items()} for part in parts]
            logs[block] = _change([log_ratio(one, contrast)["rfc"] for one in first])
        rsi = Estimate(*found["rsi"]) if "rsi" in found else None
        return cls(Estimate(*found["rfc"]), rsi, logs)

    def row(self, i: int) -> dict[str, float | None]:
        """The numbers of one head."""
        found: dict[str, float | None] = {}
        for name, estimate in (("rfc", self.rfc), ("rsi", self.rsi)):
            bounds = (None,) * 3 if estimate is None else (float(one[i]) for one in estimate)
            found |= zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True)
        return found | {"log_ratio": float(self.log_ratio[i])}


def _resampled(
    one: Averages, block: slice, contrast: Contrast, counts: Numbers
) -> dict[str, Numbers]:
    """Mean entropies of some heads by category [1 + resample, head]."""
    units = one.per_head.reshape(len(one.per_head), -1)[:, block]
    return {name: weighted_means(units, one.members[name], counts) for name in contrast.names}


def _change(values: Sequence[Numbers | None]) -> Numbers:
    """The one model's values, or those of instruct minus those of base."""
    known = [one for one in values if one is not None]
    return known[0] if len(known) == 1 else known[1] - known[0]
