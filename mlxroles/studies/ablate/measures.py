"""How one run at t differs from another: attention outputs and logits."""

import numpy as np
from numpy.typing import NDArray

from mlxroles import probes

FLOOR = 1e-8
"""What a squared length is taken for at least where it is divided by."""


def change(first: NDArray, second: NDArray) -> tuple[float, float, float]:
    """Normalised inner product, cosine and squared distance of two vectors, in float64.

    The first is <x, y> / |x|^2: 1 where nothing changed, 0 where nothing is left of x.
    """
    x, y = first.astype(np.float64), second.astype(np.float64)
    product, own, other = float(x @ y), float(x @ x), float(y @ y)
    cosine = product / max(float(np.sqrt(own * other)), FLOOR)
    return product / max(own, FLOOR), cosine, float((x - y) @ (x - y))


def logit_change(first: NDArray, second: NDArray) -> tuple[float, float]:
    """KL of the first from the second, in nats, and 1 where the likeliest token is another."""
    return probes.kl(first, second), float(np.argmax(first) != np.argmax(second))
