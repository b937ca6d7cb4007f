"""How a night went, in words: headline, why something did not run, and the commands that help."""

import os
import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from mlxroles.report.night.reading import Night, one_line
from mlxroles.store.sweep_state import Entry
from mlxroles.text import format_seconds, safe_text

STATUSES = {
    "done": "done",
    "failed": "failed",
    "left": "left at the deadline",
    "stopped": "stopped",
    "running": "under way",
    "waiting": "not begun",
}
"""Status of an entry -> what a reader is told."""
_NAMED = re.compile(r"`(mlxroles [A-Za-z0-9 ._/=@:,+-]+)`")


def counted(count: int, what: str) -> str:
    """``1 cell``, ``2 cells``; of a word in -s or -sh with -es."""
    return f"{count} {what}{'es' if what.endswith('s') else 's'}" if count != 1 else f"1 {what}"


def status_of(night: Night, at: int) -> str:
    """The status of an entry in words; what a killed sweep had under way was cut off."""
    status = night.state.entries[at].status
    run = night.runs[at]
    if status == "running" and not night.is_running and not run.is_alive:
        return "cut off"
    if status == "left" and night.state.until is None and night.state.interrupted != "deadline":
        return "not finished"
    return STATUSES.get(status, one_line(status, 20))


def headline(night: Night, wall: float | None, failed_cells: int) -> str:
    """The whole night in a sentence."""
    state = night.state
    total = len(state.entries)
    words = [status_of(night, at) for at in range(total)]
    done = words.count("done")
    took = "" if wall is None else f" in {format_seconds(wall)}"
    over = f" over {state.sessions} sessions" if state.sessions > 1 and took else ""
    start = f"{done} of {counted(total, 'experiment')} done{took}{over}"
    if not total:
        start = f"No experiment is known{took and ' after'}{took.removeprefix(' in')}"
    order = dict.fromkeys((*STATUSES.values(), "cut off", "not finished", *words))
    parts = [f"{n} {word}" for word in order if word != "done" and (n := words.count(word))]
    if failed_cells:
        parts.append(f"{counted(failed_cells, 'cell')} failed")
    if state.deaths:
        again = " and was started again" if state.deaths == 1 else " and were started again"
        gone = any(e.status == "failed" and e.deaths for e in state.entries)
        parts.append(f"{counted(state.deaths, 'process')} died{'' if gone else again}")
    if state.slept >= 1:
        parts.append(f"the machine slept {format_seconds(state.slept)}")
    text = f"{start}; {', '.join(parts)}" if parts else start
    return f"{text}. {_now(night)}".strip() if _now(night) else f"{text}."


def _now(night: Night) -> str:
    if night.is_running:
        return "The sweep is still going on."
    if night.state.finished is None:
        return "The sweep did not come to its end: its process was killed, or the machine went off."
    if night.state.interrupted and night.state.interrupted != "deadline":
        return f"The sweep was stopped by {one_line(night.state.interrupted, 20)}."
    return ""


def reason(night: Night, at: int) -> str:
    """Why an experiment did not run to its end."""
    entry = night.state.entries[at]
    if entry.status == "failed":
        return one_line(entry.error) or "it gave no reason"
    if entry.status == "left":
        return "the deadline came first" if night.state.until else "it did not come to its end"
    if entry.status == "stopped":
        return f"stopped by {one_line(night.state.interrupted, 20) or 'a signal'}"
    if night.is_running:
        return "its turn has not come yet" if entry.status == "waiting" else "it is running now"
    if entry.status == "running":
        return "the sweep ended in the middle of it"
    return "the sweep ended before its turn"


def proceed(night: Night) -> str | None:
    """The command that goes on with the sweep and tries again what has failed.

    A sweep in which nothing is left is begun again by its own command.
    """
    states = {entry.status for entry in night.state.entries}
    if night.state.finished is None or states - {"done", "failed"}:
        return safe_text(shlex.join(["mlxroles", "resume", str(night.path.absolute())]))
    return again(night)


def again(night: Night) -> str | None:
    """The command of the sweep itself; None where it is not known."""
    return in_place(_words(night.queue.get("argv")), night)


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []


def alone(entry: Entry, night: Night) -> str | None:
    """The command of one experiment, by itself."""
    return in_place([word for word in entry.argv if word != "--plain"], night)


def in_place(argv: Sequence[str], night: Night) -> str | None:
    """A command with the folder that it is given in; None where there is none."""
    if not argv:
        return None
    command = shlex.join(["mlxroles", *argv])
    cwd = night.queue.get("cwd")
    return safe_text(f"cd {shlex.quote(cwd)} && {command}" if isinstance(cwd, str) else command)


def cure(error: str | None) -> str | None:
    """The command that an error itself names; only plain words, nothing a shell would act on."""
    found = _NAMED.search(error or "")
    return found[1].strip() if found else None


def clock(at: float, *, start: float | None = None) -> str:
    """A time of day by the clock of this machine; with its date where that is not the start's."""
    then = datetime.fromtimestamp(at).astimezone()
    if start is None:
        return f"{then:%Y-%m-%d %H:%M}"
    is_same_day = datetime.fromtimestamp(start).astimezone().date() == then.date()
    return f"{then:%H:%M}" if is_same_day else f"{then:%d %b %H:%M}"


def relative(target: Path, folder: Path) -> str | None:
    """A path from a folder to a file that is there, with slashes; None where it is not."""
    try:
        if not target.is_file():
            return None
        return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
    except (OSError, ValueError):
        return None
