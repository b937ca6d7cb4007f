"""What a patch did, per layer: effects, recovered shares, and where they are largest.

The recipient is the model that runs on, the donor the one whose activations are put in. With
every position patched the last layer always recovers nearly everything, so the largest effect
says little about where a decision is made: read the first layer at one half and the increments.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlxroles.documents import HALF
from mlxroles.errors import SpecError

MIN_GAP = 1e-6
"""Models that differ by less leave nothing to recover."""


class Peak(NamedTuple):
    """Where an effect is largest in absolute value."""

    layer: int | None
    """The first such layer; None where no effect is a number."""
    effect: float | None
    """The effect there, with its sign."""
    depth_pct: float | None
    """100 * layer / number of layers, to one decimal."""


def recovery(patched: float, recipient: float, donor: float) -> float:
    """The share of the difference between the models that the patch restores.

    (patched - recipient)/(donor - recipient): 0 is the unpatched recipient, 1 the donor. NaN
    where the two differ by less than 1e-6.
    """
    gap = donor - recipient
    if not math.isfinite(gap) or abs(gap) < MIN_GAP:
        return math.nan
    return (patched - recipient) / gap


def effect(
    cell: Mapping[str, Any],
    *,
    recipient: Mapping[str, Any],
    donor: Mapping[str, Any],
    metric: str = "log_odds",
) -> dict[str, float]:
    """What one patched run changed; each argument holds the measures of :func:`.measure`.

    ``effect`` is the change of ``tool_call_prob`` against the unpatched recipient (the study's),
    ``effect_log_odds`` that of the log-odds, ``recovery`` the recovered share in ``metric`` and
    ``recovery_prob`` that of ``p_first_token``.
    """
    return {
        "effect": cell["tool_call_prob"] - recipient["tool_call_prob"],
        "effect_log_odds": cell["log_odds"] - recipient["log_odds"],
        "recovery": recovery(cell[metric], recipient[metric], donor[metric]),
        "recovery_prob": recovery(
            cell["p_first_token"], recipient["p_first_token"], donor["p_first_token"]
        ),
    }


def effects(
    cells: Mapping[int, Mapping[str, Any] | None],
    *,
    recipient: Mapping[str, Any],
    donor: Mapping[str, Any],
    metric: str = "log_odds",
) -> dict[int, dict[str, float]]:
    """:func:`effect` per layer in ascending order, with the ``increment`` of the recovery.

    The increment is R(L) - R(previous tested layer): NaN for the first layer, and beside a layer
    that failed. A failed cell is None and yields NaN throughout.
    """
    found: dict[int, dict[str, float]] = {}
    before = math.nan
    for layer in sorted(cells):
        cell = cells[layer]
        if cell is None:
            names = ("effect", "effect_log_odds", "recovery", "recovery_prob")
            values = dict.fromkeys(names, math.nan)
        else:
            values = effect(cell, recipient=recipient, donor=donor, metric=metric)
        values["increment"] = values["recovery"] - before
        before = values["recovery"]
        found[layer] = values
    return found


def peak(by_layer: Mapping[int, float], n_layers: int) -> Peak:
    """The layer with the largest absolute effect, the first on ties; NaN is passed over.

    Raises:
        SpecError: no layer was tested.
    """
    if not by_layer:
        raise SpecError(f"no layer was tested, so there is no peak; layers are 0..{n_layers - 1}")
    known = [layer for layer in sorted(by_layer) if not math.isnan(by_layer[layer])]
    if not known:
        return Peak(None, None, None)
    layer = max(known, key=lambda layer: abs(by_layer[layer]))
    return Peak(layer, by_layer[layer], round(100 * layer / n_layers, 1))


def study_summary(
    *,
    instruct_to_base: Mapping[int, float] | None,
    base_to_instruct: Mapping[int, float] | None,
    n_layers: int,
) -> dict[str, int | float | None]:
    """The study's summary: ``peak_layer``, ``peak_effect`` and ``peak_depth_pct`` per direction.

    The keys begin with ``i2b_`` and ``b2i_``.

    Args:
        instruct_to_base: effect per layer; None where the direction was not run.
        base_to_instruct: the same for the other direction.
        n_layers: the number of layers of the model, not of those tested.

    Raises:
        SpecError: a direction was run over no layer.
    """
    found: dict[str, int | float | None] = {}
    for prefix, by_layer in (("i2b", instruct_to_base), ("b2i", base_to_instruct)):
        top = Peak(None, None, None) if by_layer is None else peak(by_layer, n_layers)
        found[f"{prefix}_peak_layer"] = top.layer
        found[f"{prefix}_peak_effect"] = top.effect
        found[f"{prefix}_peak_depth_pct"] = top.depth_pct
    return found


def first_half_layer(recoveries: Mapping[int, float]) -> int | None:
    """The first tested layer whose recovery is at least one half; None where there is none."""
    return next((layer for layer in sorted(recoveries) if recoveries[layer] >= HALF), None)
