"""All that a display knows of one run: cells, speed, memory, what was said, who died.

The same state is folded from the events of a run in this process and from those that are read
back from its files, where the plan is only counted and the title names no cells.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from mlxroles import documents
from mlxroles.dashboard.pace import Eta, Meter
from mlxroles.dashboard.progress import Progress
from mlxroles.events import (
    BatchStarted,
    CellDone,
    CellFailed,
    Died,
    Event,
    Note,
    RunFinished,
    RunStarted,
    Slept,
    Vitals,
)
from mlxroles.text import format_seconds

_KEPT = 200
_ROWS = ("model", "variant", "direction", "step", "site")
"""Coordinates that make the rows of a run without layers."""


class Said(NamedTuple):
    """A line of the log."""

    time: str
    """``02:41``; empty for what happened before anybody looked."""
    kind: str
    """``note``, ``failed``, ``died``, ``slept`` or ``ended``."""
    text: str


def empty_progress(clock: Callable[[], float] = time.monotonic) -> Progress:
    """The progress of a run of which nothing is known."""
    return Progress([], [], n_layers=0, headline="", clock=clock)


@dataclass
class RunState:
    """Folds the events of a run; :meth:`fold` is the only way to change it."""

    progress: Progress = field(default_factory=empty_progress)
    wall: Callable[[], datetime] = datetime.now
    view: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    meter: Meter = field(default_factory=Meter)
    log: deque[Said] = field(default_factory=lambda: deque(maxlen=_KEPT))
    deaths: int = 0
    slept: float = 0.0
    latest: CellDone | None = None
    """The cell that was computed last, while somebody looked."""
    under_way: Sequence[str] = ()
    """Ids of the cells that are being computed."""
    seats: dict[str, dict[int, bool]] = field(default_factory=dict)
    """Of a run without layers, by row: the prompts that are done (True) or failed."""
    planned: dict[str, int] = field(default_factory=dict)
    """Prompts by row, where the plan names its cells."""

    @property
    def kind(self) -> str:
        """``patch``, ``entropy`` ...; empty where the run does not say."""
        return str(self.view.get("kind", "patch" if self.progress.layers else ""))

    @property
    def remaining(self) -> Eta | None:
        """Seconds still to go; None while nothing is known."""
        return self.progress.remaining

    @property
    def is_over(self) -> bool:
        """Whether the run has said that it is over."""
        return self.progress.finished is not None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second lately."""
        return self.meter.tokens or self.progress.tokens_per_second

    def is_begun_by(self, event: Event) -> bool:
        """Whether the event begins another run; one that goes on keeps its state and cells."""
        return isinstance(event, RunStarted) and event.title != self.progress.title

    def catch_up(self, events: Iterable[Event]) -> None:
        """Takes in what happened before anybody looked: stored cells tell how fast it goes."""
        found = list(events)
        self.progress.learns_from_stored = True
        for event in found:
            self.fold(event, at="")
        self.progress.learns_from_stored = False
        starts = [event for event in found if isinstance(event, RunStarted)]
        self.progress.restored = starts[-1].done if starts else 0

    def fold(self, event: Event, *, at: str | None = None) -> None:
        """Takes in one event.

        Args:
            event: what happened.
            at: the time that the log shows; None for now.
        """
        if isinstance(event, RunStarted):
            self._start(event)
            return
        self.progress.fold(event)
        said = self._said(event)
        if said is not None:
            time_of_day = f"{self.wall():%H:%M}" if at is None else at
            self.log.append(Said(time_of_day, *said))
        match event:
            case BatchStarted(cells):
                self.under_way = [cell.id for cell in cells]
            case Vitals():
                self.meter.add(self.progress.clock(), event)
            case CellDone():
                self._seat(event.cell.coords, is_done=True)
                if not event.restored:
                    self.latest = event
            case CellFailed():
                self._seat(event.cell.coords, is_done=False)
            case RunFinished():
                self.under_way = ()

    def _start(self, event: RunStarted) -> None:
        if event.rank and self.progress.total:
            return  # one more machine at work on a run that has begun
        if event.view and not self.view:
            self.view = event.view
            if not self.progress.layers:
                former, self.progress = self.progress, _progress(event.view, self.progress.clock)
                self.progress.learns_from_stored = former.learns_from_stored
        if event.folder:
            self.folder = event.folder
        self.progress.pace.estimate = event.estimate
        self.progress.fold(event)
        self.planned.clear()
        for cell in event.cells:
            row = row_of(cell.coords)
            if row is not None:
                self.planned[row] = self.planned.get(row, 0) + len(_prompts(cell.coords))

    def _seat(self, coords: Mapping[str, Any], *, is_done: bool) -> None:
        row = row_of(coords)
        if row is not None:
            self.seats.setdefault(row, {}).update(dict.fromkeys(_prompts(coords), is_done))

    def _said(self, event: Event) -> tuple[str, str] | None:
        """What the log says of the event: kind and text."""
        match event:
            case Note(text):
                return "note", text
            case CellFailed(cell, error):
                return "failed", f"{cell.id}: {error}"
            case Died(cells, cause):
                self.deaths += 1
                where = f" in {cells[0]}" if cells else ""
                more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
                return "died", f"a worker ended{where}{more}: {cause}; it is started again"
            case Slept(seconds):
                self.slept += seconds
                return "slept", f"the machine slept {format_seconds(seconds)}"
            case RunFinished(done, failed, seconds, interrupted):
                state = f"stopped by {interrupted}" if interrupted else "finished"
                lost = f", {failed} failed" if failed else ""
                return "ended", f"{state}: {done} cells in {format_seconds(seconds)}{lost}"
        return None


def row_of(coords: Mapping[str, Any]) -> str | None:
    """The row of a cell that has prompts and no layer; None for others."""
    if "layer" in coords or not _prompts(coords):
        return None
    if "baseline" in coords:
        return None
    names = [
        documents.arrow(str(coords[name])) if name == "direction" else str(coords[name])
        for name in _ROWS
        if coords.get(name) is not None
    ]
    return " ".join(names) or "prompts"


def _prompts(coords: Mapping[str, Any]) -> list[int]:
    several = coords.get("prompts")
    if isinstance(several, list | tuple):
        return [each for each in several if isinstance(each, int)]
    one = coords.get("prompt")
    return [one] if isinstance(one, int) else []


def _progress(view: Mapping[str, Any], clock: Callable[[], float]) -> Progress:
    """The empty progress of a run with this view; whatever is odd in it is left out."""
    layers = view.get("layers") if view.get("kind") == "patch" else None
    is_list = isinstance(layers, list | tuple)
    known = sorted({each for each in layers if isinstance(each, int)}) if is_list else []
    given = view.get("directions")
    named = [str(each) for each in given] if known and isinstance(given, list | tuple) else []
    count = view.get("n_layers")
    columns = {}
    if known and view.get("positions") == "each":
        tokens = [each for each in view.get("n_tokens") or () if isinstance(each, int)]
        columns["position"] = set(range(max(tokens, default=0)))
    if known and view.get("heads") == "each" and isinstance(view.get("n_heads"), int):
        columns["head"] = set(range(int(view["n_heads"])))
    return Progress(
        known,
        [each for each in documents.DIRECTIONS if each in named] or named,
        n_layers=count if isinstance(count, int) else len(known),
        headline=str(view.get("headline", "")),
        clock=clock,
        columns=columns,
    )
