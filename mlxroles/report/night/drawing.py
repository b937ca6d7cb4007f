"""Small figures of a night as inline SVG: the curves of a run, the hours, memory and speed.

Lines take their colours from the page's style, so that they follow light and dark. All text is
HTML beside them, so that it can be read at any width.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mlxroles.report.night.wording import clock
from mlxroles.text import format_bytes, format_seconds

Doc = Mapping[str, Any]

_WIDTH, _HEIGHT, _MARGIN = 168.0, 56.0, 4.0
_LONG = 1000.0
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
_MOST_TICKS = 7
_DAY_STEP = 14400
"""Seconds between two times from which on they are shown with their day."""

STYLE = """\
svg { display: block } .spark { width: 100%; max-width: 13rem; height: auto }
.spark line { stroke: var(--rule); stroke-width: 1 }
.spark .half { stroke-dasharray: 2 3 }
.spark path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.spark .control { stroke: var(--dim); stroke-width: 1; opacity: .65 }
.spark .first { stroke: var(--one) } .spark .second { stroke: var(--two) }
.spark circle.first { fill: var(--one) } .spark circle.second { fill: var(--two) }
.spark circle.control { fill: var(--dim) }
.spark .band { stroke: none; opacity: .18 }
.spark .band.first { fill: var(--one) } .spark .band.second { fill: var(--two) }
.hours { margin: 1rem 0 } .hours .row, .axis { display: grid; align-items: center;
  grid-template-columns: min(17rem, 30vw) 1fr 5.5rem; gap: 0 .75rem }
.hours .row { padding: .1rem 0 } .hours .row > span { font-size: .84rem; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap }
.hours .row > span:last-child { color: var(--dim); text-align: right;
  font-variant-numeric: tabular-nums }
.hours svg { width: 100%; height: 1.15rem; background: var(--panel); border-radius: 2px }
.hours svg.load { height: 3rem }
.hours .around { fill: var(--around) } .hours .finished { fill: var(--accent) }
.hours .running { fill: var(--accent); opacity: .6 } .hours .cut { fill: var(--warn) }
.hours .died { fill: var(--warn) } .hours .gone { fill: var(--bad) }
.hours .asleep { fill: var(--asleep) }
.hours line { vector-effect: non-scaling-stroke; stroke-width: 1.5; stroke: var(--dim) }
.hours line.death { stroke: var(--bad); stroke-width: 3 }
.hours line.until { stroke-dasharray: 3 3 }
.hours path { fill: none; stroke: var(--accent); stroke-width: 1.5;
  vector-effect: non-scaling-stroke }
.ticks { grid-column: 2; position: relative; height: 1.3rem; font-size: .8rem;
  color: var(--dim) }
.ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap }
.ticks span.start { transform: none } .ticks span.end { transform: translateX(-100%) }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px;
  vertical-align: -.08rem; margin-right: .3rem }
.entry { white-space: nowrap; margin-right: .9rem }
.key.line { height: .2rem; vertical-align: .2rem } .key.bar { width: .2rem }
@media (max-width: 40rem) { .hours .row, .axis { grid-template-columns: 1fr 5.5rem }
  .hours .row > span:first-child { grid-column: 1 / -1 } .ticks { grid-column: 1 }
  .ticks span.odd, .ticks span.near { display: none } }
