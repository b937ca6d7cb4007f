"""Folders of sweeps that never happened: a state, a queue and run folders, written by hand."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlxroles.events import Died, Event, RunFinished, Slept, Vitals
from mlxroles.store.files import plain
from mlxroles.store.journal import encode_line
from mlxroles.store.record import Record, entry_of
from mlxroles.store.sweep_state import Entry, QueueState
from mlxroles.text import slug

BEGUN = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
SWEEP = ["sweep", "night.toml"]
VERSIONS = {"mlxroles": "0.1.0", "python": "3.11.7", "mlx": "0.32.4"}


def at(minutes: float) -> str:
    return (BEGUN + timedelta(minutes=minutes)).isoformat(timespec="milliseconds")


@dataclass
class Made:
    """One experiment and what its folder is to hold; None is a file that is not there."""

    entry: Entry
    summary: Any = None
    history: list[tuple[float, Event | dict[str, Any]]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    has_report: bool = True


def done(number: int, name: str, argv: list[str] | None = None, **more: Any) -> Entry:
    words = ["patch", "--plain", "--pair", "tiny"] if argv is None else argv
    known = {"status": "done", "cells": 38, "done": 38, "seconds": 600.0, "estimate": 500.0}
    return Entry(number, name, words[0], words, **(known | more))


def started(cells: int = 38) -> dict[str, Any]:
    facts = {"title": "a run", "cells": cells, "done": 0, "view": {}, "pid": 1, "estimate": None}
    return {"event": "started", **facts}


def history(begin: float, minutes: float = 10.0) -> list[tuple[float, Event | dict[str, Any]]]:
    """A run of so many minutes with vital signs."""
    gb = 10**9
    signs = [
        (begin + 0.1 * n, Vitals(5 * gb + n, 9 * gb, 24 * gb, 8 * gb, 100.0 * n, 1000 * n))
        for n in range(1, 9)
    ]
    end = RunFinished(38, 0, 60 * minutes, None)
    return [(begin, started()), *signs, (begin + minutes, end)]


def make(results: Path, made: list[Made], **state: Any) -> Path:
    """The folder of a sweep with its runs beside it; ``state`` overrides fields of the state."""
    sweep = results / "sweep_night" / "0123abcd"
    (sweep / "logs").mkdir(parents=True)
    for one in made:
        if one.summary is not None or one.history or one.failures:
            run = results / "patch_tiny" / f"{one.entry.number:012x}"
            one.entry.run = str(run)
            _run(run, one)
        (sweep / "logs" / f"{one.entry.number:02d}-{slug(one.entry.name)[:60]}.log").touch()
    fields = {"started": at(0), "finished": at(372), "events": [], "host": "mac-studio"} | state
    doc = QueueState("night", "0123abcd", str(sweep), entries=[m.entry for m in made], **fields)
    (sweep / "state.json").write_text(json.dumps(doc.to_json()))
    listed = [{"name": m.entry.name, "kind": m.entry.kind, "argv": m.entry.argv} for m in made]
    queue = {"name": "night", "id": "0123abcd", "cwd": str(results.parent), "argv": SWEEP}
    (sweep / "queue.json").write_text(json.dumps(queue | {"experiments": listed}))
    return sweep


def _run(run: Path, one: Made) -> None:
    run.mkdir(parents=True)
    manifest = {"schema": "mlxroles/run/1", "experiment": one.entry.name, "drift": []}
    manifest |= {"argv": one.entry.argv, "versions": VERSIONS, "device": "gpu"} | one.manifest
    (run / "manifest.json").write_text(json.dumps(manifest))
    records = [
        Record(f"cell/{n}", "ok", {}, {"tool_call_prob": 0.5}) for n in range(one.entry.done)
    ]
    records += [Record(name, "failed", error=why) for name, why in one.failures.items()]
    (run / "cells.jsonl").write_bytes(b"".join(encode_line(entry_of(r)) for r in records))
    names = {Vitals: "vitals", Died: "died", Slept: "slept", RunFinished: "finished"}
    lines = []
    for minutes, event in one.history:
        doc = event if isinstance(event, dict) else _event(event, names)
        lines.append(json.dumps(plain({"t": at(minutes), "rank": 0, **doc})))
    (run / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if isinstance(one.summary, str):
        (run / "summary.json").write_text(one.summary)
    elif one.summary is not None:
        (run / "summary.json").write_text(json.dumps(plain(one.summary)))
    if one.has_report:
        (run / "report.html").write_text("<!DOCTYPE html><title>a run</title>")


def _event(event: Event, names: dict[type, str]) -> dict[str, Any]:
    return {"event": names.get(type(event), "note"), **vars(event)}
