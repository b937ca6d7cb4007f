"""How far two ways to the same array may lie apart when only rounding separates them."""

from mlxroles.backend import mx, number


def eps(dtype: mx.Dtype) -> float:
    """Distance from 1 to the next number of a float type."""
    return float(mx.finfo(dtype).eps)


def tolerance(dtype: mx.Dtype) -> float:
    """Bound for ``distance`` between two ways to a product of matrices."""
    return {mx.float32: 2e-5, mx.float16: 4e-3}.get(dtype, 3e-2)


def distance(a: mx.array, b: mx.array) -> float:
    """Largest absolute difference, as a share of the largest value of ``b``."""
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return number(mx.abs(a - b).max() / mx.maximum(mx.abs(b).max(), 1e-30))


def sum_error(total: mx.array, *terms: mx.array) -> mx.array:
    """Largest difference between ``total`` and the sum of the terms, in roundings of its dtype.

    Each element is measured by its own terms: a few huge values of a stream, as trained models
    have them, hide nothing. A sum of three terms that the model computed itself stays below 2.

    Returns:
        A float32 scalar, not evaluated; NaN where any of the arrays has one.
    """
    exact = [t.astype(mx.float32) for t in terms]
    size = sum((mx.abs(t) for t in exact), mx.array(1e-30))
    return (mx.abs(sum(exact, -total.astype(mx.float32))) / size).max() / eps(total.dtype)
