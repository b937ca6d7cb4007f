"""What the runner and a study say to each other: plain data, so that neither knows the other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mlxroles.events import Cell

if TYPE_CHECKING:
    import numpy as np


class BatchLike(Protocol):
    """Cells that are computed together.

    A batch may have two further attributes: ``rows``, all cells that run in it with those that
    are stored already, and ``level``, 0 for what shows the shape of the result, more for detail.
    """

    @property
    def cells(self) -> Sequence[Cell]:
        """The cells, in the order in which their results come."""
        ...

    @property
    def group(self) -> int:
        """Batches of one group share prepared states and stand together."""
        ...


class Result(NamedTuple):
    """A computed cell."""

    cell: Cell
    values: Mapping[str, Any]
    """Its numbers, for the journal."""
    arrays: "Mapping[str, np.ndarray] | None" = None
    tokens: int = 0
    """Tokens run through a model for it."""


class Study(Protocol):
    """The computing half of a study.

    A study may have a method ``alone`` that makes a batch of one cell which runs without its
    neighbours, for cells in whose midst a process has died.
    """

    def batches(self, pending: Sequence[Cell]) -> Sequence[Any]:
        """Pending cells in computing order; also asked for a single cell that failed."""
        ...

    def prepare(self, batches: Sequence[Any]) -> Iterator[None]:
        """Computes what the batches of one group share; yields where a signal may end the run."""
        ...

    def compute(self, batch: Any) -> Iterable[Result]:
        """The cells of a batch, one after the other.

        Raises:
            FloatingPointError: the numbers of a cell are not finite; only that cell fails.
        """
        ...
