"""A norm with its scale held: a linear map, found by what the norm does to a few vectors."""

from dataclasses import dataclass

from mlxroles.anatomy import tolerance
from mlxroles.backend import mx, nn, number

_LARGE = 1e3
"""Length of the elements of a probing vector, beside which the norm's epsilon is nothing."""
_SHIFTED = 1e-2
"""A norm that takes the mean out makes less of a constant than this share of alternating signs."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """y = scale * gain * (x - its mean, if ``centred``) + bias, float32."""

    gain: mx.array
    """[d_model]."""
    bias: mx.array
    """[d_model]; zeros for most norms."""
    centred: bool
    """LayerNorm takes the mean of the stream out, RMSNorm does not."""
    scale: mx.array
    """1 / (size of x), [position, 1]."""

    def pulled_back(self, readers: mx.array) -> mx.array:
        """Directions [position, d_model] along which x is read, given those along which y is."""
        out = self.scale * self.gain * readers
        return out - out.mean(axis=-1, keepdims=True) if self.centred else out


def frozen(norm: nn.Module | None, x: mx.array, y: mx.array | None = None) -> Frozen | None:
    """The norm as the linear map that it is on x [position, d_model], or None.

    Args:
        norm: The norm; None for one that is no module and has no weights.
        x: What it is handed, worked out again in float32.
        y: What it made of x, where ``norm`` is None.

    Returns:
        None where y is not a scale per position times the stream, weighted and shifted.
    """
    x = x.astype(mx.float32)
    if norm is not None:
        y = norm(x[None])[0]
    assert y is not None
    found = gain_of(norm, x.shape[-1])
    if found is None or y.shape != x.shape:
        return None
    gain, bias, centred = found
    base = gain * (x - x.mean(axis=-1, keepdims=True) if centred else x)
    shifted = y.astype(mx.float32) - bias
    squared = (base * base).sum(axis=-1, keepdims=True)
    scale = (shifted * base).sum(axis=-1, keepdims=True) / mx.maximum(squared, 1e-30)
    off = number(mx.abs(shifted - scale * base).max() / mx.maximum(mx.abs(shifted).max(), 1e-30))
    return Frozen(gain, bias, centred, scale) if off <= tolerance(y.dtype) else None


def gain_of(norm: nn.Module | None, width: int) -> tuple[mx.array, mx.array, bool] | None:
    """Gain and bias [d_model] of a norm, and whether it takes the mean out."""
    if norm is None:
        return mx.ones(width), mx.zeros(width), False
    ones = mx.ones((1, 1, width))
    signs = mx.where(mx.arange(width) % 2 == 0, 1.0, -1.0).reshape(1, 1, width)
    bias = norm(mx.zeros((1, 1, width))).astype(mx.float32)
    even = norm(_LARGE * signs).astype(mx.float32) - bias
    flat = norm(_LARGE * ones).astype(mx.float32) - bias
    if even.shape != signs.shape or not number(mx.isfinite(even + flat + bias).all()):
        return None
    centred = number(mx.abs(flat).max()) <= _SHIFTED * number(mx.abs(even).max())
    return (even * signs).reshape(-1), bias.reshape(-1), centred
