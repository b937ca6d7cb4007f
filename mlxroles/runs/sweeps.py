"""How a sweep stands: a queue of experiments, as its own process wrote it down."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxroles.errors import StoreError
from mlxroles.runs.find import last_written
from mlxroles.store.files import read_object, shown
from mlxroles.store.folder import LOCK
from mlxroles.store.follow import is_held
from mlxroles.store.sweep_state import QUEUE, STATE, Entry

_NUMBERS = ("cells", "done", "failed", "restored", "seconds", "estimate")
_TEXTS = ("name", "kind", "run", "error", "sentence", "brief")
_ENDED = ("done", "failed")


def sweep_state(path: Path) -> dict[str, Any]:
    """How the sweep in a folder stands, as JSON.

    Raises:
        StoreError: neither its state nor its queue can be read.
    """
    doc, queue = read_object(path / STATE), read_object(path / QUEUE)
    if not doc and not queue:
        raise StoreError(f"{shown(path)}: {STATE} and {QUEUE} are missing or damaged")
    running = is_held(path / LOCK)
    entries = [_entry(one) for one in _list(doc.get("entries")) if isinstance(one, Mapping)]
    is_whole = bool(doc.get("finished")) and all(e["status"] in _ENDED for e in entries)
    is_done = is_whole and all(e["status"] == "done" and not e["failed"] for e in entries)
    argv = queue.get("argv")
    return {
        "schema": "mlxroles/status/1",
        "kind": "sweep",
        "run": str(path),
        "name": str(doc.get("name") or queue.get("name") or path.parent.name),
        "run_id": str(doc.get("id") or path.name),
        "state": "running" if running else "finished" if is_whole else "stopped",
        "started": doc.get("started"),
        "until": doc.get("until"),
        "finished": doc.get("finished"),
        "last_written": last_written(path),
        "sessions": doc.get("sessions"),
        "deaths": doc.get("deaths"),
        "slept": doc.get("slept"),
        "ranks": _list(doc.get("ranks")),
        "events": _list(doc.get("events"))[-20:],
        "entries": entries,
        "command": shlex.join(["mlxroles", *map(str, argv)]) if isinstance(argv, list) else None,
        "resume": None if running or is_done else shlex.join(["mlxroles", "resume", str(path)]),
    }


def entries_of(doc: Mapping[str, Any]) -> list[Entry]:
    """The experiments of a sweep's document, with zeros for what is not known."""
    found = []
    for at, entry in enumerate(doc["entries"]):
        known = {name: entry[name] for name in ("run", "error", "sentence", "brief", "estimate")}
        counts = {name: int(entry[name] or 0) for name in ("done", "failed", "restored")}
        cells = None if entry["cells"] is None else int(entry["cells"])
        kind, name = entry["kind"] or "", entry["name"] or entry["kind"] or "?"
        one = Entry(at, name, kind, entry["argv"], cells=cells, **known, **counts)
        one.status, one.seconds = entry["status"], entry["seconds"] or 0.0
        found.append(one)
    return found


def counted(doc: Mapping[str, Any]) -> tuple[int, int, int | None]:
    """Cells done, failed and in all of a sweep's experiments; None where one has not said."""
    entries = doc["entries"]
    totals = [entry["cells"] for entry in entries]
    total = None if not totals or None in totals else sum(totals)
    done, failed = (sum(entry[name] or 0 for entry in entries) for name in ("done", "failed"))
    return done, failed, total


def _entry(given: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: _number(given.get(name)) for name in _NUMBERS}
    texts = {name: _text(given.get(name)) for name in _TEXTS}
    argv = [str(word) for word in _list(given.get("argv"))]
    status = str(given.get("status", "waiting"))
    return {"number": given.get("number"), "status": status, **texts, **numbers, "argv": argv}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None
