"""The state of a queue as everybody sees it: ``state.json`` in the folder of the sweep.

Whoever leads the sweep rewrites the file as things change; displays, ``status`` and the morning
report read it. What is true of a run is in the run's own folder: this is a summary of it.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mlxroles.errors import StoreError
from mlxroles.store.files import plain, shown

SCHEMA = "mlxroles/sweep/1"
STATE, QUEUE = "state.json", "queue.json"
LAST_EVENTS = 200

Status = Literal["waiting", "running", "done", "failed", "stopped", "left"]


@dataclass
class Entry:
    """One experiment of a queue and how far it is."""

    number: int
    """From 0, in the order of the file."""
    name: str
    kind: str
    argv: list[str]
    """The command, after ``mlxroles``."""
    priority: int = 0
    status: Status = "waiting"
    """``left``: the deadline came first; ``stopped``: a signal did."""
    run: str | None = None
    """Its run folder, as soon as it is known."""
    cells: int | None = None
    """Size of its plan; None until it has begun."""
    done: int = 0
    failed: int = 0
    restored: int = 0
    """Cells that were done before this process began."""
    seconds: float = 0.0
    estimate: float | None = None
    """Seconds that it was thought to take, likely."""
    estimate_low: float | None = None
    estimate_high: float | None = None
    deaths: int = 0
    """Times that its process ended without a word."""
    error: str | None = None
    sentence: str | None = None
    """What was found."""
    brief: str | None = None
    """The same in half a line, where that can be said."""


@dataclass
class QueueState:
    """A queue, its experiments, and what has happened to them."""

    name: str
    id: str
    path: str
    started: str
    """UTC, ISO 8601."""
    entries: list[Entry]
    until: str | None = None
    finished: str | None = None
    interrupted: str | None = None
    """The signal that ended it, or ``deadline``."""
    current: int | None = None
    """Index of the entry that runs."""
    pid: int = 0
    host: str = ""
    sessions: int = 1
    """Processes that have led this sweep, one after the other."""
    deaths: int = 0
    slept: float = 0.0
    """Seconds that the machine was asleep."""
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """Other machines: rank, host, pid, alive, cells."""
    events: list[dict[str, str]] = field(default_factory=list)
    """The last ones: ``time`` (UTC), ``text``, ``kind`` (``progress``: what entries say too)."""
    schema: str = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        doc = plain(asdict(self))
        assert isinstance(doc, dict)
        return doc

    @classmethod
    def from_json(cls, doc: Mapping[str, Any]) -> "QueueState":
        """From plain data; fields that are not known here are passed over."""
        known = {f.name for f in fields(cls)} - {"entries"}
        own = {f.name for f in fields(Entry)}
        entries = [Entry(**{k: v for k, v in e.items() if k in own}) for e in doc["entries"]]
        return cls(entries=entries, **{k: v for k, v in doc.items() if k in known})

    def write(self) -> None:
        """Rewrites ``state.json``; a full disk is no error here, since the runs hold the truth."""
        path = Path(self.path) / STATE
        temp = path.with_name(f"{STATE}.{self.pid}.tmp")
        with suppress(OSError):
            temp.write_text(json.dumps(self.to_json(), allow_nan=False), encoding="ascii")
            temp.replace(path)


def is_sweep(path: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (path / QUEUE).is_file()


def read_state(path: Path) -> QueueState:
    """The state of the sweep in a folder.

    Raises:
        StoreError: it is no sweep, or its state cannot be read.
    """
    try:
        doc = json.loads((path / STATE).read_bytes())
        if doc.get("schema") != SCHEMA:
            raise StoreError(f"{shown(path / STATE)} has another schema than {SCHEMA}")
        return QueueState.from_json(doc)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{shown(path)} is no sweep that has begun: {STATE} cannot be read"
        ) from error
