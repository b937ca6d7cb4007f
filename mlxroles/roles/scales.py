"""RFC and RSI of every layer on one scale, raw or length-normalised, with what is sure of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.roles import metrics
from mlxroles.roles.contrast import Contrast
from mlxroles.roles.layer_tests import layer_tests
from mlxroles.roles.metrics import DEFAULT_FORM, FORMS, METRICS, Means
from mlxroles.roles.sampling import FEWEST, Draws, with_values
from mlxroles.roles.table import Entropies, Reading
from mlxroles.stats import nan_mean, percentile_interval, weighted_means

SCALES = ("raw", "normalised")
"""Nats, and shares of the entropy of uniform weights over the keys that a query sees."""

Numbers = NDArray[np.float64]
Samples = dict[str, dict[str, Numbers]]
"""Metric, form: values [1 + resample, layer]."""


@dataclass(frozen=True, eq=False)
class Averages:
    """The averages of one model's entropies that statistics start from, on one scale."""

    per_head: Numbers
    """E1: mean over queries [prompt, layer, head]."""
    per_layer: Numbers
    """E2: mean of that over heads [prompt, layer]."""
    total: Numbers
    """Sum over queries [prompt, layer, head]; NaN for heads that are not there."""
    queries: Numbers
    """How many queries that are [prompt, layer, head]."""
    members: Mapping[str, NDArray[np.integer]]
    """The prompts of each category that have a query that counts."""

    @classmethod
    def of(cls, table: Entropies, reading: Reading, *, normalised: bool) -> "Averages":
        """Reads a table."""
        values = table.queries(reading, normalised=normalised)
        known = ~np.isnan(values)
        queries = known.sum(axis=-1).astype(np.float64)
        total = np.where(known, values, 0.0).sum(axis=-1)
        per_head = np.where(queries > 0, total / np.maximum(queries, 1), np.nan)
        absent = (queries == 0).all(axis=0)
        return cls(
            per_head,
            nan_mean(per_head, axis=-1),
            np.where(absent, np.nan, total),
            queries,
            {name: with_values(per_head, table.members(name)) for name in table.categories},
        )

    @classmethod
    def by_scale(
        cls, tables: Mapping[str, Entropies], reading: Reading
    ) -> dict[str, dict[str, "Averages"]]:
        """Those of every table, by scale and then by model."""
        return {
            scale: {
                name: cls.of(table, reading, normalised=scale == "normalised")
                for name, table in tables.items()
            }
            for scale in SCALES
        }

    def enough(self, *categories: str) -> bool:
        """Whether each of the categories has prompts enough for an interval."""
        return all(len(self.members[name]) >= FEWEST for name in categories)

    def metrics_with_interval(self, contrast: Contrast) -> dict[str, bool]:
        """Whether there are prompts enough for each metric's interval."""
        return {
            "rfc": self.enough(contrast.focus, contrast.reference),
            "rsi": self.enough(*contrast.names),
        }


def scale(
    averages: Mapping[str, Averages], contrast: Contrast | None, draws: Draws
) -> dict[str, Any]:
    """The part of a document that holds the layers' numbers on one scale.

    Args:
        averages: of ``base`` and ``instruct``, or of one model.
        contrast: what RFC and RSI compare; without it there are entropies only.
        draws: shared by both models, so that their difference is paired.
    """
    models, samples = {}, []
    for name, one in averages.items():
        models[name], found = _model(one, contrast, draws)
        samples.append(found)
    if contrast is None or len(averages) < 2:
        return {"models": models, "difference": None}
    base, instruct = averages.values()
    moved: Samples = {
        metric: {form: samples[1][metric][form] - samples[0][metric][form] for form in FORMS}
        for metric in samples[0]
    }
    ratios = _ratios(moved, (base, instruct), contrast)
    return {
        "models": models,
        "difference": ratios | _tests((base, instruct), ratios, contrast, draws),
    }


def estimate(samples: Numbers, *, enough: bool) -> dict[str, list]:
    """Row 0 as the value and the others as its 95 % percentile interval.

    Args:
        samples: ``(1 + resample, unit)``.
        enough: whether there are prompts enough to resample; otherwise the interval is NaN.
    """
    if enough:
        ci = np.stack(percentile_interval(samples[1:]), axis=-1)
    else:
        ci = np.full((samples.shape[1], 2), np.nan)
    return {"value": samples[0].tolist(), "ci": ci.tolist()}


def _model(
    one: Averages, contrast: Contrast | None, draws: Draws
) -> tuple[dict[str, Any], Samples]:
    means = {
        name: weighted_means(one.per_layer, members, draws.counts)
        for name, members in one.members.items()
    }
    found: dict[str, Any] = {
        "category": {name: estimate(mean, enough=one.enough(name)) for name, mean in means.items()}
    }
    if contrast is None:
        nothing = ("rfc", "rsi", "rfc_test", "rsi_test", "contrast")
        return found | dict.fromkeys(nothing), {}
    samples = _samples(one, means, contrast, draws)
    found |= _ratios(samples, (one,), contrast)
    found |= _tests((one,), found, contrast, draws)
    enough = {
        "reference_minus_focus": one.enough(contrast.focus, contrast.reference),
        "confounder_minus_focus": one.enough(contrast.focus, contrast.names[-1]),
    }
    found["contrast"] = {
        name: None if value is None else estimate(value, enough=enough[name])
        for name, value in metrics.difference_of_means(means, contrast).items()
    }
    return found, samples


def _samples(
    one: Averages, means: Mapping[str, Numbers], contrast: Contrast, draws: Draws
) -> Samples:
    """Every form of every metric in every resample, layer by layer to save memory."""
    n_layers, n_heads = one.per_head.shape[1:]
    shape = (len(draws.counts), n_layers)
    there = METRICS if contrast.confounder is not None else METRICS[:1]
    found = {metric: {form: np.empty(shape) for form in FORMS} for metric in there}
    for layer in range(n_layers):
        parts = (one.per_head[:, layer], one.total[:, layer], one.queries[:, layer])
        columns = np.concatenate(parts, axis=1)
        heads, pooled = {}, {}
        for name in contrast.names:
            drawn = weighted_means(columns, one.members[name], draws.counts)
            own, total, queries = np.split(drawn, [n_heads, 2 * n_heads], axis=1)
            heads[name] = own
            pooled[name] = np.where(queries > 0, total / np.where(queries > 0, queries, 1), np.nan)
        by_layer = {name: means[name][:, layer] for name in contrast.names}
        for metric, values in metrics.forms(Means(by_layer, heads, pooled), contrast).items():
            for form, value in values.items():
                found[metric][form][:, layer] = value
    return found


def _ratios(samples: Samples, models: Sequence[Averages], contrast: Contrast) -> dict[str, Any]:
    enough = [one.metrics_with_interval(contrast) for one in models]
    found: dict[str, Any] = dict.fromkeys(METRICS)
    for metric, by_form in samples.items():
        found[metric] = {
            form: estimate(value, enough=all(one[metric] for one in enough))
            for form, value in by_form.items()
        }
    return found


def _tests(
    models: Sequence[Averages], ratios: Mapping[str, Any], contrast: Contrast, draws: Draws
) -> dict[str, Any]:
    return layer_tests(
        [one.per_layer for one in models],
        [one.members for one in models],
        {metric: ratios[metric] and ratios[metric][DEFAULT_FORM] for metric in METRICS},
        contrast,
        draws,
    )
