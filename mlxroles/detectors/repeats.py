"""Scores of attention heads on repeated random tokens: previous-token heads and induction heads.

On a sequence [x, x] of 2 L random tokens nothing but the repetition can be foreseen. The scores
are those of mechanistic work (Olsson et al. 2022): the weight that a head gives, on average, to
the token before, and to the token that followed the present one when it came before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxroles import notebook
from mlxroles.detectors import places
from mlxroles.detectors.material import RowSet
from mlxroles.detectors.pieces import ordinary_ids
from mlxroles.detectors.places import Numbers
from mlxroles.detectors.reading import read
from mlxroles.heads import head_name
from mlxroles.models.model import Model
from mlxroles.prompts import Tokenizer

MARKED = 0.3
"""A head whose score is above this is called a previous-token or an induction head."""

SEQUENCES, LENGTH = 16, 32
"""Random sequences by default, and tokens of each before it repeats."""

_SHOWN = 8
"""Heads that a notebook shows of each score."""


def repeated(
    vocab: int,
    rng: np.random.Generator,
    *,
    n: int = SEQUENCES,
    length: int = LENGTH,
    tokenizer: Tokenizer | None = None,
) -> NDArray[np.int64]:
    """Random ids that repeat once [sequence, 2 length].

    Args:
        vocab: Number of ids.
        rng: What draws them, evenly.
        n: Sequences.
        length: Tokens before they repeat.
        tokenizer: If there is one, only ids of ordinary pieces of text are drawn; see
            ``pieces.ordinary_ids``. Without it all but the first and last of the vocabulary are,
            and where half of them were never learned (the bytes of a small vocabulary), heads
            that go by position score like weak induction heads.
    """
    half = rng.choice(ordinary_ids(tokenizer, vocab, rng), (n, length))
    return np.concatenate([half, half], axis=1)


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
    ids = tuple(tuple(map(int, row)) for row in tokens)
    length = len(ids[0]) // 2
    kinds = {"previous": places.previous(2 * length), "induction": places.repeat(length)}
    scores = {name: (given,) * len(ids) for name, given in kinds.items()}
    found = read(model, RowSet("repeated", "random ids, twice", ids, scores)).values
    return HeadScores(found["previous"], found["induction"])
