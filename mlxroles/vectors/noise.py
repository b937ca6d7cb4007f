"""Random vectors as long as a given one: what any vector of that length does."""

import numpy as np

from mlxroles.errors import VectorError


def matched_noise(vector: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random directions with the length of a vector [n, d_model], float32.

    Normal in every coordinate, so that no direction is likelier than another; lengths agree to
    1e-6 of themselves.

    Raises:
        VectorError: the vector is not one finite row of numbers.
    """
    given = np.asarray(vector, np.float64)
    if given.ndim != 1 or not given.size or not np.isfinite(given).all():
        raise VectorError(f"noise is made for one finite vector, not for shape {given.shape}")
    drawn = rng.standard_normal((n, given.size))
    lengths = np.linalg.norm(drawn, axis=-1, keepdims=True)
    return (drawn / lengths * np.linalg.norm(given)).astype(np.float32)
