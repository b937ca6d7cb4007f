"""Cells in whose midst a process has died: tried again, then alone, then given up.

A process that ends without a word (an abort in the GPU's driver, the system short of memory, a
hang that a supervisor ended) leaves no error to record. Its supervisor writes into the history
which cells were being computed; the next process reads it there.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mlxroles.events import Cell, Died, RunFinished
from mlxroles.store.history import Line

TOGETHER = 2.0
"""Weight of deaths after which a batch is no more tried as a whole."""
FROM_OUTSIDE = "SIGKILL"
"""What also comes from outside, from a user or from a system that is short of memory."""
SHARE = 0.5
"""Weight of such a death; of any other it is 1."""


class Suspicion(NamedTuple):
    """What is held against a cell."""

    deaths: int
    weight: float
    was_alone: bool
    """Whether it was the only one at the last death."""
    cause: str

    @property
    def is_given_up(self) -> bool:
        """Whether there is no doubt that this cell is the cause."""
        return self.runs_alone and self.was_alone

    @property
    def runs_alone(self) -> bool:
        """Whether it must not take its neighbours along again."""
        return self.weight >= TOGETHER


def suspects(history: Sequence[Line]) -> dict[str, Suspicion]:
    """The cells that were being computed when a process died, by cell id.

    A run that came to its end clears all: asked for once more, it tries everything again.
    """
    found: dict[str, Suspicion] = {}
    for _, _, event in history:
        if isinstance(event, RunFinished):
            found.clear()
        elif isinstance(event, Died):
            for cell in event.cells:
                before = found.get(cell)
                times, weight = (before.deaths, before.weight) if before else (0, 0.0)
                weight += SHARE if event.cause.startswith(FROM_OUTSIDE) else 1.0
                is_alone = len(event.cells) == 1
                found[cell] = Suspicion(times + 1, weight, is_alone, event.cause)
    return found


def sorted_out(
    cells: Sequence[Cell], held: dict[str, Suspicion]
) -> tuple[list[Cell], list[Cell], list[Cell]]:
    """Pending cells that run as always, those that run alone, and those that are given up."""
    usual: list[Cell] = []
    alone: list[Cell] = []
    given_up: list[Cell] = []
    for cell in cells:
        suspicion = held.get(cell.id)
        if suspicion is None or not suspicion.runs_alone:
            usual.append(cell)
        else:
            (given_up if suspicion.is_given_up else alone).append(cell)
    return usual, alone, given_up
