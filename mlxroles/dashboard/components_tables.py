"""What a terminal shows of a report on components: the finding, a row per layer, leading ones."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table
from mlxroles.report.components import missing, rows, sentence

_WIDEST = 120


def components_tables(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """The finding, the table of layers, and what a harvest or the model would add."""
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    yield screen.text(sentence(doc))
    yield Text()
    yield grid_table(rows.layer_grid(doc), screen)
    yield screen.text(rows.legend(doc), "dim")
    for line in missing(doc):
        yield screen.text(line)
