"""How much of a mean over layers rests on one of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Influence(NamedTuple):
    """The layer whose removal changes a mean the most."""

    layer: int
    mean: float
    """With all layers."""
    without: float
    """Without that one."""

    @property
    def decides(self) -> bool:
        """Whether the mean changes its sign or loses more than half without the layer."""
        return decides(self.mean, self.without)


def without_one(layers: Sequence[int], values: Sequence[float]) -> Influence | None:
    """The layer without which the mean changes most; None for fewer than two finite values.

    Args:
        layers: the numbers of the layers.
        values: one for each; what is not finite is left out.
    """
    array = np.array(values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(array))
    if len(known) < 2:
        return None
    kept = array[known]
    i = int(np.argmax(np.abs(kept - kept.mean())))
    return Influence(layers[known[i]], float(kept.mean()), float(np.delete(kept, i).mean()))


def decides(whole: float, without: float) -> bool:
    """Whether a number changes its sign or loses more than half without one layer."""
    return whole * without < 0 or abs(without) < abs(whole) / 2
