"""Reads what a sweep has left: its state, its queue, and the folders of its runs.

Nothing here is locked or written, and nothing has to be whole: the sweep may have been killed, a
run folder moved or a document damaged. What cannot be read is said in ``problems``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from mlxroles.errors import MlxrolesError
from mlxroles.events import CellDone, CellFailed, Died, RunStarted
from mlxroles.store.folder import LOCK
from mlxroles.store.follow import Follow, is_held
from mlxroles.store.history import Line, read_history
from mlxroles.store.manifest import MANIFEST, read_manifest
from mlxroles.store.summary import SUMMARY, read_summary
from mlxroles.store.sweep_state import QUEUE, STATE, Entry, QueueState, Status, read_state
from mlxroles.text import safe_text

DAMAGED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)
"""What a document raises that is not what it says it is."""

_NUMBERS = ("cells", "done", "failed", "restored", "seconds", "deaths", "priority")


@dataclass
class Run:
    """What the folder of an experiment holds, as far as it can be read."""

    path: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    """Its history since the sweep began."""
    failures: Sequence[CellFailed] = ()
    done: int | None = None
    """Cells that are stored; None where that is not known."""
    cells: int | None = None
    is_alive: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass
class Night:
    """A sweep with its runs."""

    path: Path
    state: QueueState
    queue: Mapping[str, Any]
    runs: list[Run]
    """In the order of the state's entries."""
    is_running: bool
    """Whether a process leads the sweep at this moment."""
    problems: list[str]


def read_night(path: Path) -> Night:
    """Everything there is in the folder of a sweep; nothing is raised for what is not."""
    problems: list[str] = []
    queue = _object(path / QUEUE)
    if not queue:
        problems.append(f"{QUEUE} is missing or damaged")
    state = _state(path, queue, problems)
    since = seconds_of(state.started)
    runs = [_run(path, entry, since) for entry in state.entries]
    is_held_now = is_held(path / LOCK)
    return Night(path, state, queue, runs, is_held_now and state.finished is None, problems)


def seconds_of(text: object) -> float | None:
    """Seconds since 1970 of a time in ISO 8601; None where it is none."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def one_line(value: object, limit: int = 400) -> str:
    """Any value as text that is safe to show."""
    return "" if value is None else safe_text(str(value), limit=limit)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(path: Path, queue: Mapping[str, Any], problems: list[str]) -> QueueState:
    """The state; where it is lost, the queue with what the results hold of it."""
    try:
        state = read_state(path)
        state.entries = [_checked(entry, at) for at, entry in enumerate(state.entries)]
        state.events = [e for e in _list(state.events) if isinstance(e, dict)]
        state.ranks = [r for r in _list(state.ranks) if isinstance(r, dict)]
        state.deaths, state.sessions = _count(state.deaths), max(1, _count(state.sessions))
        state.slept = number(state.slept) or 0.0
        return state
    except (MlxrolesError, *DAMAGED):
        problems.append(
            f"{STATE} is missing or damaged: what ran is taken from {QUEUE} and the run folders"
        )
    entries = []
    listed = [one for one in _list(queue.get("experiments")) if isinstance(one, dict)]
    by_command = _by_command(path) if listed else {}
    for at, one in enumerate(listed):
        argv = [str(word) for word in _list(one.get("argv"))]
        name, kind = str(one.get("name", f"experiment {at + 1}")), str(one.get("kind", ""))
        run = by_command.get(tuple(argv))
        entries.append(Entry(at, name, kind, argv, run=run, status="waiting"))
    name = str(queue.get("name") or path.parent.name.removeprefix("sweep_"))
    return QueueState(name, str(queue.get("id") or path.name), str(path), "", entries)


def _by_command(path: Path) -> dict[tuple[str, ...], str]:
    """Run folders beside the sweep by the command that made them, the newest last."""
    found = {}
    manifests = [p for p in path.parent.parent.glob(f"*/*/{MANIFEST}") if p.is_file()]
    for manifest in sorted(manifests, key=lambda p: p.stat().st_mtime):
        argv = _object(manifest).get("argv")
        if isinstance(argv, list):
            found[tuple(map(str, argv))] = str(manifest.parent)
    return found


def _checked(entry: Entry, at: int) -> Entry:
    """The entry with numbers that are numbers and texts that are texts."""
    entry.number = at
    for name in _NUMBERS:
        value = number(getattr(entry, name))
        whole = None if value is None else value if name == "seconds" else int(value)
        setattr(entry, name, whole if whole is not None or name == "cells" else 0)
    for name in ("estimate", "estimate_low", "estimate_high"):
        setattr(entry, name, number(getattr(entry, name)))
    for name in ("run", "error", "sentence"):
        value = getattr(entry, name)
        setattr(entry, name, None if value is None else str(value))
    entry.name, entry.kind = str(entry.name), str(entry.kind)
    if entry.status not in get_args(Status):
        entry.status = "waiting"
    entry.argv = [str(word) for word in _list(entry.argv)]
    return entry


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(value: object) -> int:
    return int(number(value) or 0)


def _run(sweep: Path, entry: Entry, since: float | None) -> Run:
    """The run of an experiment, where it has one."""
    if entry.run is None:
        return Run()
    path = _place(sweep, Path(entry.run))
    if path is None:
        return Run(problems=[f"its run folder {one_line(entry.run)} is not there any more"])
    run = Run(path)
    try:
        run.manifest = read_manifest(path / MANIFEST)
        follow = Follow(path)
        _count_cells(run, follow)
        run.is_alive = follow.is_alive()
    except MlxrolesError as error:
        run.problems.append(one_line(error))
    except DAMAGED as error:
        run.problems.append(f"its manifest or journal is damaged ({type(error).__name__})")
    run.summary = read_summary(path)
    if not run.summary and (path / SUMMARY).exists():
        run.problems.append(f"its {SUMMARY} is damaged")
    elif not run.summary and entry.status == "done":
        run.problems.append(f"it has no {SUMMARY}")
    lines = read_history(path)
    run.lines = [line for line in lines if _is_of(line, since)]
    return run


def _is_of(line: Line, since: float | None) -> bool:
    """Whether a line is whole and of this sweep."""
    if isinstance(line.event, Died) and not isinstance(line.event.cells, list):
        return False
    at = seconds_of(line.time)
    return at is not None and (since is None or at >= since - 1)


def _place(sweep: Path, stored: Path) -> Path | None:
    """The run folder, also where the results as a whole were moved or copied."""
    moved = sweep.parent.parent / stored.parent.name / stored.name
    try:
        return next((path for path in (stored, moved) if path.is_dir()), None)
    except (OSError, ValueError):
        return None


def _count_cells(run: Run, follow: Follow) -> None:
    """What the journals hold of the run; a later line on a cell replaces an earlier one."""
    latest: dict[str, CellDone | CellFailed] = {}
    for event in follow.poll():
        if isinstance(event, CellDone | CellFailed):
            latest[event.cell.id] = event
        elif isinstance(event, RunStarted):
            run.cells = len(event.cells)
    run.failures = [event for event in latest.values() if isinstance(event, CellFailed)]
    run.done = len(latest) - len(run.failures)
