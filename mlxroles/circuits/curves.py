"""What distance alone does to a head's scores, under the model's own RoPE.

The score of a query at token t with a key at token t', D positions before it, is
W(D) = scale * (x_t W_Q) R(D) (x_t' W_K) with x the embedding as a norm without gain makes it; in
layer 0 it is the model's own score. Averaged over pairs of other tokens it says which distances a
head prefers whatever the tokens; for the same token twice it says how that depends on distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxroles.backend import mx
from mlxroles.circuits.ends import Ends
from mlxroles.circuits.matrices import Heads
from mlxroles.circuits.rotary import Rotary

Numbers = NDArray[np.float64]

OFFSETS = 64
"""Distances by default: 0, 1, 2, ..."""
CURVE_FIELDS = ("mean", "low", "high", "spread", "same")
_RESAMPLES = 400


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores by distance of every head of a layer."""

    offsets: tuple[int, ...]
    mean: Numbers
    """Mean over pairs of different tokens [head, offset]."""
    low: Numbers
    """95 % band over tokens (bootstrap): as wide as holds whole curves, not single distances."""
    high: Numbers
    spread: Numbers
    """Standard deviation over pairs of different tokens."""
    same: Numbers
    """Mean over tokens of the score of a token with itself."""


def curves(
    ends: Ends,
    heads: Heads,
    rotary: Rotary,
    ids: Sequence[int] | NDArray[np.int64],
    rng: np.random.Generator,
    *,
    offsets: Sequence[int] = range(OFFSETS),
) -> Curves:
    """The curves of all heads of a layer over some tokens."""
    x = heads.normed(ends.embedding(ids))
    q, k = heads.queries(x), heads.keys(x)
    n = len(ids)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    weights = mx.array(np.concatenate([np.full((1, n), 1 / n), counts]).astype(np.float32))
    own_weights = weights * weights
    others = 1 - own_weights.sum(axis=-1)
    still, ends_at = rotary.at(k, 0), [int(o) for o in offsets]
    means, sames, spreads = [], [], []
    for offset in ends_at:
        turned = rotary.at(q, max(offset, 0)) * rotary.scale
        key = still if offset >= 0 else rotary.at(k, -offset)
        same = (turned * key).sum(axis=-1)
        # the mean over all pairs is the product of the means; a token with itself goes out again
        pairs = ((weights @ turned) * (weights @ key)).sum(axis=-1)
        mean = (pairs - same @ own_weights.T) / others
        squares = (turned.swapaxes(1, 2) @ turned) * (key.swapaxes(1, 2) @ key)
        squared = (squares.sum(axis=(1, 2)) - (same * same).sum(axis=-1)) / (n * (n - 1))
        means.append(mean)
        sames.append(same.mean(axis=-1))
        spreads.append(mx.sqrt(mx.maximum(squared - mean[:, 0] ** 2, 0.0)))
        mx.eval(means[-1], sames[-1], spreads[-1])
    every = np.array(mx.stack(means), dtype=np.float64)  # [offset, head, resample]
    mean, wide = every[..., 0].T, _band(every)
    spread, same_token = (np.array(mx.stack(a), dtype=np.float64).T for a in (spreads, sames))
    return Curves(tuple(ends_at), mean, mean - wide, mean + wide, spread, same_token)


def _band(every: Numbers) -> Numbers:
    """Half of the width [head, offset] of a band that 95 % of the resampled curves lie in.

    The distance at which a curve is highest is looked for, so a band for each of them alone would
    find one too easily.

    Args:
        every: Mean scores [offset, head, 1 + resample], first those of the tokens themselves.
    """
    off = np.abs(every[..., 1:] - every[..., :1])
    error = np.sqrt((off * off).mean(axis=-1, keepdims=True))
    furthest = (off / np.where(error > 0, error, 1.0)).max(axis=0)
    return (error[..., 0] * np.quantile(furthest, 0.95, axis=-1)).T
