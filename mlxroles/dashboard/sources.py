"""Runs and sweeps of other processes as a display sees them: read from their files, never written.

The files may lie on a disk that another machine writes. What is not there yet or torn is passed
over and read again at the next look.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mlxroles.dashboard.state import RunState, empty_progress
from mlxroles.errors import StoreError
from mlxroles.events import RunStarted
from mlxroles.store.folder import LOCK
from mlxroles.store.follow import Follow, is_held
from mlxroles.store.sweep_state import QueueState, read_state

Condition = Literal["running", "ended", "stopped"]

GRACE = 15.0
"""Seconds in which a process that is gone may be followed by another one."""


class RunSource:
    """A run, looked at again and again.

    Raises:
        StoreError: this is no run folder.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Looks at the run in ``path`` for the first time."""
        self.path = path
        self.clock = clock
        self.follow = Follow(path)
        self.state = RunState(empty_progress(clock), folder=str(path))
        self._seen_alive: float | None = None
        self._has_looked = False
        self.poll()

    def poll(self) -> Condition:
        """Looks again: whether the run goes on, is over, or was left by its process."""
        is_alive = self.follow.is_alive()  # before reading: what it says last must not be missed
        events = [
            replace(event, view=event.view or self.follow.view)
            if isinstance(event, RunStarted)
            else event
            for event in self.follow.poll()
        ]
        if self._has_looked:
            for event in events:
                self.state.fold(event)
        else:
            self._has_looked = True
            self.state.catch_up(events)
            self._date_back(is_alive=is_alive)
        if is_alive:
            self._seen_alive = self.clock()
            return "running"
        progress = self.state.progress
        finished = progress.finished
        if finished is not None and finished.interrupted is None:
            return "ended"
        if finished is None and self._may_come_back():
            return "running"
        return "ended" if progress.done >= progress.total > 0 else "stopped"

    def _may_come_back(self) -> bool:
        return self._seen_alive is not None and self.clock() - self._seen_alive < GRACE

    def _date_back(self, *, is_alive: bool) -> None:
        """Sets the start of the run to when its process began, where that is known."""
        try:
            start = datetime.fromisoformat(str(self.follow.owner.get("start")))
        except ValueError:
            return
        if is_alive and start.tzinfo is not None:
            ago = (datetime.now(UTC) - start).total_seconds()
            self.state.progress.started_at = self.clock() - max(ago, 0.0)


class SweepSource:
    """A sweep and the run of its experiment of the moment, looked at again and again.

    Raises:
        StoreError: this is no sweep, or one that has not begun.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Looks at the sweep in ``path`` for the first time."""
        self.path = path
        self.clock = clock
        self.queue: QueueState = read_state(path)
        self._run: RunSource | None = None
        self._seen_alive: float | None = None
        self.poll()

    @property
    def run(self) -> RunState | None:
        """The state of the run of the moment, if one has begun."""
        return None if self._run is None else self._run.state

    def poll(self) -> Condition:
        """Looks again: whether the sweep goes on, is over, or was left by its process."""
        is_alive = is_held(self.path / LOCK)
        with suppress(StoreError):  # its disk may be away for a moment
            self.queue = read_state(self.path)
        self._look_at_run()
        if is_alive:
            self._seen_alive = self.clock()
            return "running"
        if self.queue.finished is not None:
            return "ended" if self.queue.interrupted in (None, "deadline") else "stopped"
        is_fresh = self._seen_alive is not None and self.clock() - self._seen_alive < GRACE
        return "running" if is_fresh else "stopped"

    def _look_at_run(self) -> None:
        queue = self.queue
        at = queue.current
        entry = None if at is None or not 0 <= at < len(queue.entries) else queue.entries[at]
        if entry is None or entry.run is None or entry.status != "running":
            self._run = None
            return
        path = Path(entry.run)
        # on another machine the folder may bear another name: it lies beside that of the sweep
        if not path.is_dir():
            path = self.path.parent.parent / path.parent.name / path.name
        if self._run is None or self._run.path != path:
            try:
                self._run = RunSource(path, self.clock)
            except StoreError:
                self._run = None
            return
        self._run.poll()
