"""Interventions as data: where, on which positions and heads, and what happens there.

An edit says nothing about models; ``forward`` carries it out. Arrays at a site have the layouts
of ``SITES``; ``value`` must fit the part of that array that the edit selects.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mlxroles.backend import mx

Operation = Literal["replace", "add", "scale"]

SITES = {
    "resid_pre": "batch position d_model",
    "resid_mid": "batch position d_model",
    "resid_post": "batch position d_model",
    "attn_out": "batch position d_model",
    "mlp_out": "batch position d_model",
    "q": "batch position head d_head",
    "k": "batch position kv_head d_head",
    "v": "batch position kv_head d_head",
    "z": "batch position head d_head",
    "pattern": "batch head query key",
    "entropy": "batch head query",
}
"""Axes of the array at each site, outermost first; ``logits`` is [batch, position, vocab]."""

DERIVED = {
    "entropy_no_first": "batch head query",
    "first_keys": "batch head query near",
    "recent_keys": "batch head query near",
}
"""Further numbers made from the pattern, which can be kept wherever ``entropy`` can."""

STREAM_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
ATTENTION_SITES = ("q", "k", "v", "z", "pattern", "entropy")
EDITABLE = ("resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern")


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention at one site of one layer.

    Raises:
        ValueError: a site that cannot be edited, an unknown operation, heads at a site that has
            none, or a position or head that is named twice.
    """

    site: str
    layer: int
    value: mx.array | np.ndarray | float
    """Array that broadcasts to the selected part, or a number (``scale`` by 0 ablates)."""
    op: Operation = "replace"
    positions: Sequence[int] | None = None
    """Positions (queries for ``pattern``) that change, counted from 0; None for all of them."""
    heads: Sequence[int] | None = None
    """Heads that change (kv heads for k and v); None for all of them."""

    def __post_init__(self) -> None:
        if self.site not in EDITABLE:
            raise ValueError(f"site {self.site!r} cannot be edited; these can: {list(EDITABLE)}")
        if self.heads is not None and self.site in STREAM_SITES:
            raise ValueError(f"{self.site} has no heads")
        if self.op not in get_args(Operation):
            raise ValueError(f"op {self.op!r} is none of {list(get_args(Operation))}")
        for what, items in (("position", self.positions), ("head", self.heads)):
            if items is not None and len({*items}) < len(items):
                raise ValueError(f"a {what} is named twice in {list(items)}")


def apply(edit: Edit, array: mx.array) -> mx.array:
    """A new array with the edit carried out; shape and dtype stay those of ``array``.

    Raises:
        ValueError: a position or head that the array does not have, or a value that does not
            broadcast to the selected part.
    """
    index, old = _index(edit, array), selected(edit, array)
    if old.size == 0:
        return array[...]
    value = edit.value if isinstance(edit.value, mx.array) else mx.array(edit.value)
    if edit.op == "replace":
        new = value
    elif edit.op == "add":
        new = old + value
    else:
        new = old * value
    new = mx.broadcast_to(new, old.shape).astype(array.dtype)
    if index is None:
        return new
    out = array[...]  # a handle of its own: item assignment rebinds it and leaves ``array`` alone
    out[index] = new
    return out


def selected(edit: Edit, array: mx.array) -> mx.array:
    """The part of an array at the edit's site that it changes.

    Raises:
        ValueError: a position or head that the array does not have.
    """
    index = _index(edit, array)
    return array if index is None else array[index]


def _index(edit: Edit, array: mx.array) -> tuple | None:
    """What selects the edit's part of the array; None where that is the whole array."""
    if edit.positions is None and edit.heads is None:
        return None
    head_axis, position_axis = (1, 2) if edit.site == "pattern" else (2, 1)
    named = {position_axis: edit.positions, head_axis: edit.heads}
    chosen = {axis: items for axis, items in named.items() if items is not None}
    axes = sorted(chosen)
    index: list = [slice(None)] * (max(axes) + 1)
    for n, axis in enumerate(axes):
        items = [operator.index(i) for i in chosen[axis]]
        bad = [i for i in items if not 0 <= i < array.shape[axis]]
        if bad:
            what = "position" if axis == position_axis else "head"
            raise ValueError(f"{what} {bad[0]} is outside 0..{array.shape[axis] - 1}")
        shape = [1] * len(axes)
        shape[n] = len(items)
        index[axis] = mx.array(items, dtype=mx.int32).reshape(shape)
    return tuple(index)
