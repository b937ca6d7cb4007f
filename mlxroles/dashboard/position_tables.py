"""The tables that end a test at single positions: redundancy, offsets, patterns, compare."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table
from mlxroles.report.ablate import position_rows
from mlxroles.text import safe_text

_WIDE = 110
"""Columns from which on tables have their intervals everywhere."""
_NEAR = 8
"""Offsets of a sweep that are listed."""
_LEFT = ("model", "comparison", "condition", "head")


def position_table(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """What was found in one sentence, and the numbers behind it."""
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, 120)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    yield screen.text(safe_text(doc["sentence"]), "bold")
    yield screen.text("")
    near = doc
    if doc["test"] == "offsets":
        near = {**doc, "rows": [row for row in doc["rows"] if row["offset"] <= _NEAR]}
    for grid in position_rows.grids(near, is_narrow=screen.width < _WIDE):
        left = tuple(n for n, name in enumerate(grid.head) if name in _LEFT)
        yield grid_table(grid, screen, left=left)
        yield screen.text("")
    yield screen.text(position_rows.legend(doc), "dim")
    if near["rows"] != doc["rows"]:
        yield screen.text(f"Offsets beyond {_NEAR} are in the report and in the CSV file.", "dim")
