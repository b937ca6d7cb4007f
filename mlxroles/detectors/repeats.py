"""Scores of attention heads on repeated random tokens: previous-token heads and induction heads.

On a sequence [x, x] of 2 L random tokens nothing but the repetition can be foreseen. The scores
are those of mechanistic work (Olsson et al. 2022): the weight that a head gives, on average, to
the token before, and to the token that followed the present one when it came before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxroles import notebook
from mlxroles.backend import mx
from mlxroles.heads import head_name
from mlxroles.models.model import Model

Numbers = NDArray[np.float64]

MARKED = 0.3
"""A head whose score is above this is called a previous-token or an induction head."""

SEQUENCES, LENGTH = 16, 32
"""Random sequences by default, and tokens of each before it repeats."""

_SHOWN = 8
"""Heads that a notebook shows of each score."""
_AT_ONCE = 1 << 25
"""Weights of one layer that are made at once."""


def repeated(
    vocab: int, rng: np.random.Generator, *, n: int = SEQUENCES, length: int = LENGTH
) -> NDArray[np.int64]:
    """Random ids that repeat once [sequence, 2 length].

    Ids are drawn evenly, but for the first and last of the vocabulary (100 of them, or a tenth of
    a small vocabulary), where tokenizers keep their special tokens.
    """
    edge = min(100, vocab // 10)
    half = rng.integers(edge, max(vocab - edge, edge + 1), (n, length))
    return np.concatenate([half, half], axis=1)


def previous_token(pattern: ArrayLike) -> Numbers:
    """Mean over queries q >= 1 of p[q, q - 1]; pattern [..., query, key], result [...].

    0 where there is no second token.
    """
    weights = np.asarray(pattern)
    below = np.diagonal(weights, offset=-1, axis1=-2, axis2=-1).astype(np.float64)
    return below.mean(axis=-1) if below.shape[-1] else np.zeros(below.shape[:-1])


def induction(pattern: ArrayLike, length: int) -> Numbers:
    """Mean over k = 0..L-2 of p[L + k, k + 1]; pattern [..., query, key] of a sequence [x, x].

    Args:
        pattern: Of 2 L queries and keys.
        length: L.

    Raises:
        ValueError: the pattern has another number of keys, or L < 2.
    """
    weights = np.asarray(pattern)
    if weights.shape[-1] != 2 * length or length < 2:
        raise ValueError(f"a pattern over {weights.shape[-1]} keys is none of 2 x {length} tokens")
    after = np.diagonal(weights, offset=1 - length, axis1=-2, axis2=-1)
    return after[..., 1:length].astype(np.float64).mean(axis=-1)


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """Scores of every head, NaN for layers without an attention pattern.

    Layers with fewer heads than others have NaN in the places that they lack.
    """

    previous: Numbers
    """[sequence, layer, head]"""
    induction: Numbers
    """[sequence, layer, head]"""

    def ranked(self, name: str) -> list[tuple[int, int]]:
        """Heads (layer, head) by their mean score, the largest first; ties by layer and head.

        Args:
            name: ``previous`` or ``induction``.
        """
        means = self.means(name)
        order = np.argsort(-np.nan_to_num(means, nan=-np.inf), axis=None, kind="stable")
        rows = [divmod(int(n), means.shape[1]) for n in order]
        return [(layer, head) for layer, head in rows if np.isfinite(means[layer, head])]

    def marked(self, name: str) -> list[tuple[int, int]]:
        """Those of ``ranked`` whose score is above ``MARKED``."""
        means = self.means(name)
        return [at for at in self.ranked(name) if means[at] > MARKED]

    def means(self, name: str) -> Numbers:
        """Means over the sequences [layer, head]."""
        return getattr(self, name).mean(axis=0)

    def __repr__(self) -> str:
        """The heads of the highest scores, a line for each kind."""
        sequences, layers, heads = self.previous.shape
        return "\n".join(
            [
                f"HeadScores: {sequences} sequences, {layers} layers of {heads} heads",
                *(f"  {name:<10} {self._best(name)}" for name in ("previous", "induction")),
            ]
        )

    def _repr_html_(self) -> str:
        rows = [(name, self._best(name)) for name in ("previous", "induction")]
        return notebook.table("Heads of the highest scores", ("score", "heads"), rows)

    def _best(self, name: str) -> str:
        means = self.means(name)
        return ", ".join(f"{head_name(*at)} {means[at]:.2f}" for at in self.ranked(name)[:_SHOWN])


def head_scores(model: Model, tokens: Sequence[Sequence[int]] | np.ndarray) -> HeadScores:
    """Both scores of every head of a model.

    Args:
        model: Any model; layers whose attention cannot be seen have no scores.
        tokens: From ``repeated``.

    Raises:
        PromptError: ids that the model does not have, or too many of them.
    """
    rows = np.asarray(tokens)
    n, length = rows.shape[0], rows.shape[1] // 2
    blocks = model.network.anatomy.blocks
    layers = [i for i, b in enumerate(blocks) if b.heads and "pattern" not in b.missing]
    heads = max((blocks[i].heads for i in layers), default=0)
    found = np.full((2, n, model.n_layers, heads), np.nan)
    at_once = max(1, _AT_ONCE // max(1, heads * len(layers) * (2 * length) ** 2))
    for start in range(0, n if layers else 0, at_once):
        part = rows[start : start + at_once]
        run = model.run(part, keep=["pattern"], layers=layers, logits=False)
        for i in layers:
            pattern = np.array(run["pattern", i].astype(mx.float32))
            where = slice(start, start + len(part)), i, slice(0, pattern.shape[1])
            found[0][where] = previous_token(pattern)
            found[1][where] = induction(pattern, length)
    return HeadScores(found[0], found[1])
