"""RFC and RSI in the forms that are in use, as formulas on means of entropies.

With m the mean entropy of a category, RFC = 1 - m(focus) / m(reference) and
RSI = (m(confounder) - m(focus)) / m(reference). The forms differ in what is averaged before the
ratio is taken; they agree where all heads have the same reference entropy, and part where one
head's is near zero. What a formula divides by zero is NaN, without a warning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxroles.roles.contrast import Contrast
from mlxroles.stats import nan_mean

Numbers = NDArray[np.float64]

METRICS = ("rfc", "rsi")
FORMS = ("ratio_of_means", "head_form", "mean_of_ratios", "median_of_ratios", "log_ratio")
"""``ratio_of_means``: of means over prompts, per layer; the study's figure 9.
``head_form``: of means over all (prompt, query) pairs of a head, then the mean over heads, where
a head without reference entropy counts 0; the study's comparison, there of 28 heads.
``mean_of_ratios``, ``median_of_ratios``: of means over prompts of a head, then over heads.
``log_ratio``: ln(m(reference) / m(focus)) for RFC and ln(m(confounder) / m(focus)) for RSI."""
DEFAULT_FORM = "ratio_of_means"
NEAR_ZERO = 0.01
"""Nats: a head whose reference entropy is lower makes ratios explode and is flagged."""


@dataclass(frozen=True)
class Means:
    """Mean entropies of one layer by category, any number of leading axes (resamples)."""

    layer: Mapping[str, Numbers]
    """Over prompts, of the mean over heads (...)."""
    heads: Mapping[str, Numbers]
    """Over prompts, per head (..., head)."""
    pooled: Mapping[str, Numbers]
    """Over all (prompt, query) pairs, per head (..., head)."""


def forms(means: Means, contrast: Contrast) -> dict[str, dict[str, Numbers]]:
    """Every form of every metric (...) of one layer; ``rsi`` is absent without a confounder."""
    by_form = {
        "ratio_of_means": ratio_of_means(means.layer, contrast),
        "head_form": _over_heads(means.pooled, contrast, _head_mean, at_zero=0.0),
        "mean_of_ratios": _over_heads(means.heads, contrast, _head_mean),
        "median_of_ratios": _over_heads(means.heads, contrast, head_median),
        "log_ratio": log_ratio(means.layer, contrast),
    }
    found = {}
    for metric in METRICS:
        values = {form: by_form[form][metric] for form in FORMS}
        known = {form: value for form, value in values.items() if value is not None}
        if known:
            found[metric] = known
    return found


def ratio_of_means(
    means: Mapping[str, ArrayLike], contrast: Contrast, *, at_zero: float = np.nan
) -> dict[str, Numbers | None]:
    """``rfc`` and ``rsi`` of mean entropies by category; ``at_zero`` where the reference is 0."""
    focus, reference, confounder = _parts(means, contrast)
    over = _ratio(focus, reference)
    rfc = np.where(reference == 0, at_zero, 1 - over)
    if confounder is None:
        return {"rfc": rfc, "rsi": None}
    rsi = np.where(reference == 0, at_zero, _ratio(confounder - focus, reference))
    return {"rfc": rfc, "rsi": rsi}


def log_ratio(means: Mapping[str, ArrayLike], contrast: Contrast) -> dict[str, Numbers | None]:
    """Logarithms of the ratios to the focus; NaN unless both entropies are positive."""
    focus, reference, confounder = _parts(means, contrast)
    return {
        "rfc": _log(reference, focus),
        "rsi": None if confounder is None else _log(confounder, focus),
    }


def difference_of_means(
    means: Mapping[str, ArrayLike], contrast: Contrast
) -> dict[str, Numbers | None]:
    """The numerators of both metrics: ``reference_minus_focus`` and ``confounder_minus_focus``."""
    focus, reference, confounder = _parts(means, contrast)
    return {
        "reference_minus_focus": reference - focus,
        "confounder_minus_focus": None if confounder is None else confounder - focus,
    }


def head_median(values: Numbers) -> Numbers:
    """The median over the last axis of what is not NaN; NaN where nothing is left."""
    missing = np.isnan(values)
    if not missing.any():
        return np.median(values, axis=-1)
    count = values.shape[-1] - missing.sum(axis=-1, keepdims=True)
    ordered = np.sort(values, axis=-1)  # NaN last
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.maximum(count, 1) // 2, axis=-1)
    return np.where(count > 0, (low + high) / 2, np.nan)[..., 0]


def _head_mean(values: Numbers) -> Numbers:
    return nan_mean(values, axis=-1)


def _over_heads(
    means: Mapping[str, Numbers],
    contrast: Contrast,
    reduce: Callable[[Numbers], Numbers],
    *,
    at_zero: float = np.nan,
) -> dict[str, Numbers | None]:
    ratios = ratio_of_means(means, contrast, at_zero=at_zero)
    return {name: None if value is None else reduce(value) for name, value in ratios.items()}


def _parts(
    means: Mapping[str, ArrayLike], contrast: Contrast
) -> tuple[Numbers, Numbers, Numbers | None]:
    focus, reference = (np.asarray(means[n]) for n in (contrast.focus, contrast.reference))
    if contrast.confounder is None:
        return focus, reference, None
    return focus, reference, np.asarray(means[contrast.confounder])


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    return np.where(below == 0, np.nan, above / np.where(below == 0, 1.0, below))


def _log(above: Numbers, below: Numbers) -> Numbers:
    positive = (above > 0) & (below > 0)
    return np.where(
        positive, np.log(np.where(positive, above / np.where(positive, below, 1.0), 1.0)), np.nan
    )
