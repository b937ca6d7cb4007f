"""What a harvest keeps of one map while text passes by: sums, counts and examples.

Each ``Sums`` takes the batches of the text in order and can be stored and taken up again between
any two of them. The plain twin of all of it, which sees the whole text at once, is in the tests.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlxroles.components.harvest_file import EXAMPLES

WINDOW = 20
"""Positions on either side of an example."""
WIDTH = 2 * WINDOW + 1
EXAMPLE_BYTES = 2 * (2 * 4 * WIDTH + 16)
"""Of one example of each kind."""
_TOTALS = (
    "firing",
    "importance",
    "activation",
    "abs_activation",
    "row_squares",
    "row_products",
)

Array = np.ndarray[Any, Any]
State = dict[str, Array]


class Span(NamedTuple):
    """Where the positions of one batch lie [position]; rows are whole and one after the other."""

    row: Array
    position: Array
    length: Array
    """Positions of the row."""
    priority: Array
    """A random number of its own for each position of the text: examples are the lowest."""
    column: Array
    """Column of the token among those that have a PMI; -1 for the others."""

    @property
    def starts(self) -> Array:
        """First position of each row."""
        return np.flatnonzero(self.position == 0)


class Sums:
    """Sums of one map of C components over the text so far."""

    def __init__(self, n_components: int, n_examples: int, n_columns: int) -> None:
        c, e = n_components, n_examples
        self.state: State = {
            name: np.zeros(c, dtype=np.int64 if name == "firing" else np.float64)
            for name in _TOTALS
        }
        self.state["inputs"] = np.zeros((n_columns, c), dtype=np.int64)
        self.state["outputs"] = np.zeros((c, n_columns), dtype=np.float64)
        for kind in EXAMPLES:
            self.state |= {
                f"{kind}/score": np.full((c, e), np.inf),
                f"{kind}/row": np.full((c, e), -1, dtype=np.int32),
                f"{kind}/position": np.full((c, e), -1, dtype=np.int32),
                f"{kind}/importance": np.full((c, e, WIDTH), np.nan, dtype=np.float32),
                f"{kind}/activation": np.full((c, e, WIDTH), np.nan, dtype=np.float32),
            }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Takes up what another one's ``state`` was."""
        for name, array in self.state.items():
            array[...] = state[name]

    def add(self, g: Array, activation: Array, fires: Array, mass: Array, span: Span) -> None:
        """Adds the positions of one batch.

        Args:
            g: Importance [position, C].
            activation: a |U| [position, C].
            fires: Whether each component fires there [position, C].
            mass: Probability that the model gives to each column's token while a component fires,
                summed over the positions [C, column].
            span: Where the positions lie.
        """
        state, starts = self.state, span.starts
        size = np.abs(activation)
        state["firing"] += fires.sum(axis=0)
        state["importance"] += g.sum(axis=0, dtype=np.float64)
        state["activation"] += activation.sum(axis=0, dtype=np.float64)
        state["abs_activation"] += np.where(fires, size, 0).sum(axis=0, dtype=np.float64)
        rows = np.add.reduceat(g, starts, axis=0, dtype=np.float64)
        state["row_squares"] += (rows**2).sum(axis=0)
        state["row_products"] += (rows * span.length[starts, None]).sum(axis=0)
        self._add_inputs(fires, span.column)
        state["outputs"] += mass
        numbers = g, activation
        self._offer(
            "random", np.broadcast_to(span.priority[:, None], g.shape), fires, numbers, span
        )
        self._offer("strongest", -size.astype(np.float64), fires, numbers, span)

    def _add_inputs(self, fires: Array, column: Array) -> None:
        """Counts firings by the token of the position, tokens sorted so that each is one sum."""
        order = np.argsort(column, kind="stable")
        order = order[column[order] >= 0]
        if not len(order):
            return
        columns, first = np.unique(column[order], return_index=True)
        self.state["inputs"][columns] += np.add.reduceat(
            fires[order], first, axis=0, dtype=np.int64
        )

    def _offer(
        self, kind: str, score: Array, fires: Array, numbers: tuple[Array, Array], span: Span
    ) -> None:
        """Keeps the lowest scores [position, C] among the examples so far and this batch's.

        Of equal scores the earlier position stays.
        """
        of = {name: self.state[f"{kind}/{name}"] for name in ("score", "row", "position")}
        n_examples = of["score"].shape[1]
        at, component = np.nonzero(fires & (score < of["score"].max(axis=1)))
        if not len(at):
            return
        held, place = np.nonzero(np.isfinite(of["score"]))
        whose = np.concatenate([held, component])
        scores = np.concatenate([of["score"][held, place], score[at, component]])
        order = np.lexsort((scores, whose))
        ranked = whose[order]
        rank = np.arange(len(order)) - np.searchsorted(ranked, ranked)
        order, to = order[rank < n_examples], rank[rank < n_examples]
        old = order < len(held)
        from_old = held[order[old]], place[order[old]]
        new = order[~old] - len(held)
        at, component = at[new], component[new]
        to_old, to_new = (whose[order[old]], to[old]), (component, to[~old])
        self._move(f"{kind}/score", from_old, to_old, to_new, score[at, component])
        self._move(f"{kind}/row", from_old, to_old, to_new, span.row[at])
        self._move(f"{kind}/position", from_old, to_old, to_new, span.position[at])
        for name, array in zip(("importance", "activation"), numbers, strict=True):
            shown = _windows(array, at, component, span)
            self._move(f"{kind}/{name}", from_old, to_old, to_new, shown)

    def _move(self, name: str, from_old: Any, to_old: Any, to_new: Any, new: Array) -> None:
        """Puts what stays and what is new in their places."""
        array = self.state[name]
        array[to_old] = array[from_old]
        array[to_new] = new


def _windows(array: Array, at: Array, component: Array, span: Span) -> Array:
    """Columns of [position, C] around positions of a batch [n, 41], NaN outside of the row."""
    offsets = np.arange(-WINDOW, WINDOW + 1)
    place = span.position[at][:, None] + offsets
    inside = (place >= 0) & (place < span.length[at][:, None])
    index = np.where(inside, at[:, None] + offsets, 0)
    return np.where(inside, array[index, component[:, None]], np.float32(np.nan))
