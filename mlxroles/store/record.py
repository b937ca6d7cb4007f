"""What the journal says about one cell, and the line that says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ArraysFile:
    """The file with a cell's arrays, as it was written."""

    file: str
    """Name within the folder ``arrays``."""
    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class Record:
    """What the journal says about one cell."""

    id: str
    status: Literal["ok", "failed"]
    coords: Mapping[str, object] = field(default_factory=dict)
    values: Mapping[str, object] = field(default_factory=dict)
    """The cell's numbers; empty for a failed one."""
    arrays: ArraysFile | None = None
    seconds: float = 0.0
    error: str | None = None
    """Why the cell failed."""
    attempt: int = 1


def entry_of(record: Record) -> dict[str, object]:
    """The journal entry that stands for a record."""
    entry: dict[str, object] = {"id": record.id, "status": record.status}
    entry |= {"coords": record.coords, "seconds": record.seconds, "attempt": record.attempt}
    if record.status == "ok":
        entry["values"] = record.values
    if record.error is not None:
        entry["error"] = record.error
    if record.arrays is not None:
        stored = record.arrays
        entry["arrays"] = {"file": stored.file, "sha256": stored.sha256, "bytes": stored.n_bytes}
    return entry


def record_of(entry: Mapping[str, Any]) -> Record | None:
    """The record that a journal entry stands for, None where it is none."""
    try:
        stored = entry.get("arrays")
        record = Record(
            entry["id"],
            entry["status"],
            coords=dict(entry["coords"]),
            values=dict(entry.get("values", {})),
            arrays=None if stored is None else _arrays_file(stored),
            seconds=float(entry["seconds"]),
            error=entry.get("error"),
            attempt=int(entry["attempt"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return record if isinstance(record.id, str) and record.status in ("ok", "failed") else None


def _arrays_file(stored: Mapping[str, Any]) -> ArraysFile:
    return ArraysFile(str(stored["file"]), str(stored["sha256"]), int(stored["bytes"]))
