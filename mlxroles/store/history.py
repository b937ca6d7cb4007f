"""What happened to a run, for people and displays: ``events.jsonl`` in its folder.

One JSON object per line, appended by whichever process works on the run. Nothing is computed from
it that the journal does not hold, so that it is not synced, may be deleted, and a full disk is no
error here. The cells themselves are not repeated: they stand in the journal.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mlxroles.events import (
    BatchStarted,
    Cell,
    Died,
    Event,
    Note,
    RunFinished,
    RunStarted,
    Slept,
    Stage,
    Vitals,
)
from mlxroles.store.files import plain, write_all

HISTORY = "events.jsonl"
MOST_CELLS = 10_000_000
"""Cells of a plan that a history may speak of; more are damage."""

_PLAIN: Mapping[str, type[Stage | Note | Vitals | Died | Slept | RunFinished]] = {
    "stage": Stage,
    "note": Note,
    "vitals": Vitals,
    "died": Died,
    "slept": Slept,
    "finished": RunFinished,
}
_NAMES = {kind: name for name, kind in _PLAIN.items()}


class Line(NamedTuple):
    """A line of a history."""

    time: str
    """UTC, ISO 8601, by the clock of the machine that wrote it."""
    rank: int
    """The machine that wrote it."""
    event: Event


class History:
    """Appends events to the history of a run folder."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        """Appends to the history in ``folder`` on behalf of a rank."""
        self.path, self.rank = folder / HISTORY, rank

    def append(self, event: Event) -> None:
        """Adds an event, unless it is one of a cell or cannot be written."""
        doc = _encode(event)
        if doc is None:
            return
        head = {"t": datetime.now(UTC).isoformat(timespec="milliseconds"), "rank": self.rank}
        line = json.dumps(plain(head | doc), separators=(",", ":")).encode("ascii") + b"\n"
        # Opened each time: a folder that was set aside takes its history along.
        with suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            handle = os.open(self.path, flags, 0o666)
            try:
                size = os.fstat(handle).st_size
                is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                write_all(handle, b"\n" + line if is_torn else line)
            finally:
                os.close(handle)


def read_history(folder: Path) -> list[Line]:
    """Everything that the history of a folder holds; empty where there is none."""
    return list(decoded(_lines(folder / HISTORY)))


def decoded(lines: Sequence[bytes]) -> Iterator[Line]:
    """The lines that can be read; others are passed over."""
    for text in lines:
        try:
            doc = json.loads(text)
            yield Line(str(doc["t"]), int(doc.get("rank", 0)), _decode(doc))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except OSError:
        return []


def _encode(event: Event) -> dict[str, Any] | None:
    if isinstance(event, RunStarted):
        facts: dict[str, Any] = {
            "title": event.title,
            "cells": len(event.cells),
            "done": event.done,
        }
        facts |= {"view": event.view, "pid": os.getpid(), "estimate": event.estimate}
        return {"event": "started", **facts}
    if isinstance(event, BatchStarted):
        return {"event": "batch", "cells": [cell.id for cell in event.cells]}
    name = _NAMES.get(type(event))
    return None if name is None else {"event": name, **vars(event)}


def _decode(doc: Mapping[str, Any]) -> Event:
    name = doc["event"]
    if name == "started":
        if not 0 <= int(doc["cells"]) <= MOST_CELLS:
            raise ValueError("no such plan")
        cells = (Cell(""),) * int(doc["cells"])
        view, estimate = doc.get("view") or {}, doc.get("estimate")
        rank, done = int(doc.get("rank", 0)), int(doc["done"])
        return RunStarted(str(doc["title"]), "", cells, done, view, rank, estimate)
    if name == "batch":
        return BatchStarted([Cell(str(cell)) for cell in doc["cells"]])
    kind = _PLAIN[name]
    return kind(**{key: doc[key] for key in kind.__dataclass_fields__})
