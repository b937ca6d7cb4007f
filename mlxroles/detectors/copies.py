"""Whether attending to a token makes that token likelier: W_E[t] W_V W_O W_U, id by id.

The entry (t, t') of a head's OV circuit is what attending to t does to the logit of t', but for
the sizes that norms divide by. The copy score of an id is how many standard deviations of its
entries (t, t') its own (t, t) lies above their mean, so that heads, layers and models compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlxroles.circuits import spectrum
from mlxroles.circuits.ends import Ends, ends_of
from mlxroles.circuits.matrices import Heads, readable
from mlxroles.detectors.places import Numbers
from mlxroles.models.model import Model
from mlxroles.stats import percentile_interval

TOKENS = 256
"""Most ids that are compared with each other."""
RANDOM = 100
"""Heads of random numbers beside the eigenvalues."""


@dataclass(frozen=True, eq=False)
class Copies:
    """Copy scores per id and head [id, layer, head]; NaN where the weights cannot be read."""

    z: Numbers
    """(own - other) / spread of the entries (t, t') over t'."""
    shifted: Numbers
    """The same for the entry (t, the next id of the draw): what any other token gets."""
    own: Numbers
    """The entries (t, t)."""
    other: Numbers
    """Mean of the entries (t, t') over t' other than t."""


class Copied(NamedTuple):
    """Copy scores of a model."""

    sets: list[Copies]
    """For each set of ids."""
    eigenvalues: dict[str, Numbers]
    """``eigenvalues``, ``random_low`` and ``random_high`` [1, layer, head], as in ``Scores.more``;
    nothing where the model has no table of embeddings."""
    notes: list[str]
    """What was left out."""


def copy_scores(
    model: Model, *drawn: Sequence[int], layers: Sequence[int] | None = None, seed: int = 0
) -> Copied:
    """Copy scores on sets of ids, gains of norms folded in, and of the whole vocabulary.

    Args:
        model: Any model.
        drawn: Sets of ids; of a large one 256 are drawn.
        layers: Layers to read; None for all.
        seed: Of the draw, and of the random heads.

    Raises:
        ModelError: no layer has matrices that can be read, or the model has no plain head.
    """
    rng, ends, notes = np.random.default_rng(seed), ends_of(model), list[str]()
    chosen = [rng.permutation(np.asarray(ids, dtype=np.int64))[:TOKENS] for ids in drawn]
    tables = [(ends.embedding(ids), ends.unembedding(ids)) for ids in chosen]
    heads = max((b.heads for b in model.network.anatomy.blocks), default=0)
    found = [np.full((4, len(ids), model.n_layers, heads), np.nan) for ids in chosen]
    shares = np.full((3, 1, model.n_layers, heads), np.nan)
    joined = _Joined(ends, rng) if ends.read is not None else None
    for own in readable(model, fold_norms=True, notes=notes, layers=layers):
        for into, (read, written) in zip(found, tables, strict=True):
            entries = own.shared(read @ own.v) @ (own.o @ written.T)
            scores = _per_id(np.array(entries, dtype=np.float64))
            into[:, :, own.layer, : scores.shape[-1]] = scores
        if joined is not None:
            shares[:, 0, own.layer, : own.q.shape[0]] = joined.shares(own)
    names = ("eigenvalues", "random_low", "random_high") if joined is not None else ()
    by_name = dict(zip(names, shares, strict=False))
    return Copied([Copies(*values) for values in found], by_name, [*ends.notes, *notes])


class _Joined:
    """What joins the two ends of every OV circuit, summed over the vocabulary."""

    def __init__(self, ends: Ends, rng: np.random.Generator) -> None:
        self.between, self.rng = spectrum.between(ends, fold_norms=True), rng
        self.random: dict[tuple[int, ...], Numbers] = {}

    def shares(self, heads: Heads) -> Numbers:
        """The share of positive eigenvalues and its bounds of random heads [3, head]."""
        shape = (*heads.v.shape[1:], heads.q.shape[0])
        if shape not in self.random:
            drawn = spectrum.random_shares(heads, self.between, self.rng, draws=RANDOM)["ov"]
            self.random[shape] = np.stack(percentile_interval(drawn[:, None]))
        own = spectrum.positive_share(spectrum.eigenvalues(heads, self.between)["ov"])
        return np.concatenate([own[None], np.repeat(self.random[shape], len(own), axis=1)])


def _per_id(entries: Numbers) -> Numbers:
    """z, shifted, own and other [4, id, head] of entries [head, id, id]."""
    n = entries.shape[-1]
    at = np.arange(n)
    own, following = entries[:, at, at], entries[:, at, (at + 1) % n]
    rest = np.where(np.eye(n, dtype=bool), np.nan, entries)
    if n < 3:  # one other id has no spread
        return np.full((4, n, len(entries)), np.nan)
    other, spread = np.nanmean(rest, axis=-1), np.nanstd(rest, axis=-1, ddof=1)
    spread = np.where(spread > 0, spread, np.nan)
    scores = [(own - other) / spread, (following - other) / spread, own, other]
    return np.stack(scores).swapaxes(1, 2)
