"""Lists of things with names: as many columns as fit, names cut so that they differ, text below."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from mlxroles.dashboard.adapt import Adaptive, Screen
from mlxroles.dashboard.layout import clipped, wrapped
from mlxroles.text import distinct, safe_text

_GAP = 2
_LEAST_NAME, _MOST_NAME = 12, 40
"""Columns of names before others are left out, and where what is said stands beside them."""
_BESIDE = 60
"""Columns in which what is said may be wrapped beside the names."""
_SEPARATOR = " · "
_INDENT = "    "
_MOST_LINES = 4


class Column(NamedTuple):
    """A column beside the names, never cut: where there is no room for it, it is left out."""

    title: str
    is_right: bool = False
    turn: int = 0
    """The highest is left out first; 0 never."""


class Row(NamedTuple):
    """A thing of a list."""

    name: str
    cells: Sequence[str]
    told: str = ""
    """What is said of it: in a column of its own where it is short or the terminal wide."""
    style: str = ""


def listing(
    title: str, name: str, columns: Sequence[Column], rows: Sequence[Row], *, told: str = ""
) -> RenderableType:
    """A table for the terminal that it meets; columns without any text are left out.

    Args:
        title: its title; empty for none.
        name: the title of the first column, with the names.
        columns: the others.
        rows: the things.
        told: the title of what is said of them.
    """

    def make(screen: Screen) -> RenderableType:
        lines = [screen.text(line, "bold") for line in ([safe_text(title)] if title else [])]
        lines += _lines(columns, rows, (name, told), screen)
        return Group(*(clipped(line, screen.width) for line in lines))

    return Adaptive(make)


def _lines(
    columns: Sequence[Column], rows: Sequence[Row], titles: tuple[str, str], screen: Screen
) -> list[Text]:
    name, told = titles
    cells = [[safe_text(cell) for cell in row.cells] for row in rows]
    widths = {
        at: max(len(column.title), *(len(line[at]) for line in cells))
        for at, column in enumerate(columns)
        if any(line[at] for line in cells)
    }
    longest = max([len(name), *(len(safe_text(row.name)) for row in rows)])
    for at in sorted(widths, key=lambda at: -columns[at].turn):
        if columns[at].turn and _taken(widths) + min(longest, _LEAST_NAME) > screen.width:
            del widths[at]
    said = [safe_text(row.told) for row in rows]
    room = min(longest, max(screen.width - _taken(widths), 1))
    left = screen.width - _taken(widths) - min(room, _MOST_NAME) - _GAP
    is_beside = any(said) and (left >= _BESIDE or left >= max(map(len, (told, *said))))
    if is_beside:
        room = min(room, _MOST_NAME)
        indent = screen.width - left
    else:
        indent, left = len(_INDENT), screen.width - len(_INDENT)
    head = _line(name, [column.title for column in columns], columns, widths, room)
    lines = [screen.text(f"{head}  {told}" if is_beside else head, "dim")]
    names = distinct([row.name for row in rows], room)
    for row, short, line, text in zip(rows, names, cells, said, strict=True):
        parts = _wrapped(text, left)
        shown = screen.text(_line(short, line, columns, widths, room), row.style)
        if not is_beside or not parts:
            shown.rstrip()
        if is_beside and parts:
            shown.append_text(screen.text(" " * _GAP + parts.pop(0)))
        lines.append(shown)
        lines += [screen.text(" " * indent + part, "" if is_beside else "dim") for part in parts]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Lines broken between words; where one does not do, every part begins a line."""
    if len(text) <= width:
        return [text] if text else []
    parts = text.split(_SEPARATOR)
    lines = [line.plain for part in parts for line in wrapped(part, width)]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1 :] = [lines[_MOST_LINES - 1][: width - 2] + " …"]
    return lines


def _taken(widths: Mapping[int, int]) -> int:
    return sum(width + _GAP for width in widths.values())


def _line(
    name: str,
    cells: Sequence[str],
    columns: Sequence[Column],
    widths: Mapping[int, int],
    room: int,
) -> str:
    parts = [name.ljust(room)]
    for at, width in widths.items():
        cell = cells[at]
        parts.append(cell.rjust(width) if columns[at].is_right else cell.ljust(width))
    return (" " * _GAP).join(parts)
