"""A harvest as rows: one per component for a table file, one per map for a terminal."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mlxroles.components.harvest_file import ALIVE, Harvest, MapHarvest, TopTokens
from mlxroles.text import guarded, show_token

_Z = 1.959963984540054
_SHOWN = 5


def component_rows(harvest: Harvest) -> Iterator[dict[str, Any]]:
    """One row per component: how often and how strongly it acts, and its surest tokens.

    ``low`` and ``high`` are a 95 % interval of the mean importance over rows of text.
    """
    for key in harvest.keys:
        found = harvest.map(key)
        mean, error = found.mean_importance, found.mean_importance_error
        for c in range(found.n):
            yield {
                "component": f"{key}:{c}",
                "map": key,
                "layer": found.layer,
                "kind": found.kind,
                "index": c,
                "firing": int(found.firing[c]),
                "density": found.firing[c] / harvest.n_tokens,
                "mean_importance": mean[c],
                "low": np.maximum(0.0, mean[c] - _Z * error[c]),
                "high": np.minimum(1.0, mean[c] + _Z * error[c]),
                "mean_activation": found.mean_activation[c],
                "mean_abs_activation_firing": found.mean_abs_activation[c],
                "input_tokens": guarded(shown_tokens(harvest, found.input_tokens, c)),
                "output_tokens": guarded(shown_tokens(harvest, found.output_tokens, c)),
            }


def map_rows(harvest: Harvest) -> list[dict[str, Any]]:
    """One row per map: components, how many fire at all and how many are alive, the mean."""
    rows = []
    for key in harvest.keys:
        found = harvest.map(key)
        best = int(np.argmax(found.mean_importance))
        rows.append(
            {
                "map": key,
                "components": found.n,
                "fire": int((found.firing > 0).sum()),
                "alive": alive(found),
                "at_once": float(found.firing.sum() / harvest.n_tokens),
                "best": best,
                "best_importance": float(found.mean_importance[best]),
                "best_tokens": shown_tokens(harvest, found.input_tokens, best),
            }
        )
    return rows


def alive(found: MapHarvest) -> int:
    """Components whose mean importance is above ``ALIVE``."""
    return int((found.mean_importance > ALIVE).sum())


def clear_tokens(top: TopTokens, component: int) -> list[int]:
    """Those of a component's tokens that surely go with it: the lower end is above 0."""
    ids, low = top.id[component], top.low[component]
    return [int(i) for i, least in zip(ids, low, strict=True) if i >= 0 and least > 0]


def shown_tokens(harvest: Harvest, top: TopTokens, component: int) -> str:
    """The first few of them, safe to show; empty where none is clear."""
    ids = clear_tokens(top, component)[:_SHOWN]
    return " ".join(show_token(harvest.token(i), limit=16) for i in ids)
