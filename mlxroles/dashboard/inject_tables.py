"""The tables that end an injection run: baselines, the strongest spots, maps, heads."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table, side_by_side
from mlxroles.report.inject import rows
from mlxroles.report.inject.wording import headline_tests

_WIDEST = 160
_MOST_TESTS = 20
_ROOMY = 136
"""Columns from which on the strongest spots are shown with all that is known of them."""


def inject_tables(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """Baselines, the strongest spot of each vector, and the maps of the headline."""
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    yield grid_table(rows.clean_grid(doc), screen, left=(0, 1))
    if not doc["tests"]:
        return
    yield screen.text("")
    shown = {(m, t["vector"]) for m in doc["models"] for t in headline_tests(doc, m)}
    grids = [
        grid
        for grid, family in zip(rows.map_grids(doc), rows.families(doc), strict=True)
        if family[:2] in shown
    ]
    yield screen.text(rows.mapped(doc), "bold")
    yield from side_by_side([grid_table(grid, screen) for grid in grids], screen)
    yield screen.text("")
    tests = rows.tests_grid(doc)
    if len(tests.rows) > _MOST_TESTS:
        tests = tests._replace(rows=tests.rows[:_MOST_TESTS])
    tests = tests if screen.width >= _ROOMY else rows.brief(tests)
    yield grid_table(tests, screen, left=(0, 1))
    heads = rows.heads_grid(doc)
    if heads is not None:
        yield screen.text("")
        yield grid_table(heads, screen, left=(0, 1))
    yield screen.text(rows.legend(doc), "dim")
