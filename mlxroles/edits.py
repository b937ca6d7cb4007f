"""Interventions as data: where, on which positions and heads, and what happens there.

An edit says nothing about models; ``forward`` carries it out. Arrays at a site have the layouts
of ``SITES``; ``value`` must fit the part of that array that the edit selects.
"""

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from mlxroles.backend import mx

Operation = Literal["replace", "add", "scale", "project"]

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
LINEAR = "linear"
"""Where a ``LowRank`` is added: the output of one linear leaf of a block, by what enters it."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """A map x -> (x V) U beside the weight of a linear leaf: the leaf computes x (W^T + V U) + b.

    Raises:
        ValueError: matrices that do not fit each other.
    """

    leaf: str
    """Path of the leaf in its block: ``self_attn.q_proj``."""
    V: mx.array
    """[d_in, rank], float32."""
    U: mx.array
    """[rank, d_out], float32."""
    name: str = ""
    """What the map is, for a reader."""

    def __post_init__(self) -> None:
        if self.V.ndim != 2 or self.U.ndim != 2 or self.V.shape[1] != self.U.shape[0]:
            raise ValueError(f"V {self.V.shape} and U {self.U.shape} make no map of low rank")


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention at one site of one layer.

    Raises:
        ValueError: a site that cannot be edited, an unknown operation, heads at a site that has
            none, or a position or head that is named twice.
    """

    site: str
    layer: int
    value: mx.array | np.ndarray | float | LowRank
    """Array that broadcasts to the selected part, or a number. For ``project`` a direction along
    the last axis, of any length but 0, that is taken out: x - (x.d / d.d) d. At ``LINEAR``, and
    only there, a ``LowRank``, which is added."""
    op: Operation = "replace"
    positions: Sequence[int] | None = None
    """Positions (queries for ``pattern``) that change, counted from 0; None for all of them."""
    heads: Sequence[int] | None = None
    """Heads that change (kv heads for k and v); None for all of them."""

    def __post_init__(self) -> None:
        is_map = isinstance(self.value, LowRank)
        if is_map != (self.site == LINEAR) or (is_map and (self.op != "add" or self.heads)):
            raise ValueError(f"a map of low rank is added, at {LINEAR}, and nothing else is there")
        if self.site not in (*EDITABLE, LINEAR):
            raise ValueError(f"site {self.site!r} cannot be edited; these can: {list(EDITABLE)}")
        if self.heads is not None and self.site in STREAM_SITES:
            raise ValueError(f"{self.site} has no heads")
        if self.op not in get_args(Operation):
            raise ValueError(f"op {self.op!r} is none of {list(get_args(Operation))}")
        for what, items in (("position", self.positions), ("head", self.heads)):
            if items is not None and len({*items}) < len(items):
                raise ValueError(f"a {what} is named twice in {list(items)}")

    @property
    def numbers(self) -> mx.array:
        """The value as an array."""
        assert not isinstance(self.value, LowRank)
        return self.value if isinstance(self.value, mx.array) else mx.array(self.value)

    @property
    def first_position(self) -> int:
        """The first position that changes."""
        return 0 if self.positions is None else min(self.positions, default=sys.maxsize)


def zero(site: str, layer: int, **where: Any) -> Edit:
    """Ablation: zeros at a site; ``where`` may name ``positions`` and ``heads``."""
    return Edit(site, layer, 0.0, **where)


def mean(site: str, layer: int, reference: mx.array, **where: Any) -> Edit:
    """Mean ablation: every prompt's array becomes the mean of a reference set's.

    Args:
        site: Site, of which ``reference`` has the layout with one row per reference prompt.
        layer: Layer.
        reference: [prompt, ...]; positions must be as many as the edited run has.
        where: ``positions`` and ``heads``.

    Raises:
        ValueError: as ``selected``.
    """
    average = reference.astype(mx.float32).mean(axis=0, keepdims=True)
    return transplant(site, layer, average, **where)


def resample(
    site: str, layer: int, reference: mx.array, rng: np.random.Generator, **where: Any
) -> Edit:
    """Resample ablation: what one prompt, drawn from a reference set, had there.

    Arguments and errors are those of ``mean``.
    """
    drawn = int(rng.integers(reference.shape[0]))
    return transplant(site, layer, reference[drawn : drawn + 1], **where)


