"""Text for training components: windows of it by number, some rows held out for measuring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxroles.backend import mx
from mlxroles.errors import PromptError

HELD_OUT = 0.2
"""Share of the rows that are never trained on."""
FEW = 16
"""Rows that training needs; where there are fewer, long ones are cut into shorter ones."""
LEAST, MOST = 4, 12
"""Rows that are held out at least, and batches of them that are measured at most."""


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
        if len(self.rows) < FEW:
            raise PromptError(
                f"the text makes {len(self.rows)} rows of {self.length} tokens; training needs "
                f"{FEW}: give a longer text or a shorter --length"
            )

    @property
    def width(self) -> int:
        """Positions of every window: no row is shorter."""
        return min(self.length, min(len(row) for row in self.rows))

    @property
    def n_held_out(self) -> int:
        """Rows that are held out."""
        return max(LEAST, round(HELD_OUT * len(self.rows)))

    def training(self, step: int) -> mx.array:
        """The batch of a training step: windows drawn at random [row, position]."""
        rng = np.random.default_rng([self.seed, 2, step])
        rows = rng.choice(len(self.rows) - self.n_held_out, self.batch)
        return self._windows(rows.tolist(), rng)

    def held_out(self) -> list[mx.array]:
        """Batches to measure on [row, position], one window of a held-out row each.

        No row is in two of them, so that an interval over batches is one over independent text.
        """
        rows = np.arange(len(self.rows) - self.n_held_out, len(self.rows))
        groups = np.array_split(rows, min(MOST, self.n_held_out))
        rng = np.random.default_rng([self.seed, 3])
        return [self._windows(group[: self.batch].tolist(), rng) for group in groups]

    def _windows(self, rows: Sequence[int], rng: np.random.Generator) -> mx.array:
        """A window of each of these rows, at a place drawn at random."""
        windows = []
        for i in rows:
            row = list(self.rows[i])
            start = int(rng.integers(0, len(row) - self.width + 1)) + self.front
            windows.append(row[: self.front] + row[start : start + self.width - self.front])
        return mx.array(windows)
