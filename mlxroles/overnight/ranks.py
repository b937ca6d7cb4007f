"""Several machines on one sweep: who leads, who helps, and who is gone.

Whoever holds the lock of the sweep leads it: the machine that the launcher numbers 0, or, when
that one is gone, the next one that is left. The others run the experiment that the leader runs,
as processes that share its cells. They meet through the folder of the sweep, which all must see.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mlxroles.errors import SIGNAL_STATUS, LockedError, StoreError
from mlxroles.overnight.child import Child
from mlxroles.store.files import make_folder
from mlxroles.store.folder import LOCK
from mlxroles.store.follow import is_held, owner_of
from mlxroles.store.lock import RunLock
from mlxroles.store.sweep_state import QueueState, read_state
from mlxroles.supervision import Supervision
from mlxroles.text import slug

RANKS = "ranks"
SHARED_KINDS = ("patch", "probe", "entropy")
"""Experiments whose cells several machines share; of others the leader runs the whole."""
FIRST = 45.0
"""Seconds that the first machine has for beginning to lead, and any other one after it."""
NEXT = 10.0
"""Seconds after which the next machine leads in place of one that is gone."""
GLANCE = 0.5
MOST_FAILURES = 3
"""Processes in a row that end badly, after which a machine leaves an experiment to the others."""


class Ranks:
    """The machines of a sweep, as one of them sees the others."""

    def __init__(self, sweep: Path, rank: int = 0, size: int = 1) -> None:
        """Machine ``rank`` of ``size``; with more than one it makes itself known."""
        self.sweep, self.rank, self.size = sweep, rank, size
        self.cells = 0
        """Cells that this machine has stored."""
        self._lock: RunLock | None = None
        self._lead: RunLock | None = None
        # asked now: of a terminal that is gone nobody can tell that it was one
        self._terminals = tuple(stream for stream in (1, 2) if os.isatty(stream))
        self._known: set[int] = set()
        self._leaders: set[int] = set()
        if size > 1:
            place = sweep / RANKS
            make_folder(place)
            self._lock = RunLock(place / f"{rank}.lock")
            self.left.unlink(missing_ok=True)

    @property
    def left(self) -> Path:
        """A file that says that this machine has ended as it should."""
        return self.sweep / RANKS / f"{self.rank}.left"

    def close(self) -> None:
        """Leaves the others, who then know that nothing has happened to this machine."""
        if self._lock is not None:
            with suppress(OSError):
                self.left.touch()
            self._lock.release()
            self._lock = None

    def tell(self) -> None:
        """Writes what the others may know of this machine."""
        for lock in (self._lock, self._lead):
            if lock is not None:
                lock.beat()
        if self.size > 1:
            facts = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid()}
            with suppress(OSError):
                path = self.sweep / RANKS / f"{self.rank}.json"
                path.write_text(json.dumps(facts | {"cells": self.cells}), encoding="ascii")

    def seen(self) -> list[dict[str, Any]]:
        """Every machine that has taken part: rank, host, pid, cells, and whether it is alive."""
        self.tell()
        found = []
        for rank in range(self.size if self.size > 1 else 0):
            facts = owner_of(self.sweep / RANKS / f"{rank}.json")
            if facts:
                found.append(facts | {"alive": self._is_alive(rank)})
        return found

    def outlives(self) -> bool:
        """Whether a SIGTERM is to be passed over: the launcher's, when another machine is gone.

        The launcher then ends all machines and reads nothing of what they print, so that from
        here on it goes to a log in the folder of the sweep.
        """
        gone = [rank for rank in range(self.size) if self._has_vanished(rank)]
        if not gone:
            return False
        self._known.difference_update(gone)
        names = ", ".join(map(str, gone))
        os.write(2, f"machine {names} is gone, the others go on: {self.log}\n".encode())
        self._print_to_log((1, 2))
        return True

    @property
    def log(self) -> Path:
        """Where output goes that nobody reads any more."""
        return self.sweep / "logs" / f"machine{self.rank}.log"

    def leave_terminal(self) -> None:
        """Prints to a log in the folder of the sweep from here on: the terminal is gone."""
        self._print_to_log(self._terminals)

    def _print_to_log(self, streams: tuple[int, ...]) -> None:
        with suppress(OSError):
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for stream in streams:
                os.dup2(handle, stream)

    def _has_vanished(self, rank: int) -> bool:
        if rank == self.rank or (self.sweep / RANKS / f"{rank}.left").exists():
            return False
        if self._is_alive(rank):
            self._known.add(rank)
            return False
        return rank in self._known

    def _is_alive(self, rank: int) -> bool:
        path = self.sweep / RANKS / f"{rank}.lock"
        is_alive = path.exists() and is_held(path)
        if is_alive:
            self._known.add(rank)
        return is_alive

    # --- helping ------------------------------------------------------------------------------

    def help_until_leading(self, say: Callable[[str], None]) -> RunLock | None:
        """Helps whoever leads; the lock of the sweep as soon as this machine is to lead.

        Returns:
            None when the sweep is over.

        Raises:
            LockedError: this is the only machine, and another process leads the sweep.
        """
        if self.size == 1:
            self._lead = RunLock(self.sweep / LOCK)
            return self._lead
        patience, alone_since = FIRST * self.rank, time.monotonic()
        helper = _Helper(self, say)
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGHUP)}
        try:
            while True:
                self.seen()
                state = self._latest()
                if state is not None and state.finished:
                    return None
                if state is not None:
                    alone_since, patience = time.monotonic(), NEXT * max(1, self.rank)
                    helper.follow(state)
                elif time.monotonic() - alone_since >= patience:
                    helper.stop()
                    with suppress(LockedError):
                        self._lead = RunLock(self.sweep / LOCK)
                        return self._lead
                time.sleep(GLANCE)
        finally:
            helper.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if name != "SIGTERM" or not self.outlives():
            raise SystemExit(SIGNAL_STATUS[name])

    def _latest(self) -> QueueState | None:
        """The state of the sweep while somebody leads it, or that in which he has ended it."""
        try:
            state = read_state(self.sweep)
        except StoreError:
            return None
        if state.finished is not None:
            return state if state.pid in self._leaders else None
        lock = self.sweep / LOCK
        if owner_of(lock).get("pid") == state.pid and is_held(lock):
            self._leaders.add(state.pid)
            return state
        return None


class _Helper:
    """The process with which this machine takes part in the leader's experiment."""

    def __init__(self, ranks: Ranks, say: Callable[[str], None]) -> None:
        self.ranks, self.say = ranks, say
        self.child: Child | None = None
        self._at: tuple[int, int | None] | None = None
        self._failures = 0
        self._is_done = False
        self._before = 0

    def follow(self, state: QueueState) -> None:
        """Takes part in what the leader runs at the moment."""
        now = (state.pid, state.current)
        if now != self._at:
            self.stop()
            self._at, self._failures, self._is_done = now, 0, False
        child = self.child
        if child is not None:
            child.events()
            child.end_if_it_hangs()
            self.ranks.cells = self._before + child.stored
            code = child.process.poll()
            if code is None:
                return
            self._before = self.ranks.cells
            if code < 0:
                self.say(f"machine {self.ranks.rank}: its process ended ({child.record_death()})")
            elif code != 0:
                self.say(f"machine {self.ranks.rank}: {child.last_error()}")
            self._is_done = code == 0
            self._failures = 0 if child.progress else self._failures + 1
            child.close()
            self.child = None
        if state.current is None or self._is_done or self._failures >= MOST_FAILURES:
            return
        entry = state.entries[state.current]
        if entry.kind in SHARED_KINDS and entry.status == "running":
            self.child = self._start(state, entry.number)

    def _start(self, state: QueueState, number: int) -> Child:
        entry, rank = state.entries[number], self.ranks.rank
        name = f"{entry.number:02d}-{slug(entry.name)[:60]}.machine{rank}.log"
        log = self.ranks.sweep / "logs" / name
        wishes = Supervision(
            until=_epoch(state.until),
            tell=str(log.with_suffix(".runs")),
            attended=True,
            rank=rank,
            size=self.ranks.size,
        )
        return Child(entry.argv, log, wishes, rank)

    def stop(self) -> None:
        """Ends the process after its running batch."""
        if self.child is not None:
            self.child.events()
            self.child.end()
            self.child.events()
            self._before = self.ranks.cells = self._before + self.child.stored
            self.child.close()
            self.child = None


def _epoch(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()
