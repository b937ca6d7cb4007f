"""Notices that the machine was asleep, whatever anybody does to the time of day."""

import math
import sys
import time
from collections.abc import Callable

SHORTEST = 1.0
"""Seconds below which two clocks that are read one after the other have not slept."""


def _ids() -> tuple[int, int] | None:
    """The clock that goes on during sleep and the one that stands still, where there are both."""
    if sys.platform == "darwin":
        names = "CLOCK_MONOTONIC_RAW", "CLOCK_UPTIME_RAW"
    else:
        names = "CLOCK_BOOTTIME", "CLOCK_MONOTONIC"
    first, second = (getattr(time, name, None) for name in names)
    return None if first is None or second is None else (first, second)


def asleep() -> float:
    """Seconds that the machine has slept since it was started; 0 where nobody counts them."""
    ids = _ids()
    return 0.0 if ids is None else time.clock_gettime(ids[0]) - time.clock_gettime(ids[1])


def continuous() -> float:
    """Seconds from an arbitrary start, those asleep among them; nobody can set this clock."""
    return time.monotonic() + asleep()


class Deadline:
    """A time of day, which a clock that is set in the night must not move.

    Args:
        until: Seconds since the epoch; None for no end.
    """

    def __init__(self, until: float | None) -> None:
        self._end = None if until is None else continuous() + until - time.time()

    @property
    def left(self) -> float:
        """Seconds until then, less than 0 afterwards; endless without an end."""
        return math.inf if self._end is None else self._end - continuous()

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return self.left <= 0.0


class SleepWatch:
    """Tells how long the machine slept between two questions.

    Args:
        asleep: Seconds slept since the machine was started.
    """

    def __init__(self, asleep: Callable[[], float] = asleep) -> None:
        self._asleep, self._before = asleep, asleep()

    def slept(self) -> float:
        """Seconds asleep since the last call that found any; 0 for less than ``SHORTEST``."""
        now = self._asleep()
        seconds = now - self._before
        if seconds < SHORTEST:
            return 0.0
        self._before = now
        return seconds
