"""How a run stands: its cells, its processes so far, what failed, and what goes on with it."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxroles.events import Died, Note, RunFinished, RunStarted, Slept
from mlxroles.runs.find import CAPTURE, last_written
from mlxroles.runs.subject import subject
from mlxroles.runs.tally import Tally, tally
from mlxroles.store.folder import LOCK, SHARDS
from mlxroles.store.follow import is_held, owner_of
from mlxroles.store.history import HISTORY, Line, decoded
from mlxroles.store.manifest import MANIFEST, read_manifest
from mlxroles.store.summary import read_summary

RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"
_FREQUENT = (b'"event":"vitals"', b'"event":"batch"')
"""Lines of a history that come every few seconds."""
_CAUSES, _CELLS, _NOTES = 10, 5, 10
"""Causes of failure, cells of each, and notes that are told at most."""


@dataclass
class Session:
    """One process that worked on a run."""

    started: str
    """UTC, ISO 8601."""
    rank: int
    cells: int
    done_before: int
    """Cells that were stored when it began."""
    estimate: Mapping[str, Any] | None = None
    """Seconds that the whole plan was thought to take: likely, low, high."""
    last: str = ""
    """When it was last heard of."""
    seconds: float | None = None
    """How long it took; None unless it said so itself."""
    ended: str | None = None
    """``finished``, a signal, ``deadline``; None for one that runs or was killed."""
    slept: float = 0.0
    deaths: list[str] = field(default_factory=list)
    """Why worker processes of it ended."""
    notes: list[str] = field(default_factory=list)


@dataclass
class State:
    """How a run stands."""

    path: Path
    run_id: str
    experiment: str
    kind: str
    state: str
    """``running``, ``stopped`` or ``finished``."""
    done: int
    failed: int
    total: int | None
    total_from: str | None
    """Where the total is known from: ``history`` or ``summary``."""
    created: str
    last: float
    """When it was last written, in seconds since 1970."""
    eta: float | None
    """Seconds that are left, of a run that goes on."""
    owner: Mapping[str, Any]
    """Process, host and start of whoever writes it now."""
    manifest: Mapping[str, Any]
    tally: Tally
    sessions: list[Session]

    @property
    def is_unfinished(self) -> bool:
        """Whether somebody could go on with it: cells are missing or failed."""
        return self.state == STOPPED or (self.state == FINISHED and self.failed > 0)

    def document(self) -> dict[str, Any]:
        """The line of a list of runs, as JSON."""
        return {
            "run": str(self.path),
            "run_id": self.run_id,
            "experiment": self.experiment,
            "subject": subject(self.manifest),
            "kind": self.kind,
            "state": self.state,
            "cells": {"done": self.done, "failed": self.failed, "total": self.total},
            "total_from": self.total_from,
            "created": self.created,
            "last_written": _iso(self.last),
            "eta_seconds": self.eta,
        }


def state_of(path: Path, *, now: float | None = None) -> State:
    """How the run in a folder stands; nothing in it is written or locked.

    A cell counts as done whose journal line is whole; whether its arrays are, ``verify`` says.

    Raises:
        StoreError: this is no run folder, or its manifest cannot be read.
    """
    manifest: Mapping[str, Any] = read_manifest(path / MANIFEST)
    identity = manifest.get("identity")
    kind = str(identity.get("kind", "?")) if isinstance(identity, Mapping) else "?"
    cells = tally(path)
    sessions = sessions_of(list(decoded(_told(path / HISTORY))))
    locks = [path / LOCK, *sorted(path.glob(f"{SHARDS}/*/{LOCK}"))]
    is_running = any(is_held(lock) for lock in locks)
    summary = read_summary(path)
    total, source = _total(sessions, summary, cells)
    done = len(cells.ok) if total is None else min(len(cells.ok), total)
    failed = len(cells.failed) if total is None else min(len(cells.failed), total - done)
    ended = is_ended(path, kind, summary, sessions) and (total is None or done + failed >= total)
    state = RUNNING if is_running else FINISHED if ended else STOPPED
    if total is None and state == FINISHED:
        total, source = done + failed, "summary"
    clock = time.time() if now is None else now
    return State(
        path=path,
        run_id=str(manifest.get("run_id", path.name)),
        experiment=str(manifest.get("experiment", path.parent.name)),
        kind=kind,
        state=state,
        done=done,
        failed=failed,
        total=total,
        total_from=source,
        created=str(manifest.get("created", "")),
        last=last_written(path),
        eta=_eta(sessions, done, total, clock) if is_running else None,
        owner=owner_of(path / LOCK) if is_running else {},
        manifest=manifest,
        tally=cells,
        sessions=sessions,
    )


def details(state: State) -> dict[str, Any]:
    """Everything that is known of a run without its numbers, as JSON."""
    summary = read_summary(state.path)
    argv = state.manifest.get("argv")
    said = [note for session in state.sessions for note in session.notes]
    written = summary.get("notes")
    notes = list(dict.fromkeys([*(written if isinstance(written, list) else []), *said]))
    return {
        "schema": "mlxroles/status/1",
        **state.document(),
        "owner": dict(state.owner) or None,
        "sessions": [dict(vars(session)) for session in state.sessions],
        "failures": failures(state.tally),
        "torn_lines": len(state.tally.torn),
        "notes": [str(note) for note in notes[-_NOTES:]],
        "time": times(state),
        "versions": state.manifest.get("versions"),
        "device": state.manifest.get("device"),
        "command": shlex.join(["mlxroles", *map(str, argv)]) if isinstance(argv, list) else None,
        "resume": shlex.join(["mlxroles", "resume", str(state.path)])
        if state.is_unfinished
        else None,
    }


def times(state: State) -> dict[str, Any]:
    """What a run was thought to take and what it took, in seconds."""
    estimate = next((s.estimate for s in state.sessions if s.estimate), None)
    spans = [span for s in state.sessions if (span := _span(s)) is not None]
    return {"estimate": estimate, "actual": sum(spans) if spans else None}


def failures(cells: Tally) -> list[dict[str, Any]]:
    """Causes of failed cells, the most frequent first."""
    causes: dict[str, list[str]] = {}
    for record in cells.failed.values():
        causes.setdefault(record.error or "no reason is stored", []).append(record.id)
    order = sorted(causes.items(), key=lambda item: -len(item[1]))
    return [{"error": e, "count": len(c), "cells": c[:_CELLS]} for e, c in order[:_CAUSES]]


def sessions_of(lines: Sequence[Line]) -> list[Session]:
    """The processes that a history tells of, in the order in which they began."""
    found: list[Session] = []
    newest: dict[int, Session] = {}
    for line in lines:
        event = line.event
        if isinstance(event, RunStarted):
            one = Session(line.time, line.rank, len(event.cells), event.done, event.estimate)
            newest[line.rank] = one
            found.append(one)
        session = newest.get(line.rank)
        if session is None:
            continue
        session.last = line.time
        match event:
            case RunFinished():
                session.seconds = event.seconds
                session.ended = event.interrupted or FINISHED
            case Died():
                session.deaths.append(event.cause)
            case Slept():
                session.slept += event.seconds
            case Note(text):
                session.notes.append(text)
    return found


def _told(history: Path) -> list[bytes]:
    """The lines of a history that tell of a process's life, and the last one."""
    try:
        lines = [line for line in history.read_bytes().split(b"\n") if line]
    except OSError:
        return []
    kept = [line for line in lines if not any(kind in line for kind in _FREQUENT)]
    return kept if kept[-1:] == lines[-1:] else [*kept, lines[-1]]


