"""Whether a head's OV circuit makes a token more likely that it attends to: copying.

The OV circuit of a head maps the embedding of token t to logits: W_E[t] W_V W_O W_U. Its diagonal
entry is what attending to t does to the logit of t itself; beside it stand the entries of other
tokens t', which say what any token's logit would get. The size of the stream that norms divide by
is left out, so the unit is that of a logit but for a factor per position, the same for all ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mlxroles.circuits.ends import ends_of
from mlxroles.circuits.matrices import Heads, readable
from mlxroles.models.model import Model
from mlxroles.stats import bootstrap_mean_ci, percentile_interval

Numbers = NDArray[np.float64]

TOKENS = 256
"""Ids that are drawn by default."""


@dataclass(frozen=True, eq=False)
class Copying:
    """Mean of W_E[t] W_V W_O W_U[t] over random ids, per head [layer, head]; NaN where unknown."""

    score: Numbers
    """Mean of the diagonal entries."""
    low: Numbers
    """Lower bound of its 95 % bootstrap interval over ids."""
    high: Numbers
    null: Numbers
    """Mean of the entries (t, t') with another id t' that was drawn too."""
    null_low: Numbers
    """2.5 % quantile of the score when every id is paired with another: over all cyclic shifts."""
    null_high: Numbers
    spread: Numbers
    """Standard deviation of the entries (t, t')."""
    ids: NDArray[np.int64]
    """The ids that were drawn [n]."""
    notes: tuple[str, ...] = ()
    """Layers without scores and why, and what is left out."""

    @property
    def excess(self) -> Numbers:
        """Score less its null, in standard deviations of the entries (t, t')."""
        return (self.score - self.null) / self.spread

    @property
    def sign(self) -> NDArray[np.int64]:
        """As :func:`signs` tells."""
        return signs({name: getattr(self, name) for name in FIELDS})


def copying(
    model: Model,
    *,
    fold_norms: bool = True,
    n: int = TOKENS,
    seed: int = 0,
    layers: Sequence[int] | None = None,
) -> Copying:
    """Copying scores of all heads, from weights alone.

    Args:
        model: Any model.
        fold_norms: Whether gains of norms are in the matrices.
        n: Ids that are drawn without replacement from the vocabulary; all of them if it is small.
        seed: Of the draw and the bootstrap.
        layers: Layers that are read; None for all. Others are NaN.

    Raises:
        ModelError: no layer has heads that can be read, or the model has no plain embedding or
            head.
    """
    ids = drawn_ids(model, n=n, seed=seed)
    found = {name: _empty(model) for name in FIELDS}
    notes = list(ends_of(model).notes)
    for heads in readable(model, fold_norms=fold_norms, notes=notes, layers=layers):
        rng = np.random.default_rng([seed, 1])
        layer = copied(model, heads, ids, rng, fold_norms=fold_norms)
        for name in FIELDS:
            found[name][heads.layer, : heads.q.shape[0]] = layer[name]
    return Copying(**found, ids=ids, notes=tuple(notes))


def drawn_ids(model: Model, *, n: int, seed: int) -> NDArray[np.int64]:
    """Ids of the vocabulary, drawn without replacement, ascending."""
    rng = np.random.default_rng([seed, 0])
    return np.sort(rng.permutation(model.n_ids)[: max(2, n)])


def copied(
    model: Model,
    heads: Heads,
    ids: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    fold_norms: bool,
) -> dict[str, Numbers]:
    """The fields of :class:`Copying` for one layer [head].

    Also ``copied``, the diagonal entries [head, id], and ``others``, the mean entry of each id
    with the other ones [head, id].
    """
    ends = ends_of(model)
    e, u = ends.embedding(ids), ends.unembedding(ids, fold_norms=fold_norms)
    made = heads.shared(e @ heads.v) @ (heads.o @ u.T)
    entries = np.array(made, dtype=np.float64)
    diagonal = np.diagonal(entries, axis1=1, axis2=2)
    n, off = len(ids), ~np.eye(len(ids), dtype=bool)
    low, high = bootstrap_mean_ci(diagonal.T, rng, n_resamples=2000)
    null_low, null_high = percentile_interval(_shifted(entries))
    return {
        "score": diagonal.mean(axis=1),
        "low": low,
        "high": high,
        "null": entries[:, off].mean(axis=1),
        "null_low": null_low,
        "null_high": null_high,
        "spread": entries[:, off].std(axis=1, ddof=1),
        "copied": diagonal,
        "others": (entries.sum(axis=2) - diagonal) / (n - 1),
    }


FIELDS = ("score", "low", "high", "null", "null_low", "null_high", "spread")
FALSE_SHARE = 0.05
"""Chance that any of the heads that are said to copy, or to do against it, does neither."""


def signs(tables: Mapping[str, Numbers]) -> NDArray[np.int64]:
    """1 where a head copies, -1 where it does against it, 0 where chance may have made the score.

    The errors of a score and of its null are those of which their 95 % intervals are so wide. The
    score has to lie so many of both from the null that by chance none of the heads would.

    Args:
        tables: The fields of :class:`Copying` by name [layer, head].
    """
    error = np.hypot(*(tables[f"{of}high"] - tables[f"{of}low"] for of in ("", "null_")))
    error = error / (2 * NormalDist().inv_cdf(0.975))
    gap = tables["score"] - tables["null"]
    known = int(np.isfinite(gap).sum())
    far = NormalDist().inv_cdf(1 - FALSE_SHARE / 2 / max(known, 1))
    return np.where(np.abs(gap) > far * error, np.sign(np.nan_to_num(gap)), 0).astype(np.int64)


def _shifted(entries: Numbers) -> Numbers:
    """Means of the entries (t, t + s) over t, for every cyclic shift s > 0 [shift, head]."""
    n = entries.shape[-1]
    at = np.arange(n)
    return np.stack([entries[:, at, (at + s) % n].mean(axis=1) for s in range(1, n)])


def _empty(model: Model) -> Numbers:
    """NaN for every head [layer, head]."""
    heads = max((block.heads for block in model.network.anatomy.blocks), default=0)
    return np.full((model.n_layers, heads), np.nan)
