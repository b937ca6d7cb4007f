"""Interventions as data: where, on which positions and heads, and what happens there.

An edit says nothing about models; ``forward`` carries it out. Arrays at a site have the layouts
of ``SITES``; ``value`` must fit the part of that array that the edit selects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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

STREAM_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
ATTENTION_SITES = ("q", "k", "v", "z", "pattern", "entropy")
EDITABLE = ("resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern")


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention at one site of one layer.

    Raises:
        ValueError: for a site that cannot be edited or heads at a site that has none.
    """

    site: str
    layer: int
    value: mx.array | float
    """Array that broadcasts to the selected part; a number for ``scale`` (0 ablates)."""
    op: Operation = "replace"
    positions: Sequence[int] | None = None
    """Positions (queries for ``pattern``) that change; None for all of them."""
    heads: Sequence[int] | None = None
    """Heads that change (kv heads for k and v); None for all of them."""

    def __post_init__(self) -> None:
        if self.site not in EDITABLE:
            raise ValueError(f"site {self.site!r} cannot be edited; these can: {list(EDITABLE)}")
        if self.heads is not None and self.site in STREAM_SITES:
            raise ValueError(f"{self.site} has no heads")


def apply(edit: Edit, array: mx.array) -> mx.array:
    """A new array with the edit carried out; shape and dtype stay those of ``array``."""
    index = _index(edit, array)
    old = array if index is None else array[index]
    if edit.op == "replace":
        new = mx.broadcast_to(mx.array(edit.value), old.shape)
    elif edit.op == "add":
        new = old + edit.value
    else:
        new = old * edit.value
    new = new.astype(array.dtype)
    if index is None:
        return new
    out = array[...]  # a handle of its own: item assignment rebinds it and leaves ``array`` alone
    out[index] = new
    return out


def _index(edit: Edit, array: mx.array) -> tuple | None:
    if edit.positions is None and edit.heads is None:
        return None
    head_axis, position_axis = (1, 2) if edit.site == "pattern" else (2, 1)
    chosen = {position_axis: edit.positions, head_axis: edit.heads}
    axes = sorted(axis for axis, items in chosen.items() if items is not None)
    index: list = [slice(None)] * (max(axes) + 1)
    for n, axis in enumerate(axes):
        items = list(chosen[axis] or ())
        bad = [i for i in items if not 0 <= i < array.shape[axis]]
        if bad:
            what = "position" if axis == position_axis else "head"
            raise ValueError(f"{what} {bad[0]} is outside 0..{array.shape[axis] - 1}")
        shape = [1] * len(axes)
        shape[n] = len(items)
        index[axis] = mx.array(items).reshape(shape) if len(axes) > 1 else mx.array(items)
    return tuple(index)
