"""The document of a characterised induction head: numbers with intervals, beside random ones."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlxroles import stats
from mlxroles.components.decomposition import Name
from mlxroles.components.importance import importance_of
from mlxroles.components.induction import PLACES, Array, Induction, Tried
from mlxroles.heads import head_name

CONCENTRATED, INVOLVED = 0.5, 0.1
"""Share of a component in the target head above which it has that name."""
ELSEWHERE = 0.005
"""Change of another head's score that is told, where its interval leaves 0 out."""
NO_EFFECT = 0.01
"""A component whose effect's interval lies within it, on either side, has none."""
TOP = 10


def characterise(
    of: Induction, told: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """The document of all four questions; intervals are over sequences.

    ``told`` is called with the number of steps done and of all.
    """
    candidates = of.candidates()
    steps = len(candidates) + min(TOP, len(candidates))
    tried: list[Tried] = []
    for candidate in candidates:
        tried.append(of.tried(*candidate))
        told(len(tried), steps)
    rng = np.random.default_rng([of.settings.seed, 10])
    rows = _rows(of, tried, rng)
    order = sorted(range(len(rows)), key=lambda n: -tried[n].first)[:TOP]
    nulls: list[Array] = []
    for n in order:
        nulls.append(of.random_directions(tried[n].name))
        told(len(tried) + len(nulls), steps)
    largest = np.max(nulls, axis=0) if nulls else np.array([])
    for n, null in zip(order, nulls, strict=True):
        rows[n] |= {"random": null.tolist(), "p": _p(rows[n]["effect"], largest)}
    top = [tried[n].name for n in order]
    others = [t.name for t in tried if t.name not in top]
    before, target = of.measured.before[:, of.target], PLACES.index("target")
    return {
        "schema": "mlxroles/induction/1",
        "head": head_name(of.layer, of.target),
        "kv_head": of.target // of.group,
        "n_heads": of.n_heads,
        "n_kv_heads": of.n_heads // of.group,
        "score": _mean(before[:, target], rng),
        "uniform": float(of.measured.uniform[target]),
        "where": {place: float(before[:, n].mean()) for n, place in enumerate(PLACES)},
        "sequences": of.settings.sequences,
        "length": of.settings.length,
        "seed": of.settings.seed,
        "alive_by": "the harvest" if of.harvest is not None else "the sequences to choose on",
        "measure": importance_of(of.components).name,
        "components": rows,
        "top": [str(name) for name in top],
        "joint": _joint(of, top, others, rng) if top else {},
        "notes": list(of.notes),
    }


def _rows(of: Induction, tried: Sequence[Tried], rng: np.random.Generator) -> list[dict[str, Any]]:
    """One entry per component that was tried."""
    if not tried:
        return []
    # of every head [sequence, component, head]
    before, target = of.measured.before, PLACES.index("target")
    lost = np.stack([(before - t.after)[..., target] for t in tried], axis=1)
    means = lost.mean(axis=0)
    told = np.abs(means) > ELSEWHERE
    told[:, of.target] = True
    bounds = np.full((2, *means.shape), np.nan)
    bounds[:, told] = stats.bootstrap_mean_ci(lost[:, told], rng)
    rows = []
    for n, t in enumerate(tried):
        effect, (low, high) = float(means[n, of.target]), bounds[:, n, of.target].tolist()
        elsewhere = {
            head_name(of.layer, h): float(means[n, h])
            for h in range(of.n_heads)
            if h != of.target and told[n, h] and np.prod(bounds[:, n, h]) > 0
        }
        after = t.after[:, of.target].mean(axis=0)
        share = float(np.nan_to_num(t.share))
        row: dict[str, Any] = {"component": str(t.name), "map": t.name.key, "index": t.name.index}
        row |= {"share": share, "class": _class(share), "importance": t.importance}
        row |= {"first": t.first, "effect": effect, "low": low, "high": high}
        row["elsewhere"] = elsewhere
        row["rises"] = [name for name, value in elsewhere.items() if value < 0]
        row["after"] = {place: float(after[i]) for i, place in enumerate(PLACES)}
        row["idle"] = share > INVOLVED and low > -NO_EFFECT and high < NO_EFFECT
        rows.append(row)
    return rows


def _joint(
    of: Induction, top: Sequence[Name], others: Sequence[Name], rng: np.random.Generator
) -> dict[str, Any]:
    """All of the ten at once, beside random sets of as many others."""
    found, null = _mean(of.effect(of.without(top)), rng), of.random_sets(top, others)
    return {"n": len(top), **found, "random": null.tolist(), "p": _p(found["mean"], null)}


def _class(share: float) -> str:
    if share > CONCENTRATED:
        return "concentrated"
    return "involved" if share > INVOLVED else "elsewhere"


def _mean(values: Array, rng: np.random.Generator) -> dict[str, float]:
    low, high = stats.bootstrap_mean_ci(values, rng)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def _p(effect: float, null: Array) -> float | None:
    """How many of so many effects of random ones are as large, itself included."""
    return (1 + int((null >= effect).sum())) / (1 + len(null)) if len(null) else None
