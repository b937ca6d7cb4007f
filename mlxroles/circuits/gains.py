"""Norms before heads, and of queries and keys: their gains, found by what they do."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mlxroles.anatomy import distance, tolerance
from mlxroles.backend import mx, nn, number
from mlxroles.direct.norms import frozen, gain_of

_EVEN = 1e-3
"""Largest error of a gain over the prompts, as a share of the largest element."""
_SMALL = 1e-3
"""Numbers whose squares are about as large as the epsilon of a norm."""


class Norm(NamedTuple):
    """What a norm does besides multiplying and adding."""

    centred: bool
    """It takes the mean of the stream out."""
    epsilon: float
    """What it adds to the mean square of the stream before it divides by its root."""


Call = tuple[nn.Module, mx.array, mx.array]
"""A module, what it was handed and what it gave."""


def norm_before(
    calls: Iterable[Call], stream: mx.array, x: mx.array
) -> tuple[mx.array, mx.array, Norm | None] | None:
    """Gain and bias [d_model] of the norm that made x of the stream, and the rest of it.

    Args:
        calls: Of the modules that may be the norm.
        stream: What entered the block [row, position, d_model].
        x: What entered its projections.

    Returns:
        No norm where x is the stream itself; None where x is neither that nor a norm's.
    """
    for module, taken, given in calls:
        alike = given.shape == x.shape == taken.shape
        if not alike or not number(mx.array_equal(given, x)):
            continue
        known = gain_of(module, x.shape[-1])
        if known is not None and frozen(module, taken[0]) is not None:
            gain, bias, centred = known
            return gain, bias, Norm(centred, _epsilon(module, gain, bias))
    ones, zeros = mx.ones(x.shape[-1]), mx.zeros(x.shape[-1])
    if distance(stream, x) <= tolerance(x.dtype):
        return ones, zeros, None
    if frozen(None, stream[0], x[0]) is not None:
        return ones, zeros, Norm(centred=False, epsilon=0.0)
    return None


def _epsilon(norm: nn.Module, gain: mx.array, bias: mx.array) -> float:
    """What a norm adds to a mean square, from what it makes of alternating small numbers."""
    signs = mx.where(mx.arange(gain.size) % 2 == 0, 1.0, -1.0)
    made = (norm((_SMALL * signs)[None, None])[0, 0].astype(mx.float32) - bias) * signs
    gains, size = np.array(gain, dtype=np.float64), np.array(made, dtype=np.float64)
    used = (gains != 0) & (size != 0)
    if not used.any():
        return 0.0
    found = float(np.median((gains[used] / size[used]) ** 2 - 1)) * _SMALL**2
    return found if found > _SMALL**2 * 1e-4 else 0.0


def own_gain(
    matrix: mx.array, bias: mx.array | None, x: mx.array, seen: mx.array
) -> mx.array | None:
    """Elementwise factor between projections and what the kernel was handed at position 0."""
    made = mx.einsum("bm,hmd->bhd", x[:, 0].astype(mx.float32), matrix)
    made = made if bias is None else made + bias.astype(mx.float32).reshape(made.shape[1:])
    got = seen[:, 0].astype(mx.float32)
    if made.shape != got.shape:
        return None
    close = 1e-4 if seen.dtype == mx.float32 else 6e-2
    gain = _factor(np.array(made, dtype=np.float64), np.array(got, dtype=np.float64), close)
    return None if gain is None else mx.array(gain.astype(np.float32))


def _factor(made: np.ndarray, got: np.ndarray, close: float) -> np.ndarray | None:
    """The g [head, d] with got = g * normed(made [row, head, d]) for one of the usual norms.

    Returns:
        g; an array without axes where the rows differ by their sizes alone; None where nothing
        of this holds.
    """
    bound = np.abs(got).max()
    if np.abs(_along(got, made, axis=2) * made - got).max() <= close * bound:
        return np.array(1.0)
    centred = made - made.mean(axis=2, keepdims=True)
    for base, axes in ((made, (2,)), (made, (1, 2)), (centred, (2,))):
        normed = base / np.sqrt((base * base).mean(axis=axes, keepdims=True))
        gain = _along(got, normed, axis=0)[0]
        if np.abs(gain * normed - got).max() <= max(_EVEN, close) * bound:
            return gain
    return None


def _along(wanted: np.ndarray, base: np.ndarray, *, axis: int) -> np.ndarray:
    """The factor along an axis with which base comes nearest to what is wanted."""
    squared = (base * base).sum(axis=axis, keepdims=True)
    return (wanted * base).sum(axis=axis, keepdims=True) / np.maximum(squared, 1e-30)
