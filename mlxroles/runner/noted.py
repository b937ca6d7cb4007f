"""Reasons to end a run early, noted where they arise and honoured between two batches."""

import queue
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from mlxroles.events import DEADLINE
from mlxroles.machine.clock import Deadline

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""What ends a run early, its running batch stored."""


class Noted:
    """The first signal, or a deadline that has passed; a second signal interrupts at once."""

    def __init__(self, until: float | None = None) -> None:
        """Notes signals; ``until`` is the deadline in seconds since the epoch."""
        self.interrupts = True
        """Whether a second signal interrupts whatever is going on."""
        self.arrived: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Names of signals as they come: what may be filled from a signal handler."""
        self._deadline = Deadline(until)
        self._signal: str | None = None

    @property
    def name(self) -> str | None:
        """Why the run is to end: the name of a signal, ``deadline``, or None."""
        return self._signal or (DEADLINE if self._deadline.is_over else None)

    def note(self, name: str) -> None:
        """Asks the run to end as a signal of that name does."""
        self._signal = self._signal or name

    def handle(self, number: int, _frame: object) -> None:
        """Takes a signal."""
        if self._signal is None:
            self._signal = signal.Signals(number).name
            self.arrived.put(self._signal)
        elif self.interrupts:
            raise KeyboardInterrupt


def is_ignored(name: str) -> bool:
    """Whether whoever started this process has had the terminal's end ignored, as nohup does."""
    return name == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@contextmanager
def noted_signals(noted: Noted) -> Generator[None]:
    """SIGINT, SIGTERM and SIGHUP are noted while the block runs; a second one interrupts it."""
    before: dict[int, Any] = {}
    try:
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and not is_ignored(name):
                before[number] = signal.signal(number, noted.handle)
    except ValueError:  # not the main thread: signals stay with whoever owns it
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
