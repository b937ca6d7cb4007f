"""A run in words: which sites were kept at which layers, with shapes and names of axes."""

from collections.abc import Mapping
from typing import NamedTuple

from mlxroles.backend import mx
from mlxroles.edits import DERIVED, SITES
from mlxroles.text import ranges


class Line(NamedTuple):
    """One array of a run, or one site of several layers."""

    name: str
    shape: str
    """``[1, 16, 8, 32]``; the shapes of other layers where they differ."""
    axes: str
    """Names of the axes, outermost first."""
    dtype: str
    layers: str
    """``0-5``; empty for the logits."""


def lines(sites: Mapping[str, Mapping[int, mx.array]], logits: mx.array | None) -> list[Line]:
    """What a run kept, the logits first; nothing is computed."""
    found = []
    if logits is not None:
        found.append(Line("logits", _shape(logits), "batch position vocab", _dtype(logits), ""))
    for site, kept in sites.items():
        shapes = list(dict.fromkeys(_shape(kept[i]) for i in sorted(kept)))
        axes = (SITES | DERIVED)[site]
        dtype = _dtype(next(iter(kept.values())))
        found.append(Line(site, " or ".join(shapes), axes, dtype, ranges(sorted(kept))))
    return found


def _shape(array: mx.array) -> str:
    return str([*array.shape])


def _dtype(array: mx.array) -> str:
    return str(array.dtype).rsplit(".", 1)[-1]
