"""When a night's experiments ran: spans, deaths, sleep, sessions, and the vital signs in between.

From the histories of the runs and the events of the sweep. Times are seconds since 1970.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mlxroles.events import Died, RunFinished, RunStarted, Slept, Vitals
from mlxroles.report.night.reading import Night, Run, number, one_line, seconds_of

_LARGEST_GAP = 60.0
"""Seconds between two vital signs beyond which no speed is worked out."""
_MOST_POINTS = 400
_SAME = 5.0
"""Seconds between the two accounts of one death, at most."""
_BEGINS = ": begins"
_DIED = re.compile(r"(.*): its process ended \((.*)\); it is started again", re.DOTALL)


class Span(NamedTuple):
    """A process that worked on a run."""

    start: float
    end: float
    how: str
    """``finished``, ``died``, ``cut`` (no word of its end) or ``running``."""


class Mark(NamedTuple):
    """Something that happened at a moment, or until it."""

    at: float
    kind: str
    """``died``, ``slept``, ``session``, ``finished`` or ``until``."""
    text: str
    seconds: float = 0.0


@dataclass
class Row:
    """One experiment on the time axis."""

    around: list[tuple[float, float]] = field(default_factory=list)
    """When the sweep was busy with it, start-up and statistics included."""
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


@dataclass
class Hours:
    """The time axis of a night."""

    start: float
    end: float
    rows: list[Row]
    """As the entries of the state."""
    marks: list[Mark]
    """Of the sweep as a whole."""


class Load(NamedTuple):
    """Memory and speed of one run."""

    peak: float | None
    """Bytes."""
    limit: float | None
    least_free: float | None
    memory: list[tuple[float, float]]
    """Time and bytes that MLX held."""
    speed: list[tuple[float, float]]
    """Time and layer calls per second."""


def hours(night: Night) -> Hours | None:
    """The time axis; None where nothing is known to have happened."""
    rows = [_row(run) for run in night.runs]
    _surround(night, rows)
    marks = list(_marks(night))
    times = [t for row in rows for t in _times(row)]
    times += [m.at for m in marks if m.kind == "session"]
    begun, ended = seconds_of(night.state.started), seconds_of(night.state.finished)
    times += [t for t in (begun, ended) if t is not None]
    if len(times) < 2:
        return None
    start, end = min(times), max(times)
    return Hours(start, max(end, start + 1.0), rows, [m for m in marks if start <= m.at <= end])


def load_of(run: Run) -> Load:
    """Memory and speed, from the vital signs in the history."""
    memory: list[tuple[float, float]] = []
    speed: list[tuple[float, float]] = []
    peaks, limits, free = [], [], []
    before: tuple[float, float] | None = None
    for line in run.lines:
        if isinstance(line.event, RunStarted):
            before = None
        if not isinstance(line.event, Vitals):
            continue
        at, event = seconds_of(line.time) or 0.0, line.event
        active, calls = number(event.active), number(event.layer_calls)
        peaks.append(number(event.peak))
        limits.append(number(event.limit))
        free.append(number(event.free))
        if active is not None:
            memory.append((at, active))
        if calls is not None:
            if before is not None and 0 < at - before[0] < _LARGEST_GAP and calls >= before[1]:
                speed.append((at, (calls - before[1]) / (at - before[0])))
            before = (at, calls)
    known = [[v for v in values if v is not None] for values in (peaks, limits, free)]
    return Load(
        max(known[0], default=None),
        known[1][-1] if known[1] else None,
        min(known[2], default=None),
        _thinned(memory),
        _thinned(speed),
    )


def wall(night: Night, axis: Hours | None) -> float | None:
    """Seconds from the sweep's beginning to its end, or to the last that was heard of it.

    Of a sweep that was begun again, what its experiments took: it may have lain still for days.
    """
    spent = sum(entry.seconds for entry in night.state.entries)
    if night.state.sessions > 1 and spent:
        return spent
    start = seconds_of(night.state.started)
    end = seconds_of(night.state.finished)
    if end is None and axis is not None:
        end = axis.end
    return None if start is None or end is None else max(0.0, end - start)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Few enough points for a small figure; of each stretch the largest."""
    step = -(-len(points) // _MOST_POINTS) or 1
    return [max(points[at : at + step], key=lambda p: p[1]) for at in range(0, len(points), step)]


def _row(run: Run) -> Row:
    row = Row()
    begun: float | None = None
    last = 0.0
    for line in run.lines:
        at = seconds_of(line.time)
        if at is None or line.rank:
            continue
        match line.event:
            case RunStarted():
                if begun is not None:
                    row.spans.append(Span(begun, max(begun, last), "cut"))
                begun = at
            case Died(_, cause):
                row.marks.append(Mark(at, "died", one_line(cause, 120)))
                if begun is not None:
                    row.spans.append(Span(begun, at, "died"))
                begun = None
            case RunFinished():
                if begun is not None:
                    row.spans.append(Span(begun, at, "finished"))
                begun = None
            case Slept(seconds):
                row.marks.append(Mark(at, "slept", "asleep", number(seconds) or 0.0))
        last = at
    if begun is not None:
        row.spans.append(Span(begun, max(begun, last), "running" if run.is_alive else "cut"))
    return row


def _surround(night: Night, rows: Sequence[Row]) -> None:
    """When the sweep was busy with which experiment, by what it told of them itself."""
    names = {entry.name: at for at, entry in enumerate(night.state.entries)}
    heard = sorted(t for row in rows for span in row.spans for t in (span.start, span.end))
    row: Row | None = None
    begun = last = 0.0

    def end(at: float) -> None:
        if row is not None:
            row.around.append((begun, max(begun, at)))

    for event in night.state.events:
        at, text = seconds_of(event.get("time")), str(event.get("text", ""))
        if at is None:
            continue
        died = _DIED.fullmatch(text)
        if text == f"goes on with {night.state.name}":
            # the process before it has ended in silence, at some time after its last word
            end(max([last, *(t for t in heard if last < t < at)]))
            row = None
        elif text.endswith(_BEGINS) and text.removesuffix(_BEGINS) in names:
            end(at)
            row, begun = rows[names[text.removesuffix(_BEGINS)]], at
        elif died is not None and died[1] in names:
            _add_death(rows[names[died[1]]], Mark(at, "died", one_line(died[2], 120)))
        last = at
    finished = seconds_of(night.state.finished)
    end(max([last, *(t for t in heard if t > last)]) if finished is None else finished)


def _add_death(row: Row, mark: Mark) -> None:
    """Adds a death that the run's own history does not tell of."""
    if all(other.kind != "died" or abs(other.at - mark.at) > _SAME for other in row.marks):
        row.marks.append(mark)


def _times(row: Row) -> Iterator[float]:
    for times in row.around:
        yield from times
    for span in row.spans:
        yield from (span.start, span.end)
    yield from (mark.at for mark in row.marks)


def _marks(night: Night) -> Iterator[Mark]:
    name = night.state.name
    for event in night.state.events:
        at = seconds_of(event.get("time"))
        if at is not None and str(event.get("text", "")) == f"goes on with {name}":
            yield Mark(at, "session", "gone on with")
    until, finished = seconds_of(night.state.until), seconds_of(night.state.finished)
    if until is not None:
        yield Mark(until, "until", "the end that was set")
    if finished is not None:
        yield Mark(finished, "finished", "over")
