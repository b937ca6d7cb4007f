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
