"""Follows a run that another process writes, from its files alone: read-only, without a lock."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxroles.events import (
    Cell,
    CellDone,
    CellFailed,
    Died,
    Event,
    Note,
    RunFinished,
    RunStarted,
)
from mlxroles.store.files import read_object
from mlxroles.store.folder import JOURNAL, LOCK, SHARDS
from mlxroles.store.history import HISTORY, decoded
from mlxroles.store.journal import Tail, decode_line
from mlxroles.store.manifest import MANIFEST, read_manifest
from mlxroles.store.record import Record, record_of

SILENCE = 60.0
"""Seconds without a sign of life after which nobody writes, where locks do not work."""


class Follow:
    """The events of a run in the order in which they reach the disk.

    Raises:
        StoreError: this is no run folder.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        """Follows the run in ``path``, from its beginning, as machine ``rank`` sees it."""
        self.path, self.rank = path, rank
        self.manifest: dict[str, Any] = read_manifest(path / MANIFEST)
        self._history = Tail(path / HISTORY)
        self._journals: dict[Path, Tail] = {}
        self._done: dict[str, bool] = {}
        self._has_begun = False

    @property
    def view(self) -> Mapping[str, Any]:
        """What a display needs to know beside the cells; empty for runs that do not say."""
        about = self.manifest.get("about")
        found = about.get("view") if isinstance(about, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def owner(self) -> dict[str, Any]:
        """Process, host and start of whoever writes or wrote last; empty where unknown."""
        return owner_of(self.path / LOCK)

    def is_alive(self) -> bool:
        """Whether a process works on the run at this moment."""
        return is_held(self.path / LOCK)

    def poll(self) -> list[Event]:
        """What is new since the last call.

        The first call tells of the start of the newest process, then of every cell that is
        stored, as restored ones, then of what that process has said since.
        """
        said = list(self._said())
        cells = list(self._cells(restored=not self._has_begun))
        if self._has_begun:
            # the end that is told of comes after the cells that were stored before it
            ends = [event for event in said if isinstance(event, RunFinished)]
            return [*(event for event in said if event not in ends), *cells, *ends]
        self._has_begun = True
        starts = [n for n, event in enumerate(said) if isinstance(event, RunStarted)]
        if not starts:
            named = str(self.manifest.get("experiment", self.path.name))
            known = tuple(event.cell for event in cells)
            return [RunStarted(named, str(self.path), known, len(known), self.view), *cells, *said]
        return [said[starts[-1]], *cells, *said[starts[-1] + 1 :]]

    def _said(self) -> Iterator[Event]:
        """What this machine has told, and what of the others concerns all."""
        for line in decoded(self._history.lines()):
            if line.rank == self.rank or isinstance(line.event, Died):
                yield line.event
            elif isinstance(line.event, Note):
                yield Note(f"machine {line.rank}: {line.event.text}")

    def _cells(self, *, restored: bool) -> Iterator[CellDone | CellFailed]:
        found = [self.path / JOURNAL]
        with suppress(OSError):
            found += sorted((self.path / SHARDS).glob(f"*/{JOURNAL}"))
        latest: dict[str, CellDone | CellFailed] = {}
        for path in found:
            tail = self._journals.setdefault(path, Tail(path))
            for line in tail.lines():
                record = record_of(decode_line(line) or {})
                # a cell of a shard is told of once, not again when it is taken in
                if record is not None and self._done.get(record.id) is not True:
                    self._done[record.id] = record.status == "ok"
                    latest.pop(record.id, None)
                    latest[record.id] = _event(record, restored=restored)
        yield from latest.values()


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock, without keeping it; where none work, by the file's age."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return True
        with suppress(OSError):
            return time.time() - lock.stat().st_mtime < SILENCE
        return False
    finally:
        os.close(handle)
    return False


def owner_of(lock: Path) -> dict[str, Any]:
    """What stands in a lock file."""
    return read_object(lock)


def _event(record: Record, *, restored: bool) -> CellDone | CellFailed:
    cell = Cell(record.id, record.coords)
    if record.status == "ok":
        return CellDone(cell, record.values, record.seconds, restored=restored)
    return CellFailed(cell, record.error or "")
