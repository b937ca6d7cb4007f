"""Where the numbers of an ablation run stand: the axes of its arrays, the places of its cells."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlxroles.store.record import Record

AT_POSITIONS = {
    "redundancy": {
        "kl": ("comparison",),
        "top1_changed": ("comparison",),
        "random_moved": ("set", "layer"),
        "": ("comparison", "layer"),
    },
    "offsets": {
        "heads_nip": ("layer",),
        "heads_cosine": ("layer",),
        "moved": ("set", "layer", "offset"),
        "": ("curve", "layer", "offset"),
    },
    "patterns": {
        "pattern": ("state", "layer", "head", "offset"),
        "moved": ("set", "layer", "head"),
        "shift": ("set", "layer", "offset"),
    },
    "compare": {
        "random_kl": ("set",),
        "random_changed": ("set",),
        "": ("condition", "rank"),
    },
}
"""Test at single positions -> array -> its axes; "" stands for all other arrays."""

LISTED = ("layer", "comparison", "curve", "condition", "offset")
"""Axes along which the identity says what stands, in the plural."""

_BY_HEAD = dict.fromkeys(("entropy_change", "score_previous"), ("layer", "head"))
_BY_HEAD["score_induction"] = ("layer", "head")


def axes_of(test: str, name: str, n_axes: int) -> tuple[str, ...]:
    """Names of the axes of an array; as many as are known of a name that is not."""
    if test in AT_POSITIONS:
        of = AT_POSITIONS[test]
        return of.get(name, of.get("", ()))[:n_axes]
    return _BY_HEAD.get(name, ("prompt",))[:n_axes]


def placed(identity: Mapping[str, Any], record: Record) -> Record:
    """A cell under the coordinates and names that it has in ``run.h5``.

    Prompt and position of a test at single positions are one coordinate, ``case``. Means over a
    random set are called ``random_`` and the name; of other cells the arrays say more than means.
    """
    at: Any = record.coords
    if identity.get("test") in AT_POSITIONS:
        prompt = identity["prompts"][at["prompt"]][0]
        coords = {"model": at["model"], "case": f"{prompt} t={at['position']}"}
        return replace(record, coords=coords)
    if "random" in at:
        values = {f"random_{n}": v for n, v in record.values.items() if isinstance(v, float)}
        return replace(record, values=values)
    # where ablations are graded, what is not ablated is left as it is
    times = {} if identity.get("method") != "scale" or "factor" in at else {"factor": "1"}
    return replace(record, values={}, coords={**at, **times})
