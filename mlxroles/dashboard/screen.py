"""The renderable of a run under way, drawn anew for the console at every refresh.

A live view draws from a thread of its own, and a signal handler may tell of an event while the
main thread draws or takes one in. Nothing here waits for a lock therefore: events queue up and
are taken in by whoever holds the state, and a drawing that comes second shows the former one.
"""

import threading
from collections import deque

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from mlxroles.dashboard import run_view
from mlxroles.dashboard.colors import depth
from mlxroles.dashboard.facts import Memory, MemorySource
from mlxroles.dashboard.layout import Look
from mlxroles.dashboard.painting import FINAL_ROWS, LEAST_WIDTH
from mlxroles.dashboard.progress import Progress
from mlxroles.dashboard.state import RunState
from mlxroles.events import Event

LIVE_ROWS = 60
"""Rows that a run under way takes at most."""

MOST_WIDTH = 200


class Screen:
    """A rich renderable of the run, drawn anew for the console at hand."""

    def __init__(self, shown: Progress | RunState, memory: MemorySource | None = None) -> None:
        """Shows this state; ``memory`` yields active, peak and limit in bytes."""
        self.state = shown if isinstance(shown, RunState) else RunState(shown)
        self.memory = memory
        self.has_log = False
        """Whether the log is part of the screen; a live view prints it above."""
        self._lock = threading.Lock()
        self._incoming: deque[Event] = deque()
        self._drawn: list[Text] = []

    def fold(self, event: Event) -> None:
        """Takes in one event, now or as soon as the state is free."""
        self._incoming.append(event)
        self._take_in()

    def _take_in(self) -> None:
        while self._incoming and self._lock.acquire(blocking=False):
            try:
                while self._incoming:
                    self.state.fold(self._incoming.popleft())
            finally:
                self._lock.release()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the lines for the console's present size."""
        self._take_in()
        memory = None if self.memory is None else Memory(*self.memory())
        if self._lock.acquire(blocking=False):
            try:
                height = FINAL_ROWS
                if not self.state.is_over:
                    height = min(max(console.size.height - 1, 1), LIVE_ROWS)
                width = min(max(options.max_width, LEAST_WIDTH), MOST_WIDTH)
                look = Look(width, height, depth(console))
                self._drawn = run_view.lines(self.state, look, memory, has_log=self.has_log)
            finally:
                self._lock.release()
            self._take_in()
        yield Group(*self._drawn)
