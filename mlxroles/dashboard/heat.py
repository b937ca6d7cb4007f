"""Maps of effects, layer by position or layer by head, as blocks of colour that fill in.

With a row per layer each cell carries its sign as a character on its colour; where the height is
short and there are colours, half blocks put two layers into a row. Without colours characters
carry the value. A row ends with its strongest cell: which way, how far, where.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from rich.style import Style
from rich.text import Text

from mlxroles import documents
from mlxroles.dashboard import colors
from mlxroles.dashboard.bars import COLORS
from mlxroles.dashboard.curves import grouped
from mlxroles.dashboard.layout import beside, clipped
from mlxroles.dashboard.progress import Progress
from mlxroles.text import format_number, safe_text

_SIDE_BY_SIDE = 64
_NOTE = 11
_NOTED = 44
_WIDEST_CELL = 3
_ENDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_UPPER = "▀"
_MANY = ("256", "true")
_DIM, _RED, _NULL = Style(dim=True), Style(color="red", bold=True), Style()
WAITING, BROKEN = "·", "✗"

Values = Mapping[tuple[int, int], float]


class _Frame(NamedTuple):
    """Which cells share a place on the screen, and how places look."""

    rows: list[list[int]]
    """Layers by row; pairs of rows where half blocks are used."""
    columns: list[list[int]]
    cell: int
    """Characters per cell."""
    label: int
    has_notes: bool
    is_half: bool
    end: float
    """The effect at the end of the scale."""


def end_of(values: Sequence[Values]) -> float:
    """A round end for the scale, at or above the strongest value."""
    known = [abs(v) for each in values for v in each.values() if not math.isnan(v)]
    most = max(known, default=0.0)
    return next((end for end in _ENDS if most <= end), math.ceil(most))


def heights(progress: Progress, width: int, depth: colors.Depth) -> list[int]:
    """Rows that the maps of a run can fill, with fewer and fewer layers per row."""
    count = len(progress.layers)
    groups = {math.ceil(count / size) for size in range(1, count + 1)}
    if depth in _MANY:
        groups = {count, *(math.ceil(each / 2) for each in groups)}
    above = 1 if width >= _SIDE_BY_SIDE else max(len(progress.directions), 1)
    return sorted(above * (each + 2) + 1 for each in groups)


def maps(progress: Progress, width: int, height: int, depth: colors.Depth) -> list[Text]:
    """The maps of both directions and, where there is room, what their marks stand for."""
    found = [progress.effects(direction) for direction in progress.directions]
    end = end_of(found)
    count = max(len(found), 1)
    legend = height >= 7
    room = height - legend
    if width >= _SIDE_BY_SIDE and count > 1:
        each = (width - 3 * (count - 1)) // count
        drawn: list[Text] = []
        for at, direction in enumerate(progress.directions):
            one = _map(progress, direction, found[at], end, (each, room, depth))
            drawn = one if not at else beside(drawn, one, at * (each + 3))
    else:
        drawn = []
        for at, direction in enumerate(progress.directions):
            rows = (room + at) // count
            drawn += _map(progress, direction, found[at], end, (width, rows, depth))
    if legend:
        drawn.append(_legend(progress, end, depth))
    return [clipped(text, width) for text in drawn][:height]


def _map(
    progress: Progress,
    direction: str,
    values: Values,
    end: float,
    place: tuple[int, int, colors.Depth],
) -> list[Text]:
    width, height, depth = place
    frame = _frame(progress, width, height - 2, end, depth)
    lines = [_heading(progress, direction, width)]
    step = 2 if frame.is_half else 1
    for at in range(0, len(frame.rows), step):
        lines.append(_row(frame, frame.rows[at : at + step], values, depth))
    if height > 2:
        lines.append(_ticks(progress, frame))
    return [clipped(text, width) for text in lines[: max(height, 0)]]


def _frame(progress: Progress, width: int, height: int, end: float, depth: colors.Depth) -> _Frame:
    layers, parts = list(progress.layers), progress.parts
    height = max(height, 1)
    is_half = len(layers) > height and depth in _MANY
    rows = grouped(layers, 2 * height if is_half else height)
    digits = len(str(max(layers)))
    is_shared = is_half or len(rows) < len(layers)
    label = (2 * digits + 1 if is_shared else digits) + 1
    has_notes = width >= _NOTED
    room = max(width - label - (_NOTE if has_notes else 0), 1)
    columns = grouped(parts, room)
    cell = max(min(room // max(len(columns), 1), _WIDEST_CELL), 1)
    return _Frame(rows, columns, cell, label, has_notes, is_half, end)


def _heading(progress: Progress, direction: str, width: int) -> Text:
    text = Text(documents.arrow(direction), style=f"bold {COLORS.get(direction, '')}".strip())
    level = progress.baseline(direction)
    if not math.isnan(level):
        known = f"  unpatched {format_number(level)}"
        if text.cell_len + len(known) <= width:
            text.append(known, Style.null())
    return text


def _strongest(values: Values, layers: Sequence[int], parts: Sequence[int]) -> float | None:
    """The value farthest from 0; NaN where none is a number, None where none has landed."""
    if len(layers) == len(parts) == 1:
        return values.get((layers[0], parts[0]))
    found = [values[y, x] for y in layers for x in parts if (y, x) in values]
    numbers = [value for value in found if not math.isnan(value)]
    if numbers:
        return max(numbers, key=abs)
    return math.nan if found else None


def _row(frame: _Frame, pair: Sequence[Sequence[int]], values: Values, depth: colors.Depth) -> Text:
    layers = [layer for group in pair for layer in group]
    name = str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
    text = Text(name.rjust(frame.label - 1) + " ", no_wrap=True)
    places = []
    for parts in frame.columns:
        found = [_strongest(values, group, parts) for group in pair]
        places.append(_halves(found, frame, depth) if frame.is_half else _cell(found, frame, depth))
    for style, run in groupby(places, key=itemgetter(1)):
        text.append("".join(char for char, _ in run), style)
    if frame.has_notes:
        text.append_text(_note(values, pair, frame))
    return text


def _cell(found: Sequence[float | None], frame: _Frame, depth: colors.Depth) -> tuple[str, Style]:
    value = found[0]
    if value is None:
        return WAITING.ljust(frame.cell), _DIM
    if math.isnan(value):
        return BROKEN.ljust(frame.cell), _RED
    share = value / frame.end
    if depth == "none":
        return colors.letter(share).ljust(frame.cell), _NULL
    sign = " "
    if abs(value) > documents.MARKED_EFFECT:
        sign = "+" if value > 0 else "-"
    return sign.center(frame.cell), colors.diverging(share, depth)


def _halves(found: Sequence[float | None], frame: _Frame, depth: colors.Depth) -> tuple[str, Style]:
    """Two layers in one row: the upper one as ink, the lower one as paper."""
    upper, lower = found[0], found[1] if len(found) > 1 else None
    if upper is None and lower is None:
        return WAITING.ljust(frame.cell), _DIM
    ends = [None if value is None else value / frame.end for value in (upper, lower)]
    if ends[0] is None:
        return "▄" * frame.cell, colors.pair(ends[1], None)
    return _UPPER * frame.cell, colors.pair(*ends)


def _note(values: Values, pair: Sequence[Sequence[int]], frame: _Frame) -> Text:
    """The strongest cell of the layers: which way it moved, how far, and where."""
    most, at = 0.0, -1
    for layer in (layer for group in pair for layer in group):
        for part in (part for group in frame.columns for part in group):
            value = values.get((layer, part), math.nan)
            if abs(value) > abs(most) or (at < 0 and not math.isnan(value)):
                most, at = value, part
    if at < 0:
        return Text(" " * _NOTE)
    if abs(most) <= documents.MARKED_EFFECT:
        return Text("  under .01".ljust(_NOTE)[:_NOTE], style="dim")
    sign = "▲" if most > 0 else "▼"
    size = f"{abs(most):.2f}".removeprefix("0")
    return Text(f" {sign}{size} @{at}".ljust(_NOTE))


def _ticks(progress: Progress, frame: _Frame) -> Text:
    """The first head or position of some columns, under them."""
    row = [" "] * (frame.label + frame.cell * len(frame.columns))
    free = 0
    for at, parts in enumerate(frame.columns):
        name = str(parts[0])
        begin = frame.label + at * frame.cell
        is_near_end = at > len(frame.columns) - 3
        if begin < free or begin + len(name) > len(row) or (at % 5 and not is_near_end):
            continue
        row[begin : begin + len(name)] = name
        free = begin + len(name) + 1
    name = f"  {progress.part_axis}" if frame.has_notes else ""
    return Text("".join(row).rstrip() + name, style="dim")


def _legend(progress: Progress, end: float, depth: colors.Depth) -> Text:
    what = f"effect on P({safe_text(progress.headline, limit=18)})  "
    text = Text(what, style="dim")
    low, high = f"−{end:g} ", f" +{end:g}"
    text.append(low, "not dim")
    if depth == "none":
        text.append("i..a . 1..9", "not dim")
    else:
        for step in range(-6, 7):
            style = colors.diverging(step / 6, depth)
            text.append(" ", style)
    text.append(high, "not dim")
    text.append(f"  {WAITING} not yet  {BROKEN} no number")
    if depth in _MANY:
        text.append("  + - beyond .01")
    return text
