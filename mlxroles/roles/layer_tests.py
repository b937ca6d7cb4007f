"""Whether a layer's RFC and RSI differ from nothing, and whether equal lengths agree.

The labels of prompts are permuted. What is permuted belongs to the estimate: each model's entropy
per prompt in units of that model's own mean, so that a model whose entropies are all half as large
differs in nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles.roles.contrast import Contrast
from mlxroles.roles.sampling import ALPHA, Draws, Indices, LabelTest
from mlxroles.stats import nan_mean

Numbers = NDArray[np.float64]

_ROUNDING = 1e-12
"""Relative entropies of two models that differ by less than this share are equal."""


class Sides(NamedTuple):
    """The categories of a metric's test."""

    first: str
    """The category whose mean is higher where the metric is positive."""
    second: str
    ruler: tuple[str, ...]
    """The categories whose mean is the unit; permuting first and second leaves it as it is."""


def sides(contrast: Contrast) -> dict[str, Sides]:
    """The categories that each metric's test holds against each other.

    RFC: reference against focus, in units of the mean of both, which the permutations leave as it
    is and in which the difference has the sign that RFC has, also between models. RSI: confounder
    against focus in units of the mean of the reference, which is RSI itself.
    """
    focus, reference = contrast.focus, contrast.reference
    found = {"rfc": Sides(reference, focus, (focus, reference))}
    if contrast.confounder is not None:
        found["rsi"] = Sides(contrast.confounder, focus, (reference,))
    return found


def layer_tests(
    entropies: Sequence[Numbers],
    members: Sequence[Mapping[str, Indices]],
    estimates: Mapping[str, Mapping[str, Any] | None],
    contrast: Contrast,
    draws: Draws,
) -> dict[str, dict[str, Any] | None]:
    """Permutation tests of every layer; None for a metric that the contrast does not have.

    Args:
        entropies: of one model, or of base and instruct, whose difference is tested then; mean
            over heads [prompt, layer].
        members: the prompts of each category that have a value, by model.
        estimates: by metric the ``value`` and ``ci`` that the test stands beside.
        contrast: the categories.
        draws: the permutations.
    """
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(("rfc_test", "rsi_test"))
    for metric, (first, second, ruler) in sides(contrast).items():
        shared = {name: _shared([one[name] for one in members]) for name in {first, second, *ruler}}
        unit = np.concatenate([shared[name] for name in ruler])
        values = _difference([relative(one, unit) for one in entropies])
        tested = draws.test(values, shared[first], shared[second])
        found[f"{metric}_test"] = _document(tested, estimates[metric])
    return found


def relative(entropies: Numbers, unit: Indices) -> Numbers:
    """Entropies in units of their mean over some prompts [prompt, layer]; NaN where that is 0."""
    mean = nan_mean(entropies[unit])
    return np.divide(entropies, mean, out=np.full_like(entropies, np.nan), where=np.abs(mean) > 0)


def flags(
    estimate: Mapping[str, Any],
    q: Sequence[float],
    q_same_length: Sequence[float],
    diff_same_length: Sequence[float],
) -> dict[str, list[bool]]:
    """What may be said of each layer; the one place where that is decided.

    ``significant``: the false discovery rate is below .05 and the estimate's interval excludes 0.
    ``holds_at_equal_length``: that, and prompts of equal length differ in the same direction with
    a false discovery rate below .05. ``reverses_at_equal_length``: significant, and prompts of
    equal length differ the other way. What is NaN is False.

    Args:
        estimate: ``value`` and ``ci`` of the default form.
        q: false discovery rates of the layers.
        q_same_length: the same of labels permuted among prompts of equal length.
        diff_same_length: the statistic of that test, in the direction of the metric.
    """
    sign = np.sign(np.asarray(estimate["value"], dtype=np.float64))
    low, high = np.asarray(estimate["ci"], dtype=np.float64).reshape(-1, 2).T
    agrees = sign * np.sign(np.asarray(diff_same_length, dtype=np.float64))
    significant = (np.asarray(q, dtype=np.float64) < ALPHA) & ((low > 0) | (high < 0))
    holds = significant & (np.asarray(q_same_length, dtype=np.float64) < ALPHA) & (agrees > 0)
    return {
        "significant": significant.tolist(),
        "holds_at_equal_length": holds.tolist(),
        "reverses_at_equal_length": (significant & (agrees < 0)).tolist(),
    }


def _shared(members: Sequence[Indices]) -> Indices:
    """The prompts that every model has."""
    return members[0] if len(members) == 1 else np.intersect1d(members[0], members[-1])


def _difference(values: Sequence[Numbers]) -> Numbers:
    """The one model's values, or instruct - base, without rounding."""
    if len(values) == 1:
        return values[0]
    base, instruct = values
    moved = instruct - base
    return np.where(np.abs(moved) <= _ROUNDING * np.abs(base), 0.0, moved)


def _document(test: LabelTest, estimate: Mapping[str, Any] | None) -> dict[str, Any]:
    assert estimate is not None
    found = {
        "p": test.p.tolist(),
        "q": test.q.tolist(),
        "p_same_length": test.p_same_length.tolist(),
        "q_same_length": test.q_same_length.tolist(),
        "diff": test.statistic.tolist(),
        "diff_same_length": test.statistic_same_length.tolist(),
    }
    return {
        **found,
        **flags(estimate, found["q"], found["q_same_length"], found["diff_same_length"]),
        "n_permutations": test.n_permutations,
        "exact": test.exact,
        "n_permutations_same_length": test.n_permutations_same_length,
    }
