"""What the study printed about the differences of a comparison, and what it left out."""

import math
from collections.abc import Sequence

import numpy as np

from mlxroles.roles.influence import without_one
from mlxroles.roles.tables_csv import METRICS, SIDES, Row

THRESHOLD = 0.01
"""A difference beyond this the study called significant, without a test."""

MOST = 5
"""How many of the largest differences are listed."""


def difference_summary(rows: Sequence[Row]) -> dict[str, object]:
    """The differences of a comparison over its layers, per metric.

    Beside the study's figures each metric has the layer whose removal moves the mean the most
    (``most_influential_layer``, ``mean_without_it``), the layers whose own interval excludes 0
    (``ci_excludes_zero``), and the levels with and without layer 0, where a head with almost no
    reference entropy can decide everything.

    Returns:
        ``{"threshold", "total_layers", "rfc", "rsi"}``. A metric has :func:`counts` and
        ``median``, ``sample_std`` (ddof 1), ``min_layer``, ``max_layer``, ``pct_compression``,
        ``pct_preservation``, ``pct_near_zero``, ``ci_excludes_zero``,
        ``most_influential_layer``, ``mean_without_it``, ``largest_negative``,
        ``largest_positive`` (lists of layers) and ``levels``; a metric without numbers is None.
    """
    summary: dict[str, object] = {"threshold": THRESHOLD, "total_layers": len(rows)}
    return summary | {metric: _metric(rows, metric) for metric in METRICS}


def counts(differences: Sequence[float]) -> dict[str, float | int]:
    """The study's figures of one family: ``std`` is that of a whole population (ddof 0)."""
    values = np.asarray(differences, dtype=np.float64)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "positive_count": int((values > 0).sum()),
        "negative_count": int((values < 0).sum()),
        "significant_positive": int((values > THRESHOLD).sum()),
        "significant_negative": int((values < -THRESHOLD).sum()),
        "near_zero": int((np.abs(values) <= THRESHOLD).sum()),
        "total_layers": len(values),
    }


def _metric(rows: Sequence[Row], metric: str) -> dict[str, object] | None:
    known = [row for row in rows if math.isfinite(row[f"{metric}_diff"])]
    if not known:
        return None
    values = np.array([row[f"{metric}_diff"] for row in known])
    layers = [int(row["layer"]) for row in known]
    found: dict[str, object] = dict(counts(values.tolist()))
    ascending = np.argsort(values, kind="stable")
    n = len(values)
    excludes = [
        int(row["layer"])
        for row in known
        if row[f"{metric}_diff_ci_low"] > 0 or row[f"{metric}_diff_ci_high"] < 0
    ]
    found |= {
        "median": float(np.median(values)),
        "sample_std": float(values.std(ddof=1)) if n > 1 else math.nan,
        "min_layer": layers[ascending[0]],
        "max_layer": layers[ascending[-1]],
        "pct_compression": 100 * float((values < -THRESHOLD).mean()),
        "pct_preservation": 100 * float((values > THRESHOLD).mean()),
        "pct_near_zero": 100 * float((np.abs(values) <= THRESHOLD).mean()),
        "ci_excludes_zero": excludes,
        "largest_negative": [layers[i] for i in ascending[:MOST] if values[i] < 0],
        "largest_positive": [layers[i] for i in ascending[::-1][:MOST] if values[i] > 0],
        "levels": {side: _levels(known, f"{metric}_mean_{side}") for side in SIDES},
    }
    return found | _without_one(values, layers)


def _without_one(values: np.ndarray, layers: Sequence[int]) -> dict[str, object]:
    """The layer whose removal moves the mean the most, and the mean without it."""
    most = without_one(layers, values.tolist())
    if most is None:
        return {"most_influential_layer": None, "mean_without_it": math.nan}
    return {"most_influential_layer": most.layer, "mean_without_it": most.without}


def _levels(rows: Sequence[Row], column: str) -> dict[str, float]:
    values = [row[column] for row in rows]
    later = [row[column] for row in rows if row["layer"] != 0]
    return {
        "mean": float(np.mean(values)),
        "mean_without_layer_0": float(np.mean(later)) if later else math.nan,
    }