def is_ended(
    path: Path, kind: str, summary: Mapping[str, Any], sessions: Sequence[Session]
) -> bool:
    """Whether everything that a command makes of its cells is there."""
    if kind == "capture":
        return (path / CAPTURE).is_file()
    if not summary or summary.get("interrupted") or summary.get("missing_cells"):
        return False
    leading = [session for session in sessions if session.rank == 0]
    return not leading or leading[-1].ended == FINISHED


def _total(
    sessions: Sequence[Session], summary: Mapping[str, Any], cells: Tally
) -> tuple[int | None, str | None]:
    leading = [session for session in sessions if session.rank == 0]
    if leading:
        return leading[-1].cells, "history"
    if summary and not summary.get("interrupted"):
        return len(cells.ok) + len(cells.failed), "summary"
    return None, None


def _eta(sessions: Sequence[Session], done: int, total: int | None, now: float) -> float | None:
    leading = [session for session in sessions if session.rank == 0]
    if not leading or total is None:
        return None
    session = leading[-1]
    began = seconds_of(session.started)
    if began is None:
        return None
    spent, fresh = now - began - session.slept, done - session.done_before
    if fresh > 0 and spent > 0:
        return spent / fresh * max(total - done, 0)
    likely = (session.estimate or {}).get("likely")
    if isinstance(likely, int | float) and math.isfinite(likely):
        return max(float(likely) - spent, 0.0)
    return None


def _span(session: Session) -> float | None:
    if session.seconds is not None:
        return session.seconds
    began, last = seconds_of(session.started), seconds_of(session.last)
    return None if began is None or last is None else max(last - began - session.slept, 0.0)


def seconds_of(text: str) -> float | None:
    """Seconds since 1970 of a time in ISO 8601, None where it is none."""
    with suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).timestamp()
    return None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
