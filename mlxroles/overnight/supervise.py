"""Leads a sweep: one experiment after the other, whatever happens to their processes."""

import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxroles.errors import FAILED_CELLS, SIGNAL_STATUS, LockedError, StoreError
from mlxroles.events import (
    DEADLINE,
    CellDone,
    CellFailed,
    Event,
    Note,
    RunFinished,
    RunStarted,
)
from mlxroles.machine import power
from mlxroles.machine.clock import Deadline, SleepWatch
from mlxroles.overnight.child import LEAST_HANG, Child
from mlxroles.overnight.queue import take_findings
from mlxroles.overnight.ranks import Ranks
from mlxroles.runner.noted import SIGNALS, is_ignored
from mlxroles.store.sweep_state import LAST_EVENTS, Entry, QueueState
from mlxroles.supervision import Supervision
from mlxroles.text import format_seconds, safe_text, slug

LOCKED = LockedError.exit_code
SIGNALLED = tuple(SIGNAL_STATUS.values())
DONE = (0, FAILED_CELLS)

MOST_IDLE = 3
"""Deaths in a row before anything is computed that end an experiment."""
MOST_DEATHS = 7
"""Deaths in a row without a cell between them that end it: a batch four times, three cells."""
COOLDOWN = 2.0
"""Seconds between a death and the next try."""
PATIENCE = 20.0
"""Seconds to wait for another process to leave a run before the next experiment begins."""
LOCK_PATIENCE = 3600.0
"""Seconds to wait for it when nothing else is left to do."""
LAST = 60.0
"""Seconds without progress after which a process hangs that was asked to end, at least."""
LATE = 300.0
"""Seconds after the deadline for storing the last batch and what is made of the cells."""
BEAT = 0.25
WRITE = 2.0
"""Seconds between two looks at a process, and two writings of the state."""

POWER = 60.0
"""Seconds between two looks at the battery."""

Show = Callable[[QueueState, Sequence[Event]], None]
"""Takes the state and what the current run has told since the last call; a few times a second."""


