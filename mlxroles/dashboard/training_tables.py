"""The tables that end a training of components: what is kept, with how many components."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table
from mlxroles.report.components import training
from mlxroles.text import safe_text

_WIDEST = 120
_MAPS = 24


def training_tables(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """What a training has learned, fitted to the terminal."""
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    for grid in training.grids(doc, most=_MAPS):
        yield grid_table(grid, screen, left=(0,))
        yield screen.text("")
    yield screen.text(safe_text(str(doc["sentence"])))
