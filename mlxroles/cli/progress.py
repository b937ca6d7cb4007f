"""Progress of runs that have no bars of their own: one line per cell, or a bar on a terminal."""

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mlxroles.cli.output import note
from mlxroles.dashboard.watch import resolve
from mlxroles.events import CellDone, CellFailed, Emit, Event, RunStarted, Stage
from mlxroles.events import Note as NoteEvent
from mlxroles.text import safe_text

MOST_LINES = 20
"""Lines of a plain display for the cells of a run, about."""


@contextmanager
def progress(*, plain: bool) -> Generator[Emit]:
    """Yields what takes the events of a run and shows them on standard error."""
    console = Console(stderr=True)
    if resolve("plain" if plain else "auto", console) != "live":
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=None)

        def emit(event: Event) -> None:
            match event:
                case RunStarted(title, _, cells, _):
                    bar.update(task, description=safe_text(title), total=len(cells))
                case Stage(text):
                    bar.update(task, description=safe_text(text))
                case CellDone(cell):
                    bar.update(task, description=safe_text(cell.id), advance=1)
                case CellFailed():
                    bar.advance(task)
                    _line(event)
                case NoteEvent():
                    _line(event)

        yield emit


class _Lines:
    """Writes a line per cell, or for about every twentieth of many."""

    def __init__(self) -> None:
        self.every, self.seen = 1, 0

    def __call__(self, event: Event) -> None:
        """Writes what the event has to say."""
        if isinstance(event, RunStarted):
            self.every = max(1, round((len(event.cells) - event.done) / MOST_LINES))
        if isinstance(event, CellDone) and not event.restored:
            self.seen += 1
            if self.seen % self.every:
                return
        _line(event)


def _line(event: Event) -> None:
    match event:
        case RunStarted(title, _, cells, done):
            note(f"{title}: {len(cells)} cells, {done} done")
        case Stage(text) | NoteEvent(text):
            note(text)
        case CellDone(cell, _, seconds, tokens, restored) if not restored:
            note(f"{cell.id}  {tokens} tokens  {seconds:.2f} s")
        case CellFailed(cell, error):
            note(f"failed {cell.id}: {error}")
