"""Tokens that go with a component: pointwise mutual information with a lower bound.

PMI(token, fires) = ln( P(fires | token) / P(fires) ), in nats. A token that was seen once with a
component has the largest PMI there is; so tokens are ranked by the lower end of the interval that
Wilson (1927) gives for P(fires | token). The intervals of all tokens that are looked at for a
component hold together with 95 % (Bonferroni), as if positions were independent of each other and
P(fires) known.
"""

from statistics import NormalDist
from typing import Any

import numpy as np

from mlxroles.components.harvest_file import TopTokens

TOP = 10
"""Tokens that are kept for each component."""

Array = np.ndarray[Any, Any]


def wilson_low(successes: Array, trials: Array, z: float) -> Array:
    """Lower end of the interval for a share, 0 where there were no trials.

    ``z`` is the standard normal quantile of its upper end.
    """
    n = np.where(trials > 0, trials, 1.0)
    share = np.clip(successes / n, 0.0, 1.0)
    middle = share + z * z / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.where(trials > 0, np.maximum((middle - half) / (1 + z * z / n), 0.0), 0.0)


def top_tokens(both: Array, with_token: Array, firing: Array, n: int, ids: Array) -> TopTokens:
    """The tokens of each component whose PMI is surely the largest [C, 10].

    Args:
        both: Weight of (component fires, token) [C, column].
        with_token: Weight of each token [column].
        firing: Positions at which each component fires [C].
        n: Positions.
        ids: Token of each column.
    """
    size, kept = len(both), min(TOP, both.shape[1])
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, int((with_token > 0).sum())))
    found = TopTokens(
        np.full((size, TOP), -1, dtype=np.int32), *(np.full((size, TOP), np.nan) for _ in range(3))
    )
    for start in range(0, size, _ROWS):  # arrays of [rows, column] for some components at a time
        rows = slice(start, start + _ROWS)
        joint = np.asarray(both[rows], dtype=np.float64)
        known = (joint > 0) & (firing[rows, None] > 0)
        base = np.maximum(firing[rows, None], 1) / n
        with np.errstate(divide="ignore"):
            low = np.log(wilson_low(joint, with_token, z) / base)
            pmi = np.log(joint / np.where(with_token > 0, with_token, 1.0) / base)
        known &= np.isfinite(low)
        low = np.where(known, low, -np.inf)
        order = np.argsort(-low, axis=1, kind="stable")[:, :kept]
        chosen = np.take_along_axis(known, order, axis=1)
        found.id[rows, :kept] = np.where(chosen, ids[order], -1)
        for array, values in ((found.pmi, pmi), (found.low, low), (found.count, joint)):
            array[rows, :kept] = np.where(chosen, np.take_along_axis(values, order, axis=1), np.nan)
    return found


_ROWS = 256