def project_out(site: str, layer: int, direction: mx.array | np.ndarray, **where: Any) -> Edit:
    """Takes the component along a direction [d] (or [head, d] at sites with heads) out.

    Raises:
        ValueError: a direction of length 0 or with numbers that are not finite.
    """
    given = np.asarray(direction, dtype=np.float32)
    if not np.isfinite(given).all() or not (np.linalg.norm(given, axis=-1) > 0).all():
        raise ValueError("a direction must be finite and longer than 0")
    return Edit(site, layer, mx.array(given), "project", **where)


def transplant(site: str, layer: int, array: mx.array, **where: Any) -> Edit:
    """Puts in what a donor's array [1, ...] in the site's layout holds at the same places.

    Raises:
        ValueError: a position or head that the array does not have.
    """
    edit = Edit(site, layer, array, **where)
    return replace(edit, value=selected(edit, array))


def onto(edit: Edit, start: int, length: int) -> Edit | None:
    """The edit on an array that holds only the positions ``start`` to ``length`` - 1 of a run.

    None where it changes none of them. The key axis of ``pattern`` stays whole.
    """
    if start == 0:
        return edit
    axis = -2 if edit.site in STREAM_SITES or edit.site == "pattern" else -3
    value, size = edit.value, length if edit.positions is None else len(edit.positions)
    left = None
    kept = list(range(start, length))
    if edit.positions is not None:
        kept = [n for n, p in enumerate(edit.positions) if p >= start]
        left = tuple(edit.positions[n] - start for n in kept)
        if not left:
            return None
    shape: tuple[int, ...] = getattr(value, "shape", ())
    if len(shape) >= -axis and shape[axis] == size > 1:
        value = mx.take(edit.numbers, mx.array(kept), axis=axis)
    return replace(edit, value=value, positions=left)


def apply(edit: Edit, array: mx.array) -> mx.array:
    """A new array with the edit carried out; shape and dtype stay those of ``array``.

    Raises:
        ValueError: a position or head that the array does not have, or a value that does not
            broadcast to the selected part.
    """
    index, old = _index(edit, array), selected(edit, array)
    if old.size == 0:
        return array[...]
    new = _changed(edit, old)
    if index is None:
        return new
    out = array[...]  # a handle of its own: item assignment rebinds it and leaves ``array`` alone
    out[index] = new
    return out


def add_map(edit: Edit, x: mx.array, y: mx.array) -> mx.array:
    """The output of a linear leaf after an edit at ``LINEAR``, worked out in float32.

    Args:
        edit: The edit, whose value is a ``LowRank``.
        x: What entered the leaf [batch, position, d_in].
        y: What it returned [batch, position, d_out]; shape and dtype of the result.

    Raises:
        ValueError: a position that the array does not have.
    """
    low, index = edit.value, _index(edit, y)
    assert isinstance(low, LowRank)
    if edit.positions is not None and not len(edit.positions):
        return y
    entering, old = (x, y) if index is None else (x[index], y[index])
    change = (entering.astype(mx.float32) @ low.V) @ low.U
    new = (old.astype(mx.float32) + change).astype(y.dtype)
    if index is None:
        return new
    out = y[...]
    out[index] = new
    return out


def changes(edit: Edit, array: mx.array) -> mx.array:
    """Whether ``apply`` would change any number of the array, not evaluated.

    Raises:
        ValueError: as ``apply``.
    """
    old = selected(edit, array)
    return mx.array(False) if old.size == 0 else ~mx.array_equal(_changed(edit, old), old)


def _changed(edit: Edit, old: mx.array) -> mx.array:
    """What an edit makes of the part that it selects."""
    value = edit.numbers
    if edit.op == "replace":
        new = value
    elif edit.op == "add":
        new = old + value
    elif edit.op == "scale":
        new = old * value
    else:
        new = _without(old, value)
    return mx.broadcast_to(new, old.shape).astype(old.dtype)


def _without(old: mx.array, direction: mx.array) -> mx.array:
    """``old`` less its component along a direction, worked out in float32."""
    x, d = old.astype(mx.float32), direction.astype(mx.float32)
    along = (x * d).sum(axis=-1, keepdims=True) / (d * d).sum(axis=-1, keepdims=True)
    return x - along * d


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
