"""Generated texts side by side: while they grow, and when they have ended.

The texts come from a model and are shown through ``safe_text``, line by line: their line breaks
are real, nothing else in them can move the cursor.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from mlxroles.text import safe_text

BESIDE = 60
"""Columns from which two texts stand side by side."""
_FRAME = 6
"""Rows of a screen that are no text."""


class Column(NamedTuple):
    """One text as it stands."""

    title: str
    text: str
    foot: str
    """How it ended; empty while it grows."""
    alike: int = 0
    """Characters with which the text without edits begins too; what follows is bold."""


def side_by_side(columns: Sequence[Column], width: int, rows: int | None = None) -> RenderableType:
    """The texts in columns, or one below the other where there is no room.

    Args:
        columns: The texts.
        width: Columns of the terminal.
        rows: Lines of each text, the last ones; None for all.
    """
    beside = len(columns) > 1 and width >= BESIDE
    if not beside:
        each = None if rows is None else max(rows // len(columns) - 2, 1)
        return Group(*(part for c in columns for part in _below(c, width, each)))
    table = Table.grid(expand=True, padding=(0, 3, 0, 0))
    for _ in columns:
        table.add_column(ratio=1, overflow="fold")
    column_width = (width - 3 * len(columns)) // len(columns)
    table.add_row(*(Text(c.title, style="bold") for c in columns))
    table.add_row(*(Rule(style="dim", characters="-") for _ in columns))
    table.add_row(*(_last(_body(c), column_width, rows) for c in columns))
    table.add_row(*(Text(c.foot, style="dim") for c in columns))
    return table


def _below(column: Column, width: int, rows: int | None) -> list[RenderableType]:
    foot = [Text(column.foot, style="dim")] if column.foot else []
    text = _last(_body(column), width - 2, rows)
    return [Text(column.title, style="bold"), Padding(text, (0, 0, 0, 2)), *foot, Text("")]


def as_lines(columns: Sequence[Column]) -> list[str]:
    """The texts one below the other without any style, for a pipe or a file."""
    found = []
    for column in columns:
        found += [column.title, *_safe(column.text).split("\n"), f"[{column.foot}]", ""]
    return found


def _body(column: Column) -> Text:
    if not column.text:
        return Text("(nothing)" if column.foot else "", style="dim")
    text = Text(_safe(column.text[: column.alike]))
    return text.append(_safe(column.text[column.alike :]), style="bold" if column.alike else "")


def _safe(text: str) -> str:
    return "\n".join(safe_text(line) for line in text.expandtabs(4).split("\n"))


def _last(text: Text, width: int, rows: int | None) -> Text:
    """The last lines of a text, as it is wrapped at this width."""
    if rows is None:
        return text
    lines = text.wrap(Console(width=max(width, 1)), max(width, 1))
    return Text("\n").join(lines[-rows:])


Show = Callable[[Callable[[], Sequence[Column]]], None]
"""Takes what gives the texts as they stand."""


@contextmanager
def growing(console: Console) -> Generator[Show]:
    """Shows texts while the block runs; afterwards nothing of them is left on the screen."""
    latest: list[Callable[[], Sequence[Column]]] = []

    def view() -> RenderableType:
        columns = latest[0]() if latest else []
        if not columns:
            return Text("")
        return side_by_side(columns, console.width, max(console.height - _FRAME, 1))

    def show(columns: Callable[[], Sequence[Column]]) -> None:
        latest[:] = [columns]

    with Live(console=console, get_renderable=view, transient=True, refresh_per_second=10):
        yield show
