"""Noise as large as a donor's activations: what any patch of that size does."""

import numpy as np

from mlxroles.backend import mx


def matched_noise(donor: mx.array, rng: np.random.Generator, begins: int = 0) -> mx.array:
    """Random normal vectors with the norm of the donor's at every position (and head).

    Args:
        donor: Array [1, position, ...]; the result has its shape and dtype.
        rng: What draws them.
        begins: Position at which the array begins; the same numbers are drawn for it as for one
            that begins at 0.
    """
    shape = (donor.shape[0], donor.shape[1] + begins, *donor.shape[2:])
    noise = mx.array(rng.standard_normal(shape, dtype=np.float32)[:, begins:])
    norms = mx.linalg.norm(donor.astype(mx.float32), axis=-1, keepdims=True)
    return (noise / mx.linalg.norm(noise, axis=-1, keepdims=True) * norms).astype(donor.dtype)


def shuffled_keys(pattern: mx.array, rng: np.random.Generator) -> mx.array:
    """Attention weights [1, head, query, key] with each query's weights dealt to other keys.

    The control for a pattern: rows of the same weights on keys that the query sees. Keys of no
    weight, later ones or those outside a window, keep none.
    """
    weights = np.array(pattern.astype(mx.float32))
    hidden = weights == 0
    seen = np.argsort(hidden, axis=-1, kind="stable")
    order = np.argsort(rng.random(weights.shape, dtype=np.float32) + 2 * hidden, axis=-1)
    dealt = np.zeros_like(weights)
    np.put_along_axis(dealt, seen, np.take_along_axis(weights, order, axis=-1), axis=-1)
    return mx.array(dealt).astype(pattern.dtype)
