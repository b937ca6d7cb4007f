"""The parts of a logit, as plain numbers with their names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles import notebook

KINDS = {
    "embedding": "the stream that enters the first block, positions included",
    "head": "what one head writes through the output projection",
    "attention": "an attention output whose heads cannot be told apart",
    "mlp": "what an MLP (or a layer's experts) writes, its biases included",
    "bias": "biases of output projections, norms and the head",
    "other": "what a block changes in the stream beside these, or a whole block",
    "edit": "what an edit of the stream puts in",
    "rounding": "what the model's own roundings add, where they are not float32's",
}
"""Kind of part -> what it is."""


@dataclass(frozen=True, eq=False, repr=False)
class Parts:
    """What every part of a model writes to a logit, or to a difference of logits.

    The values of a position add up to ``total``: the logit before a soft-cap where there is one,
    which is then not ``logit``, the model's own. Several ids stand for the mean of their logits.
    """

    names: tuple[str, ...]
    """``L3H5``, ``L3 MLP``, ...; in the order in which they are written."""
    kinds: tuple[str, ...]
    """Of ``KINDS``."""
    layers: tuple[int | None, ...]
    heads: tuple[int | None, ...]
    values: NDArray[np.float64]
    """[part] for one position, [part, position] for several; in the logit's unit."""
    positions: tuple[int, ...]
    logit: NDArray[np.float64]
    """The model's own logit (difference): a number, or [position]."""
    total: NDArray[np.float64]
    """Sum of all values: a number, or [position]."""
    cap: float | None
    """Soft-cap of the model's logits: logit = cap * tanh(before / cap) of each id."""
    ids_plus: tuple[int, ...]
    ids_minus: tuple[int, ...]
    notes: tuple[str, ...] = ()
    """What could not be told apart, and why."""

    @property
    def sentence(self) -> str:
        """What is attributed, in one sentence."""
        what = "logit difference" if self.ids_minus else "logit"
        if self.cap is None:
            return f"The parts add up to the model's {what}, the final norm's scale held."
        return (
            f"The parts add up to the {what} before the soft-cap of {self.cap:g}, "
            "the final norm's scale held."
        )

    def of(self, name: str) -> NDArray[np.float64]:
        """Value of one part: a number, or [position].

        Raises:
            KeyError: there is no such part.
        """
        if name not in self.names:
            raise KeyError(f"there is no part {name!r}; there are {', '.join(self.names[:6])}, ...")
        return self.values[self.names.index(name)]

    def kind(self, kind: str) -> NDArray[np.float64]:
        """Sum of all parts of a kind: a number, or [position]."""
        return self.values[[k == kind for k in self.kinds]].sum(axis=0)

    def head_grid(self) -> NDArray[np.float64]:
        """[layer, head] of one position or the mean of several; NaN where there is no head."""
        rows = 1 + max((i for i in self.layers if i is not None), default=-1)
        columns = 1 + max((h for h in self.heads if h is not None), default=-1)
        grid = np.full((rows, columns), np.nan)
        for value, layer, head in zip(self._means(), self.layers, self.heads, strict=True):
            if head is not None:
                grid[layer, head] = value
        return grid

    def largest(self, count: int = 10) -> list[tuple[str, float]]:
        """(name, value) of the parts of largest absolute value, the mean of several positions."""
        means = self._means()
        order = np.argsort(-np.abs(means), kind="stable")[:count]
        return [(self.names[i], float(means[i])) for i in order]

    def document(self, decode: Callable[[int], str] | None = None) -> dict[str, Any]:
        """All of it as JSON holds it: what tables, figures and pages are made of.

        Args:
            decode: Text of a token id; without it the ids stand for themselves.
        """
        text = decode or (lambda i: f"id {i}")
        return {
            "names": [*self.names],
            "kinds": [*self.kinds],
            "layers": [*self.layers],
            "heads": [*self.heads],
            "values": self.values.tolist(),
            "positions": [*self.positions],
            "logit": self.logit.tolist(),
            "total": self.total.tolist(),
            "cap": self.cap,
            "ids_plus": [*self.ids_plus],
            "ids_minus": [*self.ids_minus],
            "plus": [text(i) for i in self.ids_plus],
            "minus": [text(i) for i in self.ids_minus],
            "sentence": self.sentence,
            "notes": [*self.notes],
        }

    def _means(self) -> NDArray[np.float64]:
        return self.values if self.values.ndim == 1 else self.values.mean(axis=1)

    def _about(self) -> str:
        at = (
            f"position {self.positions[0]}"
            if len(self.positions) == 1
            else (f"the mean of {len(self.positions)} positions")
        )
        total, logit = float(np.mean(self.total)), float(np.mean(self.logit))
        return f"{len(self.names)} parts at {at}, sum {total:+.3f}, model's own {logit:+.3f}"

    def __repr__(self) -> str:
        rows = [f"  {name:<20} {value:+.4f}" for name, value in self.largest()]
        return "\n".join([f"Parts: {self._about()}", *rows])

    def _repr_html_(self) -> str:
        rows = [(name, f"{value:+.4f}") for name, value in self.largest()]
        return notebook.table(self._about(), ("part", "writes"), rows, self.sentence)
