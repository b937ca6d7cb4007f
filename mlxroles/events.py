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
    view: Mapping[str, Any] = field(default_factory=dict)
    """What a display needs to know beside the cells: kind, layers, directions, headline ..."""
    rank: int = 0
    """Of the machine, where several work on one run."""
    estimate: Mapping[str, Any] | None = None
    """Seconds that the whole plan was thought to take: likely, low, high."""


@dataclass(frozen=True)
class Stage:
    """The run enters a phase that no cell measures, such as loading a model."""

    text: str


@dataclass(frozen=True)
class BatchStarted:
    """These cells are computed together from now on."""

    cells: Sequence[Cell]


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
class Vitals:
    """What the process takes and has done so far, every few seconds."""

    active: int
    """Bytes that MLX holds."""
    peak: int
    limit: int | None
    """Bytes that it should take at most."""
    free: int | None
    """Bytes that the system has left."""
    layer_calls: float
    """Layers run since the process began, one whole prompt counting as 1."""
    tokens: int
    """Tokens run through a model since the process began."""
    cells: int = 0
    """Cells that the process has stored."""


@dataclass(frozen=True)
class Died:
    """A process ended in the middle of these cells, by itself or killed by the system."""

    cells: Sequence[str]
    """Ids of the cells."""
    cause: str


@dataclass(frozen=True)
class Slept:
    """The machine was asleep."""

    seconds: float


@dataclass(frozen=True)
class RunFinished:
    """The run is over. ``failed`` cells are recorded as such.

    ``interrupted`` names the signal that ended it early, or is :data:`DEADLINE`.
    """

    done: int
    failed: int
    seconds: float
    interrupted: str | None = None


DEADLINE = "deadline"
"""Why a run ended early whose time was limited beforehand."""

Event = (
    RunStarted
    | Stage
    | BatchStarted
    | CellDone
    | CellFailed
    | Note
    | Vitals
    | Died
    | Slept
    | RunFinished
)
Emit = Callable[[Event], None]
