"""What a run tells whoever watches it: plain data, no model and no terminal.

The runner emits these in order; a dashboard, a plain-line printer or a test reads them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One entry of a plan: the smallest piece of work that is stored and skipped on its own."""

    id: str
    """Readable and stable, e.g. ``base_to_instruct/resid_post/L07/all``."""
    coords: Mapping[str, Any] = field(default_factory=dict)
    """Coordinate per axis: direction, layer, prompt, control, head, position ..."""


@dataclass(frozen=True)
class RunStarted:
    """The plan is fixed, the run folder is locked; ``done`` of its cells are stored already."""

    title: str
    folder: str
    cells: Sequence[Cell]
    done: int


@dataclass(frozen=True)
class Stage:
    """The run enters a phase that no cell measures, such as loading a model."""

    text: str


@dataclass(frozen=True)
class CellDone:
    """A cell is stored. ``values`` are its numbers, as they stand in the journal."""

    cell: Cell
    values: Mapping[str, Any]
    seconds: float
    tokens: int = 0
    """Tokens that were run through a model for this cell."""
    restored: bool = False
    """The cell was found in the journal of an earlier process."""


@dataclass(frozen=True)
class CellFailed:
    """A cell could not be computed; the run goes on."""

    cell: Cell
    error: str


@dataclass(frozen=True)
class Note:
    """Something the user should know: a warning or a hint, one line."""

    text: str


@dataclass(frozen=True)
class RunFinished:
    """The run is over. ``failed`` cells are recorded as such; ``interrupted`` names a signal."""

    done: int
    failed: int
    seconds: float
    interrupted: str | None = None


Event = RunStarted | Stage | CellDone | CellFailed | Note | RunFinished
Emit = Callable[[Event], None]
