"""The morning report as short Markdown, from the document of a night."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlxroles.report.markup import escape
from mlxroles.report.night.concerns import is_urgent
from mlxroles.report.night.told import opening
from mlxroles.text import format_seconds

Doc = Mapping[str, Any]


def markdown(doc: Doc) -> str:
    """Headline, what to look at first, findings and what did not run; all text escaped."""
    name = f"The night of {doc['name']}" if doc["name"] else "A night"
    parts = [f"# {escape(name)}", escape(doc["headline"])]
    for heading, lines in (
        ("Look at first", list(_first(doc))),
        ("What was found", list(_found(doc))),
        ("What is still to run" if doc["is_running"] else "What did not run", list(_left(doc))),
    ):
        if lines:
            parts += [f"## {heading}", "\n".join(lines)]
    command = doc["commands"]["continue"]
    if doc["not_run"] and command and not doc["is_running"]:
        parts += ["This goes on, and tries again what has failed:", _code(command)]
    return "\n\n".join(parts) + "\n"


def _first(doc: Doc) -> Iterator[str]:
    concerns = [(is_urgent(one["what"]), one) for one in doc["look_first"]]
    told = "- **{}**: {}"
    yield from (told.format(*_told(one)) for urgent, one in concerns if urgent)
    yield from (f"- {escape(one['text'])}" for one in doc["findings"])
    yield from (told.format(*_told(one)) for urgent, one in concerns if not urgent)


def _told(one: Doc) -> tuple[str, str]:
    return escape(one["title"]), escape(one["text"])


def _found(doc: Doc) -> Iterator[str]:
    if doc["experiments"]:
        yield "| experiment | status | cells | time | found |"
        yield "| --- | --- | ---: | ---: | --- |"
    for one in doc["experiments"]:
        cells = "" if one["cells"] is None else f"{one['done']}/{one['cells']}"
        found = one["error"] if one["status"] == "failed" else one["sentence"]
        took = format_seconds(one["seconds"]) if one["seconds"] else ""
        line = [one["name"], one["status_text"], cells, took, opening(found or "")]
        yield f"| {' | '.join(map(escape, line))} |"


def _left(doc: Doc) -> Iterator[str]:
    for one in doc["not_run"]:
        yield f"- {escape(one['name'])} ({escape(one['status'])}): {escape(one['why'])}"


def _code(text: str) -> str:
    """An indented block, in which nothing is a mark."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
