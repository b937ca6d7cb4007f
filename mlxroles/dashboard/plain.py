"""A run as plain lines without escape codes, for logs, pipes and simple terminals."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mlxroles import documents
from mlxroles.dashboard.facts import coarse
from mlxroles.dashboard.progress import Progress
from mlxroles.events import (
    CellDone,
    CellFailed,
    Died,
    Event,
    Note,
    RunFinished,
    RunStarted,
    Slept,
    Stage,
)
from mlxroles.text import format_number, format_seconds, safe_text

_LINES_PER_RUN = 20
_SILENCE_SECONDS = 60.0

Write = Callable[[str], None]


class PlainLines:
    """Writes one line per stage, note and failure, and one per several cells or 60 seconds."""

    def __init__(self, progress: Progress, write: Write, *, quiet: bool = False) -> None:
        """Writes through ``write``; ``quiet`` leaves only failures and an interrupt."""
        self.progress = progress
        self.write = write
        self.quiet = quiet
        self._since = 0
        self._last = progress.clock()

    def __call__(self, event: Event) -> None:
        """Takes in the event and writes the line that it is worth, if any."""
        self.progress.fold(event)
        line = self._line(event)
        is_trouble = isinstance(event, CellFailed | Died) or (
            isinstance(event, RunFinished) and event.interrupted is not None
        )
        if line and (is_trouble or not self.quiet):
            self.write(line)

    def _line(self, event: Event) -> str:
        match event:
            case RunStarted(title, folder, cells, done):
                earlier = f", {done} stored earlier" if done else ""
                where = f" in {safe_text(folder)}" if folder else ""
                return f"{safe_text(title)}: {len(cells)} cells{earlier}{where}"
            case Stage(text) | Note(text):
                return safe_text(text)
            case CellFailed(cell, error):
                return f"failed {safe_text(cell.id)}: {safe_text(error)}"
            case Died(cells, cause):
                where = f" in {safe_text(cells[0])}" if cells else ""
                return f"a worker ended{where}: {safe_text(cause)}"
            case Slept(seconds):
                return f"the machine slept {format_seconds(seconds)}"
            case CellDone():
                return "" if event.restored else self._cell_line(event)
            case RunFinished(done, failed, seconds, interrupted):
                state = f"interrupted by {safe_text(interrupted)}" if interrupted else "finished"
                trouble = f", {failed} failed" if failed else ""
                return f"{state}: {done} cells in {format_seconds(seconds)}{trouble}"
        return ""

    def _cell_line(self, event: CellDone) -> str:
        progress = self.progress
        self._since += 1
        now = progress.clock()
        every = max(math.ceil(progress.total / _LINES_PER_RUN), 1)
        is_last = progress.settled == progress.total
        if self._since < every and now - self._last < _SILENCE_SECONDS and not is_last:
            return ""
        self._since, self._last = 0, now
        return "  ".join([self._counter(), *self._facts(event)])

    def _counter(self) -> str:
        total = str(self.progress.total)
        return f"[{str(self.progress.settled).rjust(len(total))}/{total}]"

    def _facts(self, event: CellDone) -> list[str]:
        progress = self.progress
        facts = [safe_text(event.cell.id)]
        value = documents.number(event.values, progress.value)
        if not math.isnan(value) or progress.value in event.values:
            shown = format_number(value, missing="nan")
            facts.append(f"P {shown}{self._effect(event.cell.coords, value)}")
        speed = progress.tokens_per_second
        if speed is not None:
            facts.append(f"{speed:,.0f} tokens/s")
        remaining = progress.remaining_seconds
        if remaining:
            facts.append(f"ETA {coarse(remaining)}")
        return facts

    def _effect(self, coords: Mapping[str, Any], value: float) -> str:
        if coords.get("direction") is None:
            return ""
        effect = value - self.progress.baseline(str(coords["direction"]))
        return "" if math.isnan(effect) else f" ({format_number(effect, '+.3f')})"
