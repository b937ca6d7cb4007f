"""Progress of runs that have no bars of their own: one line per cell, or a screen on a terminal."""

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console

from mlxroles.cli.output import note
from mlxroles.dashboard.watch import any_run, resolve
from mlxroles.events import CellDone, CellFailed, Emit, Event, RunStarted, Stage
from mlxroles.events import Note as NoteEvent

MOST_LINES = 20
"""Lines of a plain display for the cells of a run, about."""


@contextmanager
def progress(*, plain: bool) -> Generator[Emit]:
    """Yields what takes the events of a run and shows them on standard error."""
    console = Console(stderr=True)
    if resolve("plain" if plain else "auto", console) != "live":
        yield _Lines()
        return
    with any_run(console, mode="live") as emit:
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
