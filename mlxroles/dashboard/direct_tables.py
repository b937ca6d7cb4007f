"""The tables of a direct attribution: the largest parts, and what each layer writes."""

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table, side_by_side
from mlxroles.report import direct
from mlxroles.text import safe_text

_LAYERS = 24
"""Layers up to which all are listed."""
_WIDEST = 120


def direct_tables(
    docs: Mapping[str, direct.Doc], *, count: int = 10, width: int | None = None
) -> RenderableType:
    """The parts of one or several documents of ``direct.Parts``, each with its name.

    Args:
        docs: name (of a model, of a prompt) -> document.
        count: how many parts are listed.
        width: columns; None for those of the terminal.
    """
    return Adaptive(lambda screen: Group(*_lines(docs, count, screen)), width, _WIDEST)


def _lines(docs: Mapping[str, direct.Doc], count: int, screen: Screen) -> Iterator[RenderableType]:
    for at, (name, doc) in enumerate(docs.items()):
        if at:
            yield screen.text("")
        shown = safe_text(name, limit=40)
        yield screen.text(f"{shown}: {direct.subject(doc)}; {direct.sums(doc)}", "bold")
        grids = [direct.parts_grid(doc, count=count)]
        if len({i for i in doc["layers"] if i is not None}) <= _LAYERS:
            grids.append(direct.layers_grid(doc))
        tables = [grid_table(grid, screen, left=(0,)) for grid in grids]
        yield from side_by_side(tables, screen)
    for line in dict.fromkeys(direct.how_to_read(doc) for doc in docs.values()):
        yield screen.text(line, "dim")
