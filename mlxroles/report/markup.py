"""Markdown from plain text: escaping and tables."""

import re
from collections.abc import Iterable, Sequence

from mlxroles.report.rows import Grid

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&])")


def escape(text: str) -> str:
    """The text with everything that Markdown or inline HTML would read as a mark escaped."""
    return _SPECIAL.sub(r"\\\1", text).replace(r"\&", "&amp;").replace(r"\<", "&lt;")


def table(grid: Grid) -> list[str]:
    """The heading and the table, all text escaped."""
    shown = [_line(map(escape, grid.head)), _line(["---", *["---:"] * (len(grid.head) - 1)])]
    shown += [_line(map(escape, row)) for row in grid.rows]
    return [f"## {escape(grid.title)}", "\n".join(shown)]


def bullets(items: Sequence[tuple[str, str]]) -> str:
    """One line per name and value."""
    return "\n".join(f"- {name}: {escape(value)}" for name, value in items)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
