"""The tables that end an attribution run: strongest cells, edges, how well they hold."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table, side_by_side
from mlxroles.report.attribution import rows

_CELLS = 12
"""Cells listed per direction, about."""
_EDGES = 8
_WIDEST = 160


def attribution_tables(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """The largest cells of every site per direction, with what is known of their certainty."""
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    shown = rows.directions(doc)
    per_site = max(2, _CELLS // max(len(doc["sites"]), 1))
    tables = [_table(rows.top_grid(doc, d, per_site=per_site), screen, left=(0, 1)) for d in shown]
    yield from side_by_side(tables, screen)
    for grids, left in (
        ([rows.edge_grid(doc, d, count=_EDGES) for d in shown], (0,)),
        ([rows.agreement_grid(doc, d) for d in shown], (0,)),
        ([rows.miss_grid(doc, d, count=3) for d in shown], (0, 1, 2)),
    ):
        found = [_table(grid, screen, left=left) for grid in grids if grid is not None]
        if found:
            yield screen.text("")
            yield from side_by_side(found, screen)
    yield screen.text(rows.legend(doc), "dim")


def _table(grid: rows.Grid, screen: Screen, *, left: tuple[int, ...]) -> Table:
    return grid_table(grid, screen, left=left)