"""


def spark(figure: Doc, name: str) -> str:
    """The curves of a run, layer by layer; ``name`` says whose they are."""
    layers = [point[0] for curve in figure["curves"] for point in curve["points"]]
    first, last = min(layers), max(layers)
    low, high = float(figure["low"]), float(figure["high"])

    def x(layer: float) -> float:
        share = (layer - first) / (last - first) if last > first else 0.5
        return round(_MARGIN + share * (_WIDTH - 2 * _MARGIN), 1)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / ((high - low) or 1.0)
        return round(_HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN), 1)

    parts = []
    for at in figure["lines"]:
        kind = ' class="half"' if at not in (0.0, 1.0) else ""
        parts.append(f'<line{kind} x1="0" x2="{_WIDTH}" y1="{y(at)}" y2="{y(at)}"/>')
    for curve in figure["curves"]:
        role = curve["role"] if curve["role"] in ("first", "second") else "control"
        if role != "control":
            parts += _bands(curve["points"], role, x, y)
        parts += _strokes(curve["points"], role, x, y)
    label = escape(f"{name}: {figure['label']} per layer, {_listed(figure)}")
    body = "".join(parts)
    return (
        f'<svg class="spark" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="{label}">{body}</svg>'
    )


def spark_note(figure: Doc) -> str:
    """What stands below the curves: measure, range and layers."""
    layers = [point[0] for curve in figure["curves"] for point in curve["points"]]
    form = ".2f" if float(figure["high"]) < 0.5 else ".1f"
    span = (
        f"layer {min(layers)}"
        if min(layers) == max(layers)
        else (f"layers {min(layers)}-{max(layers)}")
    )
    low, high = (f"{figure[end]:z{form}}" for end in ("low", "high"))
    return f"{figure['label']}, {low} to {high}; {span}"


def timeline(doc: Doc) -> str:
    """The hours of a night: a row per experiment, and the axis."""
    axis = doc["hours"]
    start, end = float(axis["start"]), float(axis["end"])
    lines = [_mark(mark, start, end) for mark in axis["marks"] if mark["kind"] != "finished"]
    behind = "".join(filter(None, lines))
    rows = [_axis(start, end)]
    for one, row in zip(doc["experiments"], axis["rows"], strict=True):
        bars = "".join(_bars(row, one["status"], start, end))
        took = format_seconds(one["seconds"]) if one["seconds"] else "–"
        rows.append(_row(one["name"], f"{bars}{behind}", took, f"{one['name']}, {took}"))
    return '<div class="hours">\n{}\n</div>'.format("\n".join(rows))


def loads(doc: Doc) -> str:
    """Memory and speed over the night, on the same axis; nothing where nothing was measured."""
    axis = doc["hours"]
    if axis is None:
        return ""
    start, end = float(axis["start"]), float(axis["end"])
    shown = []
    for title, name, form in (
        ("memory in use", "memory", format_bytes),
        ("layer calls per second", "speed", lambda value: f"{value:,.0f}/s"),
    ):
        most = max((p[1] for load in doc["loads"] for p in load[name]), default=0.0)
        if most <= 0:
            continue
        paths = [_path(load[name], most, start, end) for load in doc["loads"]]
        label = f"{title}, at most {form(most)}"
        shown.append(_row(title, "".join(paths), f"≤ {form(most)}", label, kind="load"))
    if not shown:
        return ""
    return '<div class="hours">\n{}\n{}\n</div>'.format("\n".join(shown), _axis(start, end))


def _listed(figure: Doc) -> str:
    names = [c["name"] for c in figure["curves"] if c["role"] != "control"]
    rest = len(figure["curves"]) - len(names)
    return " and ".join(names) + (" with controls" if rest else "")


def _strokes(points: Sequence[Any], role: str, x: Any, y: Any) -> Iterator[str]:
    """A line that is broken where there is no number; a dot for a layer that stands alone."""
    for piece in _pieces(points, 1):
        if len(piece) == 1:
            at, value = piece[0][0], piece[0][1]
            size = 1.5 if role == "control" else 2.5
            yield f'<circle class="{role}" cx="{x(at)}" cy="{y(value)}" r="{size}"/>'
        else:
            steps = " ".join(f"{x(p[0])},{y(p[1])}" for p in piece)
            yield f'<path class="{role}" d="M{steps}"/>'


def _bands(points: Sequence[Any], role: str, x: Any, y: Any) -> Iterator[str]:
    for piece in _pieces([p for p in points if p[3] is not None or p[2] is None], 2):
        if len(piece) > 1:
            there = [f"{x(p[0])},{y(p[2])}" for p in piece]
            back = [f"{x(p[0])},{y(p[3])}" for p in reversed(piece)]
            yield f'<path class="band {role}" d="M{" ".join(there + back)}Z"/>'


def _pieces(points: Sequence[Any], at: int) -> Iterator[list[Any]]:
    piece: list[Any] = []
    for point in points:
        if point[at] is None:
            if piece:
                yield piece
            piece = []
        else:
            piece.append(point)
    if piece:
        yield piece


def _row(name: str, body: str, end: str, label: str, *, kind: str = "bars") -> str:
    height = 60 if kind == "load" else 20
    return (
        f'<div class="row"><span title="{escape(name)}">{escape(name)}</span>'
        f'<svg class="{kind}" viewBox="0 0 {_LONG:g} {height}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(label)}">{body}</svg><span>{escape(end)}</span></div>'
    )


def _bars(row: Doc, status: str, start: float, end: float) -> Iterator[str]:
    def bar(kind: str, since: float, until: float, top: float, height: float) -> str:
        left, right = _at(since, start, end), _at(until, start, end)
        width = max(2.0, right - left)
        return (
            f'<rect class="{kind}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{height}"/>'
        )

    kind = "gone" if status == "failed" and not row["spans"] else "around"
    for begun, ended in row["around"]:
        yield bar(kind, begun, ended, 4, 12)
    for span in row["spans"]:
        how = span["how"] if span["how"] in ("finished", "died", "running") else "cut"
        yield bar(how, span["start"], span["end"], 4, 12)
    for mark in row["marks"]:
        if mark["kind"] == "slept":
            yield bar("asleep", max(start, mark["at"] - mark["seconds"]), mark["at"], 0, 20)
        elif mark["kind"] == "died":
            at = _at(mark["at"], start, end)
            yield f'<line class="death" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="20"/>'


def _mark(mark: Doc, start: float, end: float) -> str:
    at = _at(mark["at"], start, end)
    kind = "until" if mark["kind"] == "until" else "session"
    return f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="20"/>'


def _path(points: Sequence[Sequence[float]], most: float, start: float, end: float) -> str:
    if not points:
        return ""
    steps = [f"{_at(at, start, end):.1f},{57 - 54 * value / most:.1f}" for at, value in points]
    if len(steps) == 1:
        steps = [steps[0], steps[0].replace(",", ".1,", 1) if "." not in steps[0] else steps[0]]
    return f'<path d="M{" ".join(steps)}"/>'


def _axis(start: float, end: float) -> str:
    span = end - start
    step = next((s for s in _STEPS if span / s <= _MOST_TICKS), _STEPS[-1])
    while span / step > _MOST_TICKS:
        step *= 2
    first = start - start % step + step
    ticks = [first + n * step for n in range(int((end - first) // step) + 1) if first <= end]
    shown = []
    for n, at in enumerate(ticks):
        share = 100 * (at - start) / span
        if 9 < share < 91:
            odd = ' class="odd"' if n % 2 else ' class="near"' if not 28 < share < 80 else ""
            shown.append(f'<span{odd} style="left:{share:.2f}%">{_time(at, start, step)}</span>')
    body = (
        f'<span class="start" style="left:0">{_time(start, start, step)}</span>'
        f'{"".join(shown)}<span class="end" style="left:100%">{_time(end, start, step)}</span>'
    )
    return f'<div class="axis"><div class="ticks">{body}</div></div>'


def _time(at: float, start: float, step: float) -> str:
    text = clock(at, start=start if step >= _DAY_STEP else at)
    return escape(text if step >= 60 else f"{text}:{int(at % 60):02d}")


def _at(moment: float, start: float, end: float) -> float:
    return _LONG * min(1.0, max(0.0, (moment - start) / (end - start)))
