"""The published scores of one pattern [..., query, key], as closed forms say them.

Detectors read the same places in one pass; these are for a pattern that is at hand, and say what
the original study printed where a detector differs: ``first_position`` counts query 0, which a
detector leaves out (its score s over T tokens is (1 + (T - 1) s) / T here), ``delimiter`` takes
any set of keys, and the mean over rows of ``duplicate`` gives every row one vote where the study
gave one to every query that has a duplicate.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mlxroles.detectors import places
from mlxroles.detectors.places import Numbers


def previous_token(pattern: ArrayLike) -> Numbers:
    """Mean over queries q >= 1 of p[q, q - 1]; NaN where there is no second token."""
    weights = np.asarray(pattern)
    return places.previous(weights.shape[-1]).read(weights)


def induction(pattern: ArrayLike, length: int) -> Numbers:
    """Mean over k = 0..L-2 of p[L + k, k + 1], of a sequence [x, x].

    Args:
        pattern: Of 2 L queries and keys.
        length: L.

    Raises:
        ValueError: the pattern has another number of keys, or L < 2.
    """
    weights = np.asarray(pattern)
    if weights.shape[-1] != 2 * length or length < 2:
        raise ValueError(f"a pattern over {weights.shape[-1]} keys is none of 2 x {length} tokens")
    return places.repeat(length).read(weights)


def profile(pattern: ArrayLike, offsets: int) -> Numbers:
    """Mean over queries q >= d of p[q, q - d] for d = 0..offsets-1 [..., offset]; NaN beyond."""
    weights = np.asarray(pattern)
    length = weights.shape[-1]
    scores = [places.offset(length, d).read(weights) for d in range(offsets)]
    return np.stack(scores, axis=-1)


def first_position(pattern: ArrayLike, *, start: int = 0) -> Numbers:
    """Mean over queries of p[q, 0]; query 0 counts its 1, unless ``start=1`` leaves it out."""
    weights = np.asarray(pattern)
    return places.first(weights.shape[-1], start=start).read(weights)


def duplicate(pattern: ArrayLike, ids: Sequence[int]) -> Numbers:
    """Weight on earlier tokens with a query's own id, over the queries that have one; else NaN."""
    return places.duplicates(ids).read(pattern)


def delimiter(pattern: ArrayLike, chosen: ArrayLike) -> Numbers:
    """Mean over all queries of the weight on chosen keys; chosen [key] bool."""
    return places.onto(chosen, start=0).read(pattern)


def delimiter_ratio(pattern: ArrayLike, chosen: ArrayLike) -> Numbers:
    """The same, over what uniform attention gives to what each query sees (causal)."""
    even = places.uniform(places.causal(np.asarray(pattern).shape[-1]))
    base = delimiter(even, chosen)
    return np.divide(
        delimiter(pattern, chosen),
        base,
        out=np.full(np.shape(pattern)[:-2], np.nan),
        where=base > 0,
    )


def delimiter_frequency_ratio(pattern: ArrayLike, chosen: ArrayLike) -> Numbers:
    """The original study's ratio: over the share of delimiters among the tokens."""
    share = np.asarray(chosen, dtype=bool).mean()
    raw = delimiter(pattern, chosen)
    return raw / share if share else np.full_like(raw, np.nan)
