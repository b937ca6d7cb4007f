"""`mlxroles status`: which runs there are, how far they are, and what became of them."""

import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json, print_table, terminal_width
from mlxroles.cli.results import show
from mlxroles.runs.find import NOTHING
from mlxroles.text import format_seconds, safe_text

if TYPE_CHECKING:
    from mlxroles.runs.state import State
    from mlxroles.store.sweep_state import Entry

_MOST = 20
_WIDE, _SHORT = 120, 16
"""Columns from which names of experiments are whole, and characters of them below that."""


@click.command("status")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--all", "everything", is_flag=True, help=f"More than the {_MOST} newest runs.")
@json_option
def command(runs: tuple[str, ...], *, everything: bool, as_json: bool) -> int:
    """Tell how far runs are: one line per run below results/, or everything about one.

    RUN is a run folder, the id of a run or the beginning of one, or the folder of a sweep. Works
    while another process writes the run, and changes nothing.

    \b
    Examples:
      mlxroles status
      mlxroles status 838a58
    """  # noqa: D301
    if runs:
        return _details(runs, as_json=as_json)
    documents = _all()
    if as_json:
        print_json({"schema": "mlxroles/status/1", "runs": documents})
        return 0
    if not documents:
        note(NOTHING)
        return 0
    shown = documents if everything else documents[:_MOST]
    _list(shown)
    if len(shown) < len(documents):
        note(f"and {len(documents) - len(shown)} older runs (--all)")
    return 0


def _list(documents: list[dict[str, Any]]) -> None:
    """A line per run: as many columns as the terminal has room for, all of them elsewhere."""
    from mlxroles.dashboard.listing import Column, Row, listing

    now = time.time()
    lines = [_line(doc, now) for doc in documents]
    width = terminal_width()
    names = _names(documents, None if width is None or width >= _WIDE else _SHORT)
    if width is None:
        columns = ["experiment", "run", "kind", "#cells", "#failed", "state", "#written", "#left"]
        rows = [
            [name, line[0], doc["kind"], *line[1:]]
            for name, line, doc in zip(names, lines, documents, strict=True)
        ]
        print_table("runs", columns, rows)
        return
    columns = [
        Column("run"),
        Column("cells", is_right=True),
        Column("failed", is_right=True),
        Column("state"),
        Column("written", is_right=True, turn=2),
        Column("left", is_right=True, turn=1),
    ]
    rows = [Row(name, line) for name, line in zip(names, lines, strict=True)]
    show(listing("", "experiment", columns, rows), plain=False)


def _names(documents: list[dict[str, Any]], limit: int | None) -> list[str]:
    """The experiment of each run, its prompts, and what else tells it from its other runs."""
    alike: dict[str, list[list[str]]] = {}
    for doc in documents:
        alike.setdefault(doc["experiment"], []).append(doc["subject"])
    names = []
    for doc in documents:
        others = alike[doc["experiment"]]
        own = [
            part
            for at, part in enumerate(doc["subject"])
            if at == 0 or len(others) == 1 or not all(part in other for other in others)
        ]
        experiment = safe_text(doc["experiment"], limit=limit)
        names.append(f"{experiment} {', '.join(own)}".strip())
    return names


def _all() -> list[dict[str, Any]]:
    from mlxroles.errors import StoreError
    from mlxroles.runs.find import runs_below, sweeps_below
    from mlxroles.runs.state import state_of
    from mlxroles.runs.sweeps import counted, sweep_state

    found = []
    for path in sweeps_below():
        try:
            doc = sweep_state(path)
        except StoreError as error:
            note(str(error))
            continue
        done, failed, total = counted(doc)
        cells = {"done": done, "failed": failed, "total": total}
        count, lost = len(doc["entries"]), sum(e["status"] == "failed" for e in doc["entries"])
        subject = [f"{count} experiment{'s' * (count != 1)}", *([f"{lost} failed"] * bool(lost))]
        short = {"experiment": path.parent.name, "subject": subject, "cells": cells}
        short["eta_seconds"] = None
        names = ("run", "run_id", "kind", "state", "last_written")
        found.append(short | {name: doc[name] for name in names})
    for path in runs_below():
        try:
            found.append(state_of(path).document())
        except StoreError as error:
            note(str(error))
    return sorted(found, key=lambda doc: -_time(doc["last_written"]))


def _line(doc: dict[str, Any], now: float) -> list[str]:
    from mlxroles.dashboard.facts import coarse

    cells = doc["cells"]
    total = "?" if cells["total"] is None else cells["total"]
    left = doc["eta_seconds"]
    return [
        doc["run_id"],
        f"{cells['done']}/{total}",
        str(cells["failed"] or ""),
        doc["state"],
        f"{coarse(max(now - _time(doc['last_written']), 0))} ago",
        "" if left is None else f"about {coarse(left)}",
    ]


def _time(value: str | float) -> float:
    from mlxroles.runs.state import seconds_of

    return (seconds_of(value) or 0.0) if isinstance(value, str) else value


def _details(runs: tuple[str, ...], *, as_json: bool) -> int:
    from mlxroles.errors import SpecError
    from mlxroles.runs.find import find, is_run, is_sweep
    from mlxroles.runs.state import details, state_of
    from mlxroles.runs.sweeps import sweep_state

    paths = [find(text) for text in runs]
    for path in paths:
        if not is_run(path) and not is_sweep(path):
            raise SpecError(f"{safe_text(str(path))} is a capture by itself: `mlxroles show` it")
    found = [sweep_state(path) if is_sweep(path) else state_of(path) for path in paths]
    documents = [one if isinstance(one, dict) else details(one) for one in found]
    if as_json:
        print_json(documents[0] if len(documents) == 1 else _several(documents))
        return 0
    for number, (one, doc) in enumerate(zip(found, documents, strict=True)):
        if number:
            click.echo()
        if isinstance(one, dict):
            show_sweep(doc)
        else:
            _show(one, doc)
    return 0


