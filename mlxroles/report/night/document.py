"""The document of a night, ``mlxroles/night/1``: everything that page and Markdown show."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.report.night.concerns import concerns, measured, notes_of, surprises
from mlxroles.report.night.grids import Grid, grids
from mlxroles.report.night.hours import Hours, Load, hours, load_of, wall
from mlxroles.report.night.reading import Night, one_line
from mlxroles.report.night.told import Figure, Told, figure_of, sentence_of, told_by
from mlxroles.report.night.wording import (
    again,
    alone,
    headline,
    proceed,
    reason,
    relative,
    status_of,
)
from mlxroles.store.sweep_state import Entry
from mlxroles.versions import now

SCHEMA = "mlxroles/night/1"
PAGE = "report.html"


def document(night: Night) -> dict[str, Any]:
    """The document of a sweep; all text in it is safe to show, none of it is HTML."""
    told = {at: told_by(run) for at, run in enumerate(night.runs)}
    figures = [figure_of(run) for run in night.runs]
    said = [sentence_of(run) for run in night.runs]
    together = grids(night.state.entries)
    axis = hours(night)
    loads = [load_of(run) for run in night.runs]
    # Last, since what is damaged shows only when it is used.
    found = concerns(night, axis)
    experiments = [
        _experiment(night, at, said[at], figures[at], told[at])
        for at in range(len(night.state.entries))
    ]
    state = night.state
    took = wall(night, axis)
    failed = sum(one["failed"] for one in experiments)
    return {
        "schema": SCHEMA,
        "name": one_line(state.name, 80),
        "id": one_line(state.id, 40),
        "run": str(night.path.absolute()),
        "timestamp": now(),
        "headline": headline(night, took, failed),
        "started": one_line(state.started, 40) or None,
        "finished": None if state.finished is None else one_line(state.finished, 40),
        "until": None if state.until is None else one_line(state.until, 40),
        "interrupted": None if state.interrupted is None else one_line(state.interrupted, 40),
        "is_running": night.is_running,
        "seconds": took,
        "sessions": state.sessions,
        "deaths": state.deaths,
        "slept": state.slept,
        "counts": _counts(experiments),
        "cells": {
            "done": sum(one["done"] for one in experiments),
            "failed": failed,
            "total": sum(one["cells"] or 0 for one in experiments),
        },
        "look_first": [one._asdict() for one in found],
        "findings": [one._asdict() for one in surprises(night, told, together)],
        "groups": [_group(grid) for grid in together],
        "experiments": experiments,
        "hours": None if axis is None else _hours(axis),
        "not_run": _not_run(night),
        "commands": {
            "continue": proceed(night),
            "sweep": again(night),
        },
        "machine": _machine(night, loads),
        "loads": [
            {"peak": load.peak, "memory": load.memory, "speed": load.speed} for load in loads
        ],
    }


def _counts(experiments: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    words = [one["status"] for one in experiments]
    return {word: words.count(word) for word in dict.fromkeys(words)}


def _experiment(
    night: Night, at: int, sentence: str | None, figure: Figure | None, told: Sequence[Told]
) -> dict[str, Any]:
    entry, run = night.state.entries[at], night.runs[at]
    report = None if run.path is None else relative(run.path / PAGE, night.path)
    cells, done = _cells(entry, run.cells, run.done, len(run.failures))
    likely, took = measured(entry, run)
    return {
        "number": at,
        "name": one_line(entry.name, 80),
        "kind": one_line(entry.kind, 40),
        "status": entry.status,
        "status_text": status_of(night, at),
        "cells": cells,
        "done": done,
        "failed": len(run.failures) or entry.failed,
        "seconds": entry.seconds,
        "estimate": entry.estimate if likely is None else likely,
        "measured": took,
        "deaths": entry.deaths,
        "sentence": sentence or (one_line(entry.sentence, 2000) or None),
        "error": one_line(entry.error) or None,
        "problems": list(dict.fromkeys(run.problems)),
        "notes": notes_of(run),
        "run": None if run.path is None else str(run.path),
        "report": report,
        "command": alone(entry, night),
        "told": [each._asdict() for each in told],
        "figure": None if figure is None else _figure(figure),
    }


def _cells(
    entry: Entry, counted: int | None, stored: int | None, failed: int
) -> tuple[int | None, int]:
    """Cells in all and done: what is stored counts, where it can be read."""
    done = entry.done if stored is None else stored
    cells = entry.cells if entry.cells is not None else counted
    return (cells, done) if cells is None else (cells, min(done, max(0, cells - failed)))


def _figure(figure: Figure) -> dict[str, Any]:
    return figure._asdict() | {"curves": [curve._asdict() for curve in figure.curves]}


def _group(grid: Grid) -> dict[str, Any]:
    return {
        "name": grid.name,
        "experiments": grid.members,
        "varies": [one_line(name, 40) for name in grid.varies],
        "labels": [grid.label(member) for member in grid.members],
    }


def _hours(axis: Hours) -> dict[str, Any]:
    return {
        "start": axis.start,
        "end": axis.end,
        "marks": [mark._asdict() for mark in axis.marks],
        "rows": [
            {
                "around": row.around,
                "spans": [span._asdict() for span in row.spans],
                "marks": [mark._asdict() for mark in row.marks],
            }
            for row in axis.rows
        ],
    }


def _not_run(night: Night) -> list[dict[str, Any]]:
    return [
        {
            "experiment": at,
            "name": one_line(entry.name, 80),
            "status": status_of(night, at),
            "why": reason(night, at),
        }
        for at, entry in enumerate(night.state.entries)
        if entry.status != "done"
    ]


def _machine(night: Night, loads: Sequence[Load]) -> dict[str, Any]:
    """Machine and versions, each value with how many runs say so."""
    versions: dict[str, list[str]] = {}
    devices: list[str] = []
    for run in night.runs:
        found: Any = run.manifest.get("versions")
        for name, value in found.items() if isinstance(found, Mapping) else ():
            versions.setdefault(one_line(name, 40), []).append(one_line(value, 80))
        if run.manifest.get("device") is not None:
            devices.append(one_line(run.manifest["device"], 80))
    peaks = [load.peak for load in loads if load.peak is not None]
    limits = [load.limit for load in loads if load.limit is not None]
    free = [load.least_free for load in loads if load.least_free is not None]
    return {
        "host": one_line(night.state.host, 80),
        "device": list(dict.fromkeys(devices)),
        "versions": {name: list(dict.fromkeys(values)) for name, values in versions.items()},
        "peak": max(peaks, default=None),
        "limit": max(limits, default=None),
        "least_free": min(free, default=None),
        "ranks": [{k: one_line(v, 80) for k, v in rank.items()} for rank in night.state.ranks],
        "zone": time.strftime("%Z (UTC%z)"),
    }
