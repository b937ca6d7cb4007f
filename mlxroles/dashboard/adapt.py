"""Renderables that are made for the terminal they meet: its width, and what it can show."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mlxroles.report.rows import Grid
from mlxroles.text import safe_text

_PLAIN = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "…": "...", "·": ",", "†": "+", "‡": "#", "×": "x"}
)
_BLOCKS, _DIGITS = "▁▂▃▄▅▆▇█", "0123456789"
_MISSING = "·", "."
_GAP = 3


@dataclass(frozen=True)
class Screen:
    """Where something is shown."""

    width: int
    """Columns."""
    is_ascii: bool
    """Whether the terminal's encoding has nothing but ASCII for sure."""

    def text(self, text: str, style: str = "") -> Text:
        """The text without markup, in ASCII where the terminal needs that."""
        if self.is_ascii:
            text = text.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
        return Text(text, style=style)

    def level(self, share: float) -> str:
        """A character for a place between 0 and 1: a block, or a digit; NaN is a dot."""
        levels = _DIGITS if self.is_ascii else _BLOCKS
        if share != share:  # NaN
            return _MISSING[self.is_ascii]
        return levels[min(int(min(max(share, 0.0), 1.0) * len(levels)), len(levels) - 1)]


@dataclass(frozen=True)
class Adaptive:
    """A renderable that is built when the terminal is known."""

    make: Callable[[Screen], RenderableType]
    width: int | None = None
    """Columns, whatever the terminal has."""
    widest: int = 200
    """Most columns that it asks for where there is no terminal."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self.width or options.max_width, options.max_width)
        yield from console.render(self._made(width, options), options.update(width=width))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = min(self.width or self.widest, options.max_width)
        found = Measurement.get(console, options.update(width=width), self._made(width, options))
        return found.clamp(max_width=width)

    def _made(self, width: int, options: ConsoleOptions) -> RenderableType:
        return self.make(Screen(width, options.ascii_only))


def grid_table(grid: Grid, screen: Screen, *, left: tuple[int, ...] = ()) -> Table:
    """Rows of strings as a table; columns flush right but those in ``left``."""
    table = Table(
        title=screen.text(grid.title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        header_style="dim",
    )
    for at, name in enumerate(grid.head):
        table.add_column(
            screen.text(name),
            justify="left" if at in left else "right",
            no_wrap=True,
            overflow="crop" if screen.is_ascii else "ellipsis",
        )
    for row in grid.rows:
        table.add_row(*(screen.text(cell) for cell in row))
    return table


def paragraphs(lines: Sequence[str]) -> RenderableType:
    """Lines of text wrapped between words to the terminal's width, without markup or escapes."""
    return Adaptive(
        lambda screen: Group(*(screen.text(safe_text(line)) for line in lines)), None, 100
    )


def side_by_side(tables: Sequence[Table], screen: Screen) -> Iterator[RenderableType]:
    """The tables in one row where the screen has the room, otherwise below each other."""
    console = Console(width=screen.width * (len(tables) + 1), force_terminal=False)
    needed = [Measurement.get(console, console.options, table).maximum for table in tables]
    if sum(needed) + _GAP * (len(tables) - 1) <= screen.width:
        yield Columns(tables, padding=(0, _GAP))
        return
    for at, table in enumerate(tables):
        if at:
            yield Text()
        yield table