def _several(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": "mlxroles/status/1", "runs": documents}


def _show(state: "State", doc: dict[str, Any]) -> None:
    total = "?" if state.total is None else state.total
    source = {"summary": ", as the summary has it"}
    _say("run", doc["run"])
    _say("about", ", ".join(doc["subject"]))
    _say("state", _state_text(doc))
    failed = f", {state.failed} failed" if state.failed else ""
    _say("cells", f"{state.done} of {total}{failed}{source.get(str(state.total_from), '')}")
    if doc["eta_seconds"] is not None:
        _say("left", f"about {format_seconds(doc['eta_seconds'])}")
    _say("begun", _local(doc["created"]))
    _say("written", _local(doc["last_written"]))
    for session in doc["sessions"]:
        _say("session", _session_text(session, is_last=session is doc["sessions"][-1], doc=doc))
    _say("time", _time_text(doc["time"]))
    for failure in doc["failures"]:
        cells = ", ".join(failure["cells"][:3]) + (", ..." if failure["count"] > 3 else "")
        _say("failed", f"{failure['count']} x {failure['error']} ({cells})")
    if doc["torn_lines"]:
        _say("torn", f"{doc['torn_lines']} journal lines; `mlxroles verify` looks closer")
    for text in doc["notes"]:
        _say("note", text)
    _say("command", doc["command"])
    _say("go on", doc["resume"])


def _state_text(doc: dict[str, Any]) -> str:
    owner = doc["owner"]
    if not owner:
        return doc["state"]
    pid, host, start = (owner.get(key, "?") for key in ("pid", "host", "start"))
    return f"{doc['state']}: process {pid} on {host} since {_local(str(start))}"


def _local(time_of: str) -> str:
    """A time by the clock of this machine, to the minute; as it is where it is none."""
    seconds = _time(time_of)
    if not seconds:
        return time_of
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _session_text(session: dict[str, Any], *, is_last: bool, doc: dict[str, Any]) -> str:
    ended = session["ended"]
    if ended is None:
        ended = "goes on" if is_last and doc["state"] == "running" else "ended without a word"
    elif ended != "finished":
        ended = f"ended by {ended}"
    parts = [
        _local(session["started"]),
        f"{session['done_before']} of {session['cells']} stored before",
    ]
    if session["rank"]:
        parts.append(f"machine {session['rank']}")
    if session["seconds"] is not None:
        ended += f" after {format_seconds(session['seconds'])}"
    parts.append(ended)
    if session["slept"]:
        parts.append(f"asleep for {format_seconds(session['slept'])}")
    parts += [f"a worker died: {cause}" for cause in session["deaths"][-3:]]
    return ", ".join(parts)


def _time_text(times: dict[str, Any]) -> str | None:
    estimate, actual = times["estimate"], times["actual"]
    parts = [] if actual is None else [f"took {format_seconds(actual)} so far"]
    if estimate and isinstance(estimate.get("likely"), int | float):
        text = f"estimate {format_seconds(estimate['likely'])}"
        bounds = [estimate.get(name) for name in ("low", "high")]
        if all(isinstance(bound, int | float) for bound in bounds):
            text += f" ({' to '.join(format_seconds(float(bound or 0)) for bound in bounds)})"
        parts.append(text)
    return ", ".join(parts) or None


def show_sweep(doc: dict[str, Any], *, is_whole: bool = False) -> None:
    """Prints the experiments of a sweep, and what happened last.

    Args:
        doc: The document of the sweep.
        is_whole: Whether findings are told in full, below the list.
    """
    from mlxroles.dashboard import paragraphs, queue_table
    from mlxroles.runs.sweeps import entries_of

    entries = entries_of(doc)
    title = f"sweep {doc['name']}: {doc['state']}{_end(doc, entries)}"
    if not is_whole:
        entries = [replace(entry, brief=None, sentence=None) for entry in entries]
    show(queue_table(entries, title), plain=False)
    told = [f"{entry.name}: {entry.sentence}" for entry in entries if entry.sentence]
    for text in told if is_whole else ():
        click.echo()
        show(paragraphs([text]), plain=False)
    click.echo()
    for event in doc["events"][-5:]:
        if isinstance(event, dict):
            _say("event", f"{_clock(event.get('time'))} {event.get('text', '')}")
    _say("go on", doc["resume"])


def _end(doc: dict[str, Any], entries: list["Entry"]) -> str:
    """How much time a sweep that runs still takes, as far as that is known."""
    pending = [entry for entry in entries if entry.status in ("waiting", "running")]
    if doc["state"] != "running" or not all(entry.estimate for entry in pending):
        return ""
    left = 0.0
    for entry in pending:
        share = 1 - (entry.done + entry.failed) / entry.cells if entry.cells else 1.0
        left += max(share, 0.0) * (entry.estimate or 0.0)
    return f", about {format_seconds(left)} left"


def _clock(value: object) -> str:
    from mlxroles.dashboard.forecast import clock_time

    return clock_time(str(value)) or str(value or "")


def _say(label: str, text: str | None) -> None:
    if text:
        click.echo(f"{label:<10} {safe_text(str(text))}")
