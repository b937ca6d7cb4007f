"""Base against instruct, layer by layer: the rows of a table and what they add up to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.errors import SpecError
from mlxroles.roles import compat
from mlxroles.roles.influence import Influence, without_one
from mlxroles.roles.metrics import DEFAULT_FORM, METRICS

__all__ = ["Influence", "difference_summary", "rows", "without_one"]

_TESTS = ("p", "q", "p_same_length", "q_same_length")


def rows(doc: Mapping[str, Any], *, form: str = DEFAULT_FORM) -> list[dict[str, Any]]:
    """One row per layer: both models, their difference, and the normalised numbers.

    Beside the values stand ``_low`` and ``_high``, and of both models, their difference and the
    normalised difference the tests: ``_p``, ``_q`` and the same of prompts of equal length,
    ``_p_same_length`` and ``_q_same_length``. These belong to the default form. Numbers that do
    not exist are NaN, so every row has the same keys whatever the contrast.

    Args:
        doc: what :func:`mlxroles.roles.document.build` returned, or a stored document, where
            missing numbers are None.
        form: which form of the metrics; one of ``metrics.FORMS``.

    Raises:
        SpecError: the document has no difference, having one model or no contrast.
    """
    if doc["raw"]["difference"] is None:
        have = "one model" if len(doc["models"]) < 2 else "no contrast of categories"
        raise SpecError(
            f"a comparison needs base, instruct and two categories; this run has {have}"
        )
    found = [{"layer": layer} for layer in doc["layers"]]
    for row, one in enumerate(found):
        for metric in METRICS:
            one |= _row(doc, metric, form, row)
        bounds = doc["null"]["raw"]["forms"][form]
        one |= {f"null_{metric}": _number(bounds[metric]) for metric in METRICS}
    return found


def difference_summary(
    layers: Sequence[int], raw: Mapping[str, Any], *, form: str = DEFAULT_FORM
) -> dict[str, Any] | None:
    """What the layers' differences add up to; None without a difference.

    As :func:`mlxroles.roles.compat.difference_summary`, whose counts by the threshold of .01 are
    no test, and per metric the layers that are ``significant``, in ``q_below_05``, and those of
    them that hold among prompts of equal length, in ``q_same_length_below_05``. Both are of the
    default form (:func:`mlxroles.roles.layer_tests.flags`).

    Args:
        layers: the numbers of the layers.
        raw: the part of a document on the scale ``raw``.
        form: which form of the metrics.
    """
    if raw["difference"] is None:
        return None
    rows = [_study_row(raw, form, row) | {"layer": layer} for row, layer in enumerate(layers)]
    summary: dict[str, Any] = compat.difference_summary(rows)
    for metric in METRICS:
        test = raw["difference"][f"{metric}_test"]
        if test is not None and summary[metric] is not None:
            for name, flag in (
                ("q_below_05", "significant"),
                ("q_same_length_below_05", "holds_at_equal_length"),
            ):
                flagged = zip(layers, test[flag], strict=True)
                summary[metric][name] = [layer for layer, is_so in flagged if is_so]
    return summary


def _study_row(raw: Mapping[str, Any], form: str, row: int) -> dict[str, float]:
    """The columns of the study's comparison that a summary reads."""
    found: dict[str, float] = {}
    for metric in METRICS:
        difference = _estimate(raw["difference"][metric], form, row, f"{metric}_diff_ci")
        found |= difference | {f"{metric}_diff": difference[f"{metric}_diff_ci"]}
        for model, one in raw["models"].items():
            found |= _estimate(one[metric], form, row, f"{metric}_mean_{model}")
    return found


def _row(doc: Mapping[str, Any], metric: str, form: str, row: int) -> dict[str, float]:
    found: dict[str, float] = {}
    raw, normalised = doc["raw"], doc["normalised"]
    for what, one in (*raw["models"].items(), ("diff", raw["difference"])):
        found |= _estimate(one[metric], form, row, f"{metric}_{what}")
        found |= _test(one[f"{metric}_test"], row, f"{metric}_{what}")
    for model, one in normalised["models"].items():
        own = _estimate(one[metric], form, row, "own")
        found[f"{metric}_normalised_{model}"] = own["own"]
    difference, name = normalised["difference"], f"{metric}_normalised_diff"
    found |= _estimate(difference[metric], form, row, name)
    return found | _test(difference[f"{metric}_test"], row, name)


def _test(test: Mapping[str, Any] | None, row: int, name: str) -> dict[str, float]:
    return {
        f"{name}_{what}": math.nan if test is None else _number(test[what][row]) for what in _TESTS
    }


def _estimate(
    by_form: Mapping[str, Any] | None, form: str, row: int, name: str
) -> dict[str, float]:
    if by_form is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    low, high = by_form[form]["ci"][row]
    return {
        name: _number(by_form[form]["value"][row]),
        f"{name}_low": _number(low),
        f"{name}_high": _number(high),
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
