"""The morning report as one HTML file, from the document of a night."""

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from mlxroles.report import shell
from mlxroles.report.night import drawing
from mlxroles.report.night.concerns import is_urgent
from mlxroles.report.night.reading import seconds_of
from mlxroles.report.night.told import opening
from mlxroles.report.night.wording import clock
from mlxroles.text import format_bytes, format_seconds

Doc = Mapping[str, Any]

_MOST_FIRST = 12
_LONG_SENTENCE = 260
_BADGES = {
    "sweep": "ended",
    "failed": "failed",
    "cells": "cells",
    "death": "died",
    "damage": "files",
    "memory": "memory",
    "power": "power",
    "drift": "versions",
    "estimate": "time",
    "largest": "largest",
    "verdict": "verdict",
    "differs": "differs",
    "explained": "control",
}
_BAD, _WARN = ("sweep", "failed", "cells"), ("death", "damage", "memory", "power", "drift")
_STYLE = (
    """\
:root { --one: #1f6cb0; --two: #c05a00; --bad: #b3261e; --warn: #9a6400; --around: #b9d0e6;
  --asleep: #c9ced3 }
@media (prefers-color-scheme: dark) { :root { --one: #6db3ef; --two: #f0a24b; --bad: #ff8a80;
  --warn: #e5b454; --around: #2f4a60; --asleep: #4a545d } }
a { color: var(--accent) }
.contents { font-size: .9rem } .contents a { margin-right: 1rem; white-space: nowrap }
.items { list-style: none; padding: 0; margin: 0 } .items li { display: grid; gap: 0 .9rem;
  grid-template-columns: 5.2rem 1fr; padding: .6rem 0; border-top: 1px solid var(--rule) }
.items li > div { min-width: 0 } .items p, .run p { margin: 0 0 .25rem; overflow-wrap: anywhere }
.items h3, .run h3 { font-size: 1rem; margin: 0 0 .15rem; overflow-wrap: anywhere }
.badge { font-size: .74rem; font-weight: 600; text-align: center; padding: .1rem .3rem;
  border: 1px solid var(--rule); border-radius: 3px; align-self: start; color: var(--dim) }
.badge.bad { color: var(--bad); border-color: var(--bad) }
.badge.warn { color: var(--warn); border-color: var(--warn) }
.badge.good { color: var(--accent); border-color: var(--accent) }
code { display: block; font: .84rem/1.45 ui-monospace, Menlo, "DejaVu Sans Mono", monospace;
  background: var(--panel); border-radius: 3px; padding: .3rem .6rem; margin: .3rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere }
.group > h3 { font-size: 1rem; margin: 1.75rem 0 .5rem } .group > h3 span { color: var(--dim);
  font-weight: 400 }
.group + .group { margin-top: 1.5rem }
.run { display: grid; grid-template-columns: 5.2rem 1fr 13rem; gap: .2rem .9rem;
  padding: .75rem 0; border-top: 1px solid var(--rule) }
.run > div { min-width: 0 } .run .note { margin: 0 } .run details { margin: .2rem 0 }
.run summary, .run details { font-size: .9rem } .run details[open] summary { margin-bottom: .2rem }
.run figure { margin: 0 } .run figcaption { font-size: .76rem; margin-top: .15rem }
@media (max-width: 40rem) { body { padding: 1.25rem .9rem 3rem }
  .run { grid-template-columns: 1fr } .items li { grid-template-columns: 1fr }
  .badge { justify-self: start; padding: .1rem .6rem } .finding { padding: .8rem .9rem } }
@media print { :root { color-scheme: light; --ink: #1d2329; --dim: #5f6b76; --paper: #ffffff;
  --panel: #f4f6f8; --rule: #dce1e6; --accent: #1f6cb0; --one: #1f6cb0; --two: #c05a00;
  --bad: #b3261e; --warn: #9a6400; --around: #b9d0e6; --asleep: #c9ced3 }
  .run, .items li, .hours .row { break-inside: avoid } .contents { display: none }
  svg { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""
    + drawing.STYLE
)
_LEGEND = (
    ("line", "var(--one)", "instruct into base, or the base model"),
    ("line", "var(--two)", "base into instruct, or the instruct model"),
    ("line", "var(--dim)", "controls"),
)
_SHADED = "shaded: 95 % intervals, where there are several prompts; dashed: one half"
_BARS = (
    ("", "var(--accent)", "cells are computed"),
    ("", "var(--around)", "its process as a whole"),
    ("", "var(--warn)", "ended before its time"),
    ("bar", "var(--bad)", "a process died"),
    ("", "var(--asleep)", "the machine was asleep"),
    ("bar", "var(--dim)", "the sweep was started again"),
)


def html(doc: Doc) -> str:
    """The whole page of a ``mlxroles/night/1`` document."""
    title = f"The night of {doc['name']}" if doc["name"] else "A night"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(doc["headline"])}</p>',
        shell.note(_when(doc)),
        _CONTENTS,
        *_first(doc),
        *_found(doc),
        *_ran(doc),
        *_left(doc),
        *_machine(doc),
    ]
    return shell.page(title, parts, style=_STYLE)


_CONTENTS = (
    '<p class="contents"><a href="#first">Look at first</a> <a href="#found">What was found</a> '
    '<a href="#ran">What ran and when</a> <a href="#left">What did not run</a> '
    '<a href="#machine">Machine</a></p>'
)


def _when(doc: Doc) -> str:
    start, end = seconds_of(doc["started"]), seconds_of(doc["finished"])
    parts = []
    if start is not None:
        parts.append(f"Begun {clock(start)}")
    if end is not None:
        parts.append(f"ended {clock(end)}" if start is None else f"ended {clock(end, start=start)}")
    until = seconds_of(doc["until"])
    if until is not None:
        parts.append(f"to end at {clock(until, start=start)}")
    cells = doc["cells"]
    parts.append(f"{cells['done']:,} of {cells['total']:,} cells stored")
    return f"{', '.join(parts)}. Times: {doc['machine']['zone']}."


def _first(doc: Doc) -> Iterator[str]:
    yield '<h2 id="first">Look at first</h2>'
    items = [_concern(one, doc) for one in doc["look_first"] if is_urgent(one["what"])]
    times = [_concern(one, doc) for one in doc["look_first"] if not is_urgent(one["what"])]
    findings = [_surprise(one, doc) for one in doc["findings"]]
    if not items and not findings and not times:
        yield shell.note("Nothing needs a look: nothing failed, and no finding stands out.")
        return
    if not items:
        yield shell.note("Nothing failed and nothing was lost.")
    for whole, more in ((items, "further notes"), ([*findings, *times], "further findings")):
        if whole:
            yield _list(whole[:_MOST_FIRST])
        if len(whole) > _MOST_FIRST:
            rest = whole[_MOST_FIRST:]
            yield shell.folded(f"{len(rest)} {more}", _list(rest))


def _list(items: list[str]) -> str:
    return '<ul class="items">\n{}\n</ul>'.format("\n".join(items))


def _concern(one: Doc, doc: Doc) -> str:
    level = "bad" if one["what"] in _BAD else "warn" if one["what"] in _WARN else ""
    links = _links(doc, one["experiment"], one["log"])
    body = f"<h3>{escape(one['title'])}</h3><p>{escape(one['text'])}</p>"
    return _item(one["what"], level, f"{body}{_command(one['command'])}{links}")


def _surprise(one: Doc, doc: Doc) -> str:
    links = [_link(doc["experiments"][at]["report"], doc["experiments"][at]["name"])
             for at in one["experiments"][:4]]  # fmt: skip
    shown = ", ".join(filter(None, links))
    tail = f'<p class="note">{shown}</p>' if shown else ""
    level = "good" if one["what"] in ("largest", "verdict") else ""
    return _item(one["what"], level, f"<p>{escape(one['text'])}</p>{tail}")


def _item(what: str, level: str, body: str) -> str:
    name = escape(_BADGES.get(what, what))
    return f'<li><span class="badge {level}">{name}</span><div>{body}</div></li>'


def _links(doc: Doc, at: int | None, log: str | None) -> str:
    found = [] if at is None else [_link(doc["experiments"][at]["report"], "its report")]
    found.append(_link(log, "its log"))
    shown = ", ".join(filter(None, found))
    return f'<p class="note">{shown}</p>' if shown else ""


def _link(path: str | None, text: str) -> str:
    """A link to a file beside the page; a path is never read as an address of another kind."""
    if not path:
        return ""
    return f'<a href="./{escape(quote(os.fsencode(path)))}">{escape(text)}</a>'


def _command(command: str | None) -> str:
    return f"<code>{escape(command)}</code>" if command else ""


def _found(doc: Doc) -> Iterator[str]:
    yield '<h2 id="found">What was found</h2>'
    if not doc["experiments"]:
        yield shell.note("No experiment is known.")
        return
    if any(one["figure"] for one in doc["experiments"]):
        yield _keys(_LEGEND, _SHADED)
    for group in doc["groups"]:
        yield '<div class="group">'
        if len(group["experiments"]) > 1:
            varies = " and ".join(group["varies"]) or "nothing"
            yield f"<h3>{escape(group['name'])} <span>by {escape(varies)}</span></h3>"
        for at in group["experiments"]:
            yield _run(doc["experiments"][at])
        yield "</div>"


def _run(one: Doc) -> str:
    level = {"done": "good", "failed": "bad", "waiting": ""}.get(one["status"], "warn")
    name = _link(one["report"], one["name"]) or escape(one["name"])
    text = one["error"] if one["status"] == "failed" else one["sentence"]
    parts = [f"<h3>{name}</h3>", shell.note(_facts(one)), _said(text)]
    if one["problems"]:
        parts.append(shell.note(f"Not readable: {'; '.join(one['problems'])}."))
    if one["notes"]:
        items = "".join(f"<li>{escape(note)}</li>" for note in one["notes"])
        count = len(one["notes"])
        parts.append(shell.folded(f"{count} note{'s' * (count > 1)}", f"<ul>{items}</ul>"))
    figure = ""
    if one["figure"]:
        note = escape(drawing.spark_note(one["figure"]))
        drawn = drawing.spark(one["figure"], one["name"])
        figure = f"<figure>{drawn}<figcaption>{note}</figcaption></figure>"
    return (
        f'<article class="run"><span class="badge {level}">{escape(one["status_text"])}</span>'
        f"<div>{''.join(filter(None, parts))}</div><div>{figure}</div></article>"
    )


def _facts(one: Doc) -> str:
    parts = [one["kind"]]
    if one["cells"] is not None:
        parts.append(f"{one['done']:,} of {one['cells']:,} cells")
    if one["failed"]:
        parts.append(f"{one['failed']:,} failed")
    if one["seconds"]:
        parts.append(_took(one))
    elif one["estimate"]:
        parts.append(f"estimate {format_seconds(one['estimate'])}")
    if one["deaths"]:
        parts.append(f"died {one['deaths']} time{'s' * (one['deaths'] != 1)}")
    return " · ".join(filter(None, parts))


def _took(one: Doc) -> str:
    """The time of an experiment beside what was thought of it."""
    text = format_seconds(one["seconds"])
    if not one["estimate"]:
        return text
    thought = f"estimate {format_seconds(one['estimate'])}"
    took = one["measured"]
    if took is None or took == one["seconds"]:
        return f"{text} ({thought})"
    return f"{text}, of it {format_seconds(took)} the run itself ({thought})"


def _said(text: str | None) -> str:
    """A finding; of a long one the beginning, the rest folded."""
    if not text:
        return ""
    if len(text) <= _LONG_SENTENCE:
        return f"<p>{escape(text)}</p>"
    start = opening(text)
    rest = text[len(start) :].strip()
    if not rest:
        return f"<p>{escape(text)}</p>"
    return f"<p>{escape(start)}</p>{shell.folded('the rest of it', f'<p>{escape(rest)}</p>')}"


def _ran(doc: Doc) -> Iterator[str]:
    yield '<h2 id="ran">What ran and when</h2>'
    if doc["hours"] is None:
        yield shell.note("Nothing is known of when anything ran.")
        return
    yield drawing.timeline(doc)
    yield _keys(_BARS)


def _keys(keys: Sequence[tuple[str, str, str]], more: str = "") -> str:
    """What the colours of a figure mean."""
    shown = [
        f'<span class="entry"><span class="key {kind}" style="background:{color}"></span>'
        f"{escape(text)}</span>"
        for kind, color, text in keys
    ]
    return f'<p class="note keys">{" ".join(shown)} {escape(more)}</p>'


def _left(doc: Doc) -> Iterator[str]:
    heading = "What is still to run" if doc["is_running"] else "What did not run"
    yield f'<h2 id="left">{heading}</h2>'
    if not doc["not_run"]:
        yield shell.note("Everything ran to its end.")
        return
    items = []
    for one in doc["not_run"]:
        level = "bad" if one["status"] == "failed" else "warn"
        name, why = escape(one["name"]), escape(one["why"])
        items.append(
            f'<li><span class="badge {level}">{escape(one["status"])}</span>'
            f"<div><h3>{name}</h3><p>{why}</p></div></li>"
        )
    yield _list(items)
    if doc["is_running"]:
        return
    commands = doc["commands"]
    if commands["continue"]:
        yield shell.note("This goes on, and tries again what has failed:")
        yield _command(commands["continue"])
    if commands["sweep"] and commands["sweep"] != commands["continue"]:
        yield shell.note("Or the command of the sweep itself:")
        yield _command(commands["sweep"])


def _machine(doc: Doc) -> Iterator[str]:
    yield '<h2 id="machine">Machine and versions</h2>'
    machine = doc["machine"]
    found = [("machine", machine["host"]), ("device", ", ".join(machine["device"]))]
    if machine["peak"] is not None:
        limit = machine["limit"]
        of = "" if limit is None else f" of {format_bytes(limit)} allowed"
        found.append(("memory, peak", f"{format_bytes(machine['peak'])}{of}"))
    if machine["least_free"] is not None:
        found.append(("memory, least free", format_bytes(machine["least_free"])))
    for name, values in machine["versions"].items():
        found.append((name, ", ".join(values)))
    for rank in machine["ranks"]:
        where = f"{rank.get('host', '?')}, {rank.get('cells', '?')} cells"
        gone = "" if rank.get("alive") == "True" else ", gone at the end"
        found.append((f"machine {rank.get('rank', '?')}", f"{where}{gone}"))
    yield shell.facts([(name, value) for name, value in found if value])
    shown = drawing.loads(doc)
    yield shown or shell.note("No run was long enough for vital signs (memory and speed).")
