"""What commands print: one JSON document, or a table for people."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import click

from mlxroles.text import safe_text


def print_json(document: Mapping[str, Any]) -> None:
    """Prints the document as one line of JSON; NaN and infinities become ``null``."""
    click.echo(json.dumps(_finite(document), allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table to standard output: drawn on a terminal, tab-separated elsewhere.

    A column whose name starts with ``#`` is aligned to the right. Cells are shown through
    ``safe_text``, never as markup.
    """
    cells = [[safe_text(cell) for cell in row] for row in rows]
    names = [name.lstrip("#") for name in columns]
    from rich.console import Console

    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        for line in [names, *cells]:
            click.echo("\t".join(line))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(safe_text(title)), title_justify="left", box=None, pad_edge=False)
    for column, name in zip(columns, names, strict=True):
        table.add_column(name, justify="right" if column.startswith("#") else "left")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal and not console.is_dumb_terminal else None


def print_time(plan: Mapping[str, Any]) -> None:
    """Prints how long a planned run should take."""
    from mlxroles.timing import span

    if plan.get("seconds"):
        click.echo(f"time          {span(plan['seconds'])}")


def note(text: str) -> None:
    """Prints a remark to standard error, away from the results."""
    click.echo(safe_text(text), err=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
