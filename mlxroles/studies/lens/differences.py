"""What one change makes of the curves, paired by prompt: an offer, an edit, the other model.

The same prompts stand on both sides, so the difference is taken prompt by prompt, and its interval
is the bootstrap's over prompts. Where it excludes 0, the layers are not tested once more against
each other: it is a 95 % interval of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxroles import stats
from mlxroles.store.record import Record

AXES = ("model", "variant", "run", "lens")
CHANGES = (
    ("variant", "default", "no-tools"),
    ("run", "edited", "clean"),
    ("model", "instruct", "base"),
)
"""Axis, and its values of which the second is taken off the first."""


class Group(NamedTuple):
    """The records of one curve, by prompt."""

    key: tuple[str, ...]
    records: dict[int, Record]


def differences(
    read: Sequence[Record], curves: Mapping[str, np.ndarray], seed: int
) -> Iterator[dict[str, Any]]:
    """An entry per change that two or more prompts have on both sides.

    Args:
        read: Cells of readings.
        curves: Cell id -> what is compared [layer].
        seed: Of the bootstrap.
    """
    groups: dict[tuple[str, ...], dict[int, Record]] = {}
    for record in read:
        key = tuple(str(record.coords[name]) for name in AXES)
        groups.setdefault(key, {})[int(str(record.coords["prompt"]))] = record
    for axis, with_it, without in CHANGES:
        at = AXES.index(axis)
        for key, ours in groups.items():
            theirs = groups.get((*key[:at], without, *key[at + 1 :]))
            if key[at] != with_it or theirs is None:
                continue
            shared = sorted(ours.keys() & theirs.keys())
            if len(shared) < 2:
                continue
            rows = np.stack([curves[ours[p].id] - curves[theirs[p].id] for p in shared])
            rng = np.random.default_rng([seed, *f"{axis} {key}".encode()])
            low, high = stats.bootstrap_mean_ci(rows, rng)
            yield {
                "change": f"{with_it} - {without}",
                "axis": axis,
                **dict(zip(AXES, key, strict=True)),
                "n_prompts": len(shared),
                "mean": stats.nan_mean(rows).tolist(),
                "ci": [low.tolist(), high.tolist()],
                "from": _since(low, high),
            }


def _since(low: np.ndarray, high: np.ndarray) -> int | None:
    """The first layer index from which the interval excludes 0, on one side, to the end."""
    sides = np.where(low > 0, 1, np.where(high < 0, -1, 0))
    if not len(sides) or not sides[-1]:
        return None
    other = np.flatnonzero(sides != sides[-1])
    return int(other[-1]) + 1 if len(other) else 0
