"""Smaller batches while the system is short of memory, before it kills the process.

Rows of a batch are independent, so that how many run together changes no more than the last
digits of a number. What is short is the memory of the machine, hence one state for the process.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mlxroles.backend import memory, mx
from mlxroles.machine.memory import Level, Pressure
from mlxroles.ranks import Ranks
from mlxroles.text import format_bytes

CACHE_SHARE = 0.125
"""Share of the device's memory that MLX may hold on to without using it."""

T = TypeVar("T")


class Relief:
    """Decides, batch by batch, in how many parts the next one runs.

    Args:
        pressure: How short the system is.
    """

    def __init__(self, pressure: Pressure | None = None) -> None:
        self.pressure = Pressure() if pressure is None else pressure
        self.halvings = 0
        """How often batches are halved at present."""
        self.steady = False
        """Batches stay whole: several processes that hold one model must cut them alike."""
        self._say: Callable[[str], None] = lambda _: None
        self._looks = 0
        self._said = False

    def begin(self, say: Callable[[str], None]) -> None:
        """A run begins: ``say`` is told, once, when its batches become smaller."""
        self._say, self._said = say, False

    def most(self, rows: int) -> int:
        """How many rows of a batch of so many may run together now, at least one.

        Each look at the system that finds it in a critical state halves batches once more; each
        that finds it well again doubles them.
        """
        if self.steady:
            return max(1, rows)
        level = self.pressure.level()
        if self.pressure.looks != self._looks:
            self._looks = self.pressure.looks
            self._adapt(level, rows)
        return max(1, -(-rows >> self.halvings))

    def cut(self, rows: Sequence[T], ranks: Ranks | None = None) -> Iterator[Sequence[T]]:
        """The rows of a batch in the parts that run together, each cut when it is asked for.

        Args:
            rows: Of the batch, in their order.
            ranks: Processes that run them together; what the poorest can do is done by all.
        """
        begin = 0
        while begin < len(rows):
            most = self.most(len(rows))
            end = begin + (most if ranks is None else ranks.least(most))
            yield rows[begin:end]
            begin = end

    def _adapt(self, level: Level, rows: int) -> None:
        if level == "critical":
            mx.clear_cache()
            self.halvings = min(self.halvings + 1, max(self.halvings, (rows - 1).bit_length()))
            self._note()
        elif level == "ok":
            self.halvings = max(0, self.halvings - 1)

    def _note(self) -> None:
        if self._said:
            return
        self._said = True
        seen = self.pressure.seen
        left = "" if seen is None else f" ({format_bytes(seen.free)} of {format_bytes(seen.total)})"
        self._say(
            f"the system has hardly any memory left{left}: batches are smaller until it has;"
            " close other programs"
        )


relief = Relief()
"""Of this process."""


def bound_cache() -> None:
    """Keeps MLX from holding on to more than a share of the device's memory that it let go of.

    By default it keeps whatever it ever had, one and a half times what the device recommends.
    """
    limit = memory().limit
    if limit:
        mx.set_cache_limit(int(CACHE_SHARE * limit))
