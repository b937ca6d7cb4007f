"""The study's correlation of several families' RFC differences, in its JSON form."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from mlxroles.errors import SpecError
from mlxroles.roles.compat.differences import counts
from mlxroles.roles.tables_csv import Row


def cross_model(
    named_rows: Mapping[str, Sequence[Row]], *, metric: str = "rfc", timestamp: str | None = None
) -> dict[str, object]:
    """The study's ``cross_model_analysis_results.json``, with every pair of families.

    Layers are matched by their number in the list, the longer list cut, and taken for independent
    observations: both series follow depth, so the p-values promise too much.

    Args:
        named_rows: rows of a comparison by name of the family.
        metric: ``rfc`` as in the study, or ``rsi``.
        timestamp: time of the analysis; now if not given.

    Returns:
        ``{"summary_stats": {name: ...}, "correlations": {"a_vs_b": ...}, "analysis_timestamp"}``.

    Raises:
        SpecError: a family has no difference in a layer.
    """
    series = {name: _series(name, rows, metric) for name, rows in named_rows.items()}
    return {
        "summary_stats": {name: counts(values) for name, values in series.items()},
        "correlations": {
            f"{a}_vs_{b}": _correlation(series[a], series[b])
            for a, b in itertools.combinations(series, 2)
        },
        "analysis_timestamp": timestamp or datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _series(name: str, rows: Sequence[Row], metric: str) -> list[float]:
    values = [float(row[f"{metric}_diff"]) for row in rows]
    if not values or not all(map(math.isfinite, values)):
        raise SpecError(f"{name}: a layer without {metric}_diff, so nothing can be correlated")
    return values


def _correlation(a: Sequence[float], b: Sequence[float]) -> dict[str, float | int]:
    n = min(len(a), len(b))
    x, y = np.array(a[:n]), np.array(b[:n])
    found = dict.fromkeys(("pearson_r", "pearson_p", "spearman_r", "spearman_p"), math.nan)
    if n > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
        from scipy import stats

        with warnings.catch_warnings(action="ignore"):  # series that are almost constant
            pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
        found = {
            "pearson_r": float(pearson.statistic),
            "pearson_p": float(pearson.pvalue),
            "spearman_r": float(spearman.statistic),
            "spearman_p": float(spearman.pvalue),
        }
    return {**found, "layers_compared": n}
