"""The tables that end a run of circuits: copying, composition, tokens."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table
from mlxroles.report.circuits import rows
from mlxroles.text import safe_text

_WIDEST = 160
_HEADS, _COMPOSED, _DIFFERENT = 10, 4, 6
_ROOMY = 110
"""Columns from which on more pairs of tokens are shown, and chance in numbers."""


def circuits_tables(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """What a run found, fitted to the terminal."""
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    is_roomy = screen.width >= _ROOMY
    for model in doc["models"]:
        yield grid_table(rows.copying_grid(doc, model, count=_HEADS), screen, left=(0, 2))
        yield screen.text("")
        composed = rows.composition_grid(doc, model, count=_COMPOSED)
        if composed is not None:
            yield grid_table(composed, screen, left=(0, 1, 2, 5, 6))
            yield screen.text("")
        for grid in rows.pairs_grids(doc, model, count=5 if is_roomy else 3):
            yield grid_table(grid, screen, left=(0, 2))
            yield screen.text("")
    different = rows.difference_grid(doc, count=_DIFFERENT)
    if different is not None:
        yield grid_table(different, screen, left=(0, 4))
        yield screen.text("")
    yield screen.text(safe_text(str(doc["sentence"])))
