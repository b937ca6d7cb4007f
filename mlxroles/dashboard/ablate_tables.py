"""The tables that end an ablation run: the finding, then the effects of each model."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table
from mlxroles.report.ablate import effect_rows as rows

_ROWS = 16
"""Effects listed per model, about."""
_WIDEST = 160


def ablate_tables(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """The sentence and the largest effects."""
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    yield screen.text(doc["sentence"], "bold")
    for model in rows.models(doc):
        grid = rows.grid(doc, model, most=_ROWS)
        yield screen.text("")
        yield grid_table(_narrow(grid, screen.width), screen, left=(0,))
    yield screen.text("")
    yield screen.text(rows.legend(doc), "dim")


def _narrow(grid: rows.Grid, width: int) -> rows.Grid:
    """The table without its last columns, where they do not fit."""
    widths = [max(map(len, column)) + 2 for column in zip(grid.head, *grid.rows, strict=True)]
    n = len(widths)
    while n > 4 and sum(widths[:n]) > width:
        n -= 1
    return rows.Grid(grid.title, grid.head[:n], [row[:n] for row in grid.rows])
