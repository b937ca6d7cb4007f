"""Text for training components: windows of it by number, some rows held out for measuring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxroles.backend import mx
from mlxroles.errors import PromptError

HELD_OUT = 0.2
"""Share of the rows that are never trained on."""


FEW = 16
"""Rows below which long rows are cut into shorter ones."""


def cut(rows: Sequence[Sequence[int]], front: int, length: int) -> list[list[int]]:
    """The rows; where they are few, pieces of them of ``length``, each behind the row's front."""
    if len(rows) >= FEW or length <= front:
        return [list(row) for row in rows]
    step = length - front
    found = [
        [*row[:front], *row[start : start + step]]
        for row in rows
        for start in range(front, max(front + 1, len(row) - step + 1), step)
    ]
    return [row for row in found if len(row) > front]


@dataclass(frozen=True)
class Windows:
    """Windows of rows of text; every window begins as its row does (with a BOS, where one is).

    Raises:
        PromptError: too few rows to hold some out.
    """

    rows: Sequence[Sequence[int]]
    """Ids; of different lengths at will."""
    front: int
    """Ids at a row's beginning that every window of it has."""
    length: int
    """Most positions of a window."""
    batch: int
    """Windows that run together."""
    seed: int

    def __post_init__(self) -> None:
        if len(self.rows) < 4:
            raise PromptError(
                f"the text makes {len(self.rows)} rows; training needs 4, so give a longer text"
            )

    @property
    def width(self) -> int:
        """Positions of every window: no row is shorter."""
        return min(self.length, min(len(row) for row in self.rows))

    @property
    def n_held_out(self) -> int:
        """Rows that are held out."""
        return max(2, round(HELD_OUT * len(self.rows)))

    def training(self, step: int) -> mx.array:
        """The batch of a training step: windows drawn at random [row, position]."""
        rng = np.random.default_rng([self.seed, 2, step])
        return self._drawn(range(len(self.rows) - self.n_held_out), rng, replace=True)

    def held_out(self, n: int) -> mx.array:
        """The n-th batch to measure on, of rows that the others do not have where they suffice."""
        first, count = len(self.rows) - self.n_held_out, self.n_held_out
        size = min(self.batch, count)
        chosen = [first + (n * size + i) % count for i in range(size)]
        rng = np.random.default_rng([self.seed, 3, n])
        return self._drawn(chosen, rng, replace=False)

    def n_batches(self, most: int) -> int:
        """How many batches of held-out rows there are without using a row twice."""
        return max(2, min(most, self.n_held_out // min(self.batch, self.n_held_out)))

    def _drawn(self, of: Sequence[int], rng: np.random.Generator, *, replace: bool) -> mx.array:
        chosen = rng.choice(np.array(of), self.batch) if replace else np.array(of)
        windows = []
        for i in chosen.tolist():
            row = list(self.rows[i])
            start = int(rng.integers(0, len(row) - self.width + 1)) + self.front
            windows.append(row[: self.front] + row[start : start + self.width - self.front])
        return mx.array(windows)
