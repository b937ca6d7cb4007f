"""What a terminal shows of a lens run: the followed string by layer, and the grid of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mlxroles.dashboard import colors
from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table, side_by_side
from mlxroles.dashboard.direct_tables import direct_tables
from mlxroles.report.lens import rows
from mlxroles.report.lens.grids import TokenGrid, chosen_grids
from mlxroles.report.lens.wording import lens_note, name, sentence
from mlxroles.report.rows import Grid
from mlxroles.text import show_token

if TYPE_CHECKING:
    from rich.measure import Measurement

_WIDEST = 160
_CELL, _LAYER, _GAP = 10, 5, 2
"""Columns of a grid's cell, of the layer before it, and between columns."""
_MOST_LAYERS = 40
_GRIDS = 2


def lens_tables(
    doc: Mapping[str, Any], grids: Sequence[TokenGrid] = (), *, width: int | None = None
) -> RenderableType:
    """The finding, a table per model and run, and the token grids of the first prompt."""
    return Adaptive(lambda screen: Group(*_parts(doc, grids, screen)), width, _WIDEST)


def _parts(
    doc: Mapping[str, Any], grids: Sequence[TokenGrid], screen: Screen
) -> Iterator[RenderableType]:
    yield screen.text(sentence(doc))
    yield Text()
    if str(doc["schema"]).startswith("mlxroles/lens-fit/"):
        fits = [rows.gain_grid(doc, model) for model in doc["models"]]
        yield from side_by_side([t for grid in fits for t in _tables(grid, screen)], screen)
        yield screen.text(rows.GAIN_LEGEND, "dim")
        return
    entries = _shown(doc)
    found = [rows.layer_grid(doc, entry)._replace(title=name(entry)) for entry in entries]
    yield from side_by_side([t for grid in found for t in _tables(grid, screen)], screen)
    differences = rows.difference_grid(doc)
    if differences is not None:
        yield Text()
        yield from side_by_side(_tables(differences, screen), screen)
    yield screen.text(rows.legend(doc), "dim")
    left = len(doc.get("curves") or []) - len(entries)
    if left > 0:
        yield screen.text(f"{left} more tables are in the report and in lens.csv", "dim")
    if lens_note(doc):
        yield screen.text(lens_note(doc))
    docs = rows.parts_by_name(doc, most=4)
    if docs:
        yield Text()
        yield direct_tables(docs, count=6, width=screen.width)
    shown = chosen_grids(grids, _GRIDS)
    for grid in shown:
        yield Text()
        prompt = f", prompt {show_token(grid.prompt, limit=30)}" if len(doc["prompts"]) > 1 else ""
        yield screen.text(f"{grid.name}{prompt}: likeliest token, last positions", "bold")
        yield _TokenTable(grid, screen)
    if shown:
        legend = "columns: the prompt's tokens · *: what the model says there in the end · %"
        yield screen.text(legend, "dim")


def _shown(doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Curves that get a table: all, or the first few where there are many."""
    return list(doc.get("curves") or [])[:4]


def _tables(grid: Grid, screen: Screen) -> list[Table]:
    """The rows as a table; of one that is too wide the columns stand in several, one by one."""
    lines = [grid.head, *grid.rows]
    widths = [max(cell_len(line[at]) for line in lines) + _GAP for at in range(len(grid.head))]
    groups: list[list[int]] = [[0]]
    for at in range(1, len(widths)):
        used = sum(widths[n] for n in groups[-1])
        if len(groups[-1]) > 1 and used + widths[at] - _GAP > screen.width:
            groups.append([0])
        groups[-1].append(at)
    found = []
    for n, group in enumerate(groups):
        title = f"{grid.title}, continued" if n else grid.title
        head, *body = ([line[at] for at in group] for line in lines)
        left = tuple(at for at, text in enumerate(head) if text == "likeliest token")
        found.append(grid_table(Grid(title, head, body), screen, left=left))
    return found


class _TokenTable:
    """A token grid as wide as the terminal: the last positions, the last layer on top."""

    def __init__(self, grid: TokenGrid, screen: Screen) -> None:
        self.grid, self.screen = grid, screen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table(colors.depth(console))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> "Measurement":
        from rich.measure import Measurement

        return Measurement.get(console, options, self._table("none"))

    def _table(self, depth: colors.Depth) -> Table:
        grid, screen = self.grid, self.screen
        room = max(1, (screen.width - _LAYER) // (_CELL + _GAP))
        columns = list(range(len(grid.positions)))[-room:]
        step = -(-len(grid.layers) // _MOST_LAYERS)
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
            header_style="dim",
        )
        table.add_column("layer", justify="right", no_wrap=True, width=_LAYER)
        for n in columns:
            head = screen.text(show_token(grid.tokens[n], limit=_CELL))
            table.add_column(head, no_wrap=True, width=_CELL)
        for at in range(len(grid.layers) - 1, -1, -step):
            cells = [self._cell(at, n, depth) for n in columns]
            table.add_row(screen.text(str(grid.layers[at])), *cells)
        return table

    def _cell(self, at: int, n: int, depth: colors.Depth) -> Text:
        """The token, marked where it is the answer in the end, on the shade of its probability."""
        grid = self.grid
        share = float(grid.probs[at, n, 0])
        text = show_token(grid.top[at][n][0], limit=_CELL - 4)
        percent = f"{min(99, round(100 * share)):2d}"
        is_end = grid.end_rank[at, n] == 0
        mark = "*" if is_end else " "
        shown = self.screen.text(f"{text:<{_CELL - 4}}{mark}{percent}"[:_CELL])
        shown.stylize(colors.sequential(share, depth))
        if is_end:
            shown.stylize("bold")
        return shown