@dataclass
class Supervisor:
    """Leads one sweep to its end, its deadline, or a signal.

    Args:
        state: The queue, as ``queue.begin`` found it.
        show: Shows it.
        until: Seconds since the epoch after which nothing is begun.
        ranks: The machines that take part.
        hang: Seconds without progress after which a process hangs, at least.
    """

    state: QueueState
    show: Show
    ranks: Ranks
    until: float | None = None
    """Seconds since the epoch."""
    hang: float = LEAST_HANG
    cooldown: float = COOLDOWN
    child: Child | None = None
    signal: str | None = None
    _deadline: Deadline = field(init=False)
    _written: float = 0.0
    _fresh: list[Event] = field(default_factory=list)
    _sleep: SleepWatch = field(default_factory=SleepWatch)
    _warned: list[str] = field(default_factory=list)
    _next_power: float = 0.0

    def __post_init__(self) -> None:
        """Fixes the deadline, which a clock that is set later does not move."""
        self._deadline = Deadline(self.until)

    def lead(self) -> QueueState:
        """Runs what is not done yet; returns the final state, which is also on disk."""
        state = self.state
        self.tell(f"began {state.name}" if state.sessions == 1 else f"goes on with {state.name}")
        with self._signals():
            for coarse in self._passes():
                self._pass(coarse=coarse)
            waited = time.monotonic() + LOCK_PATIENCE
            while self._waiting() and not self._is_over() and time.monotonic() < waited:
                self._pause(PATIENCE)
                self._pass(coarse=False)
        for entry in self._waiting():
            if not self._is_over():
                self._give_up(entry, entry.error or "another process never left its run")
        for entry in state.entries:
            if entry.status in ("waiting", "running"):
                entry.status = "left" if self.signal is None else "stopped"
        state.current = None
        state.interrupted = self.signal
        if self.signal is None and any(e.status == "left" for e in state.entries):
            state.interrupted = DEADLINE
        state.finished = _now()
        self._beat(force=True)
        return state

    def _pass(self, *, coarse: bool) -> None:
        """Every experiment that waits, once."""
        for entry in self._waiting():
            if self._is_next(entry):
                self._experiment(entry, coarse=coarse)

    def _is_next(self, entry: Entry) -> bool:
        """Whether an experiment still waits: planning may have found it done, or impossible."""
        return entry.status == "waiting" and not self._is_over()

    def _waiting(self) -> list[Entry]:
        return [entry for entry in self.state.entries if entry.status == "waiting"]

    def _passes(self) -> tuple[bool, ...]:
        """With a deadline, first the shape of every result, unless there is time for all."""
        if self.until is None or self._deadline.left > self._expected() * 1.5:
            return (False,)
        return True, False

    def _expected(self) -> float:
        """Seconds that the rest should take; endless where that is not known."""
        left = [e for e in self.state.entries if e.status != "done"]
        found = [e.estimate_high or e.estimate for e in left]
        return sum(s for s in found if s) if all(found) else float("inf")

    def _is_over(self) -> bool:
        return self.signal is not None or self._deadline.is_over

    # --- one experiment -----------------------------------------------------------------------

    def _experiment(self, entry: Entry, *, coarse: bool) -> None:
        """Runs an experiment until its process ends well, or for the last time."""
        self.state.current = entry.number
        entry.status, entry.error = "running", None
        self.tell(f"{entry.name}: begins", "progress")
        deaths: list[str] = []
        waited = time.monotonic() + PATIENCE
        was_tried = False
        while True:
            try:
                code, progress = self._process(entry, coarse=coarse)
            except (OSError, StoreError) as error:
                code, progress = None, 0
                cause = f"no process could be started: {error}"
            if code is not None and self._settle(entry, code, coarse=coarse):
                return
            if code == LOCKED:
                if time.monotonic() > waited or self._is_over():
                    entry.status, entry.error = "waiting", self._said()
                    self.tell(f"{entry.name}: {entry.error}; it waits")
                    return
                self._pause(self.cooldown)
                continue
            if code is not None and code > 0 and code not in SIGNALLED:
                if progress == 0 or was_tried:
                    self._give_up(entry, self._said())
                    return
                was_tried = True  # what had gone well until then may have failed by chance
                continue
            if code is not None:
                cause = self._died(entry, code)
            deaths = [cause] if progress else [*deaths, cause]
            idle = self.child is None or not self.child.open_cells
            if len(deaths) >= (MOST_IDLE if idle else MOST_DEATHS):
                self._give_up(entry, f"its process ended {len(deaths)} times in a row ({cause})")
                return
            self._pause(self.cooldown)
            if self._is_over():
                entry.status = "stopped" if self.signal else "left"
                return

    def _process(self, entry: Entry, *, coarse: bool) -> tuple[int, int]:
        """Runs one process of an experiment; exit status and cells that it has stored."""
        log = Path(self.state.path) / "logs" / f"{entry.number:02d}-{slug(entry.name)[:60]}.log"
        wishes = Supervision(
            until=self.until,
            coarse=coarse,
            tell=str(log.with_suffix(".runs")),
            attended=True,
            size=self.ranks.size,
        )
        began, before = time.monotonic(), entry.seconds
        cells = self.ranks.cells
        self.child = None
        child = self.child = Child(entry.argv, log, wishes)
        if self.signal is not None:
            child.ask_to_end(self.signal)
        try:
            while child.process.poll() is None:
                self._take(entry, child.events())
                entry.seconds = before + time.monotonic() - began
                self.ranks.cells = cells + child.stored
                # one that was asked to end has less time for its last batch
                child.end_if_it_hangs(self.hang if self.signal is None else min(self.hang, LAST))
                if self._deadline.left < -LATE:
                    child.end()
                self._beat()
                time.sleep(BEAT)
            self._take(entry, child.events())
            self.ranks.cells = cells + child.stored
        finally:
            child.close()
        return child.process.returncode, child.progress

    def _take(self, entry: Entry, events: Sequence[Event]) -> None:
        """Takes what a run has told into the entry."""
        self._fresh += events
        child = self.child
        if child is not None and child.run is not None:
            entry.run = str(child.run)
        for event in events:
            match event:
                case RunStarted(_, _, cells):
                    entry.cells, entry.done, entry.failed, entry.restored = len(cells), 0, 0, 0
                    if event.estimate:
                        entry.estimate = event.estimate.get("likely")
                        entry.estimate_low = event.estimate.get("low")
                        entry.estimate_high = event.estimate.get("high")
                case CellDone():
                    entry.done += 1
                    entry.restored += event.restored
                case CellFailed(cell, error):
                    entry.failed += 1
                    self.tell(f"{entry.name}: failed {cell.id}: {error}")
                case Note(text):
                    self.tell(f"{entry.name}: {text}")
                case RunFinished(done, failed):
                    entry.done, entry.failed = done, failed

    def _settle(self, entry: Entry, code: int, *, coarse: bool) -> bool:
        """Takes note of a process that ended as it should; whether it did."""
        was_asked = self._is_over()
        if code in DONE:
            if self.child is None or self.child.follow is None:
                entry.done = entry.cells or 0  # nothing was left to do, or it is no run
            is_whole = entry.cells is None or entry.done + entry.failed >= entry.cells
            if code == FAILED_CELLS and not entry.failed:
                entry.error = self._said()
            entry.status = "done" if is_whole else "waiting" if coarse else "left"
            take_findings(entry)
            how = "done" if is_whole else f"{entry.done} of {entry.cells} cells"
            self.tell(f"{entry.name}: {how} in {format_seconds(entry.seconds)}", "progress")
            return True
        if was_asked and (code in SIGNALLED or code < 0):
            entry.status = "stopped" if self.signal else "left"
            return True
        return False

    def _said(self) -> str:
        return "" if self.child is None else self.child.last_error()

    def _give_up(self, entry: Entry, why: str) -> None:
        entry.status, entry.error = "failed", why
        self.tell(f"{entry.name}: given up: {why}", "progress")

    def _died(self, entry: Entry, code: int) -> str:
        """Takes note of a process that ended without a word."""
        entry.deaths += 1
        self.state.deaths += 1
        child = self.child
        # a signal that was sent to it by hand is not the fault of what it computed
        by_hand = code in SIGNALLED or child is None
        cause = f"exit status {code}" if by_hand else child.record_death()
        self.tell(f"{entry.name}: its process ended ({cause}); it is started again")
        return cause

    # --- around it ----------------------------------------------------------------------------

    def tell(self, text: str, kind: str = "note") -> None:
        """Adds a line to what has happened; ``progress`` is what the entries say as well."""
        line = {"time": _now(), "kind": kind, "text": safe_text(text, limit=500)}
        self.state.events = [*self.state.events[1 - LAST_EVENTS :], line]
        self._written = 0.0

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._is_over():
            self._beat()
            time.sleep(BEAT)

    def _beat(self, *, force: bool = False) -> None:
        """Shows and writes the state, and looks around."""
        now = time.monotonic()
        if force or now - self._written > WRITE:
            self._written = now
            slept = self._sleep.slept()
            if slept:
                self.state.slept += slept  # the run tells of it
            self._look_at_power(now)
            before = {r["rank"] for r in self.state.ranks if r["alive"]}
            self.state.ranks = self.ranks.seen()
            for rank in self.state.ranks:
                if rank["rank"] in before and not rank["alive"]:
                    self.tell(f"machine {rank['rank']} is gone; the others go on")
            self.state.write()
        fresh, self._fresh = self._fresh, []
        try:
            self.show(self.state, fresh)
        except OSError:  # the terminal is gone
            self.show = lambda _state, _events: None

    def _look_at_power(self, now: float) -> None:
        """Says once what stands against a long run; asking takes a process on a Mac."""
        if now < self._next_power:
            return
        self._next_power = now + POWER
        warnings = power.warnings()
        for text in warnings:
            if text not in self._warned:
                self.tell(text)
        self._warned = warnings

    @contextmanager
    def _signals(self) -> Generator[None]:
        before: dict[int, Any] = {}
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and not is_ignored(name):
                before[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if name == "SIGTERM" and self.ranks.outlives():
            return
        if name == "SIGHUP":
            self.ranks.leave_terminal()
        if self.signal is None:
            self.signal = name
            if self.child is not None:
                self.child.ask_to_end(name)
        elif self.child is not None:
            self.child.process.kill()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
