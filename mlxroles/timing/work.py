"""What a study has to do, as numbers that add up: no rates, no seconds."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """What one call of a block takes, whatever the rows; read off a model's config."""

    n_layers: int
    d_model: int
    queries: int
    """heads * d_head"""
    heads: int
    weights: int
    """Of the matrices of a block that a token meets: its multiply-adds per token."""
    numbers: int
    """Numbers per token that a block makes on the way."""
    vocab: int
    itemsize: int = 4
    """Bytes per number of the stream."""


@dataclass(frozen=True)
class Work:
    """Amounts that a study adds up."""

    loads: float = 0.0
    """Bytes of weights that are read from disk."""
    blocks: float = 0.0
    """Calls of a block, whatever the number of rows: what reads its weights once."""
    tokens: float = 0.0
    """Positions of rows that pass a block, summed over blocks."""
    pairs: float = 0.0
    """Pairs of a query and a key that it sees, summed over rows and blocks."""
    unembeds: float = 0.0
    """Calls of the model's head."""
    reads: float = 0.0
    """Positions of rows that the head makes logits of."""
    measures: float = 0.0
    """Positions whose logits are summed up in numbers."""
    cells: float = 0.0
    """Lines of the journal."""
    written: float = 0.0
    """Bytes of arrays that are stored."""

    def __add__(self, other: "Work") -> "Work":
        """Both one after the other."""
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    def __mul__(self, times: float) -> "Work":
        """The same several times."""
        return Work(*(times * getattr(self, f.name) for f in fields(Work)))

    def document(self) -> dict[str, Any]:
        """The amounts as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(Work)}


NOTHING = Work()


def seen(start: int, length: int) -> float:
    """Pairs of a query from ``start`` on and a key that it sees, in one row of a causal model."""
    own = length - start
    return own * (start + length + 1) / 2


def passes(sizes: Sizes, *, rows: int, length: int, times: float = 1.0) -> Work:
    """Whole runs of rows of one length through all blocks, the head left out."""
    n = sizes.n_layers * times
    return Work(blocks=n, tokens=n * rows * length, pairs=n * rows * seen(0, length))
