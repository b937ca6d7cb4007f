"""What a terminal shows of a study of heads: a map of kinds, the heads with their evidence."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.style import Style
from rich.text import Text

from mlxroles.dashboard import colors
from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table
from mlxroles.report.heads import rows, scores
from mlxroles.report.heads.wording import INKS, NONE, in_order, is_light, kind, said
from mlxroles.report.rows import Grid

if TYPE_CHECKING:
    from rich.measure import Measurement

Doc = Mapping[str, Any]

_WIDEST = 160
_ROWS, _CAUSAL, _DIFFERENCES = 16, 12, 8
"""Lines of each table, about."""
_MOST_LAYERS = 40
"""Layers up to which a map is drawn."""
_CELL, _LABEL, _GAP = 3, 3, 4
_NOTHING = "·"


def heads_tables(doc: Doc, *, width: int | None = None) -> RenderableType:
    """The sentence, a map of kinds per model, the heads of each kind, checks and changes."""
    doc = scores.parsed(doc)
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Doc, screen: Screen) -> Iterator[RenderableType]:
    yield from (screen.text(line, "bold") for line in rows.finding(doc))
    if not doc["models"]:
        return
    if _Maps.fits(doc, screen):
        yield Text()
        yield _Maps(doc, screen)
    else:
        for side in scores.sides(doc):
            several = f"{side}: " if len(scores.sides(doc)) > 1 else ""
            yield Text()
            yield screen.text(several + rows.summary(doc, side, 3))
    for grid in _grids(doc):
        if grid is not None:
            yield Text()
            yield grid_table(_narrow(grid, screen.width), screen, left=_texts(grid))
    yield Text()
    yield screen.text(_LEGEND, "dim")


def _grids(doc: Doc) -> Iterator[Grid | None]:
    for side in scores.sides(doc):
        yield rows.heads_grid(doc, side, most=_ROWS)
    yield rows.nearest_grid(doc)
    for side in scores.sides(doc):
        yield rows.causal_grid(doc, side, most=_CAUSAL, is_whole=False)
    yield rows.difference_grid(doc, most=_DIFFERENCES)


_LEGEND = (
    "score: mean over sequences [95 % bootstrap interval] · uniform: attention without a "
    "preference at the same places · control: the same measure where there is nothing to find · a "
    "head has a kind where its interval lies above twice both and what is needed · ✓ zeroing "
    "confirms it: beyond all random sets of as many other heads; p is of each set alone"
)
_LEFT = {"head", "what it does", "also", "kind", "model", "class", "zeroed", "measure"}


def _texts(grid: Grid) -> tuple[int, ...]:
    return tuple(at for at, name in enumerate(grid.head) if name in _LEFT or name == "score")


def _narrow(grid: Grid, width: int) -> Grid:
    """The table as it fits: without its last columns, where they do not."""
    widths = [max(map(len, column)) + 2 for column in zip(grid.head, *grid.rows, strict=True)]
    n = len(widths)
    while n > 3 and sum(widths[:n]) - 1 > width:
        n -= 1
    return Grid(grid.title, grid.head[:n], [row[:n] for row in grid.rows])


class _Maps:
    """The kind of every head as its letter, layers upwards, a map per model."""

    def __init__(self, doc: Doc, screen: Screen) -> None:
        self.doc, self.screen = doc, screen

    @staticmethod
    def fits(doc: Doc, screen: Screen) -> bool:
        """Whether every model is small enough for a map of a letter per head."""
        shapes = [scores.shape(doc, side) for side in scores.sides(doc)]
        return all(
            0 < layers <= _MOST_LAYERS and heads > 0 and _LABEL + heads <= screen.width
            for layers, heads in shapes
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._lines(colors.depth(console))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> "Measurement":
        from rich.measure import Measurement

        return Measurement.get(console, options, Group(*self._lines("none")))

    def _lines(self, depth: colors.Depth) -> Iterator[Text]:
        sides, width = scores.sides(self.doc), self.screen.width
        maps = [self._map(side, depth) for side in sides]
        if sum(max(line.cell_len for line in one) + _GAP for one in maps) - _GAP <= width:
            wide = [max(line.cell_len for line in one) for one in maps]
            for at in range(max(map(len, maps))):
                row = Text(no_wrap=True)
                for n, one in enumerate(maps):
                    line = one[at] if at < len(one) else Text()
                    row.append_text(line)
                    if n < len(maps) - 1:
                        row.append(" " * (wide[n] - line.cell_len + _GAP))
                yield row
        else:
            for one in maps:
                yield from one
        yield from self._key(depth)

    def _map(self, side: str, depth: colors.Depth) -> list[Text]:
        layers, heads = scores.shape(self.doc, side)
        known, seen = scores.classes(self.doc, side), scores.is_seen(self.doc, side)
        cell = _CELL if _LABEL + _CELL * heads <= self.screen.width else 1
        title = f"{side}: " if len(scores.sides(self.doc)) > 1 else ""
        count = int(seen.sum()) - scores.counts(self.doc, side)[NONE]
        found = [self.screen.text(f"{title}{count} of {int(seen.sum())} heads have a kind", "bold")]
        for layer in reversed(range(layers)):
            line = Text(f"{layer:>{_LABEL - 1}} ", style="dim", no_wrap=True)
            for head in range(heads):
                name = known[layer][head]
                if name == NONE:
                    mark = _NOTHING if seen[layer, head] else " "
                    line.append_text(self.screen.text(mark.center(cell), "dim"))
                else:
                    line.append(kind(name).letter.center(cell), _style(name, depth))
            found.append(line)
        ticks = "".join(str(head % 10 if cell == 1 else head).center(cell) for head in range(heads))
        found.append(Text(" " * _LABEL + ticks, style="dim", no_wrap=True))
        return found

    def _key(self, depth: colors.Depth) -> Iterator[Text]:
        """What the letters stand for, as many to a line as fit."""
        counted = [scores.counts(self.doc, side) for side in scores.sides(self.doc)]
        line = Text()
        for name in in_order(one for count in counted for one in count):
            item = Text(kind(name).letter.center(_CELL), _style(name, depth))
            number = " → ".join(str(count.get(name, 0)) for count in counted)
            item.append_text(self.screen.text(f" {said(name)} {number}  ", "not bold"))
            if line.cell_len and line.cell_len + item.cell_len > self.screen.width:
                yield line
                line = Text()
            line.append_text(item)
        if line.cell_len:
            yield line


def _style(name: str, depth: colors.Depth) -> Style:
    """A kind's letter on its colour; bold alone where there are few colours."""
    if depth not in ("256", "true"):
        return Style(bold=True)
    paper = kind(name).color
    return Style(color=INKS[is_light(paper)], bgcolor=paper, bold=True)
