"""The state of a run as its events tell it: what is shown, without how it is shown.

A row is one (direction, layer, control). It holds a value per prompt and, for runs over heads
or positions, per head and position; what it shows is the mean over prompts and, of several
heads or positions, the one farthest from the recipient's baseline.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxroles import documents
from mlxroles.dashboard.pace import Eta, Pace
from mlxroles.events import Cell, CellDone, CellFailed, Event, RunFinished, RunStarted, Stage

ODDS = "log_odds"
"""The key of the log-odds that recovery is measured in."""

_AXES = ("head", "position")


class Shown(NamedTuple):
    """What one row shows."""

    value: float
    """Mean over the prompts that have a number; NaN when none has."""
    missing: int
    """Prompts whose value is NaN."""


Part = tuple[Any, Any]
"""Head and position of a cell; None or a range as text where it is not one of many."""


class Row(NamedTuple):
    """Names a row: a direction, a layer, and the control or None."""

    direction: str
    layer: int
    control: str | None = None


@dataclass
class Progress:
    """Folds events into what a view needs; :meth:`fold` is the only way to change it."""

    layers: Sequence[int]
    """Tested layers, ascending."""
    directions: Sequence[str]
    """Tested directions, in the order of the columns."""
    n_layers: int
    """Layers of the model."""
    headline: str
    """The string whose probability is shown."""
    value: str = "tool_call_prob"
    """The key of that probability in the values of a cell."""
    clock: Callable[[], float] = time.monotonic
    """Seconds from an arbitrary start; never goes backwards."""
    columns: dict[str, set[int]] = field(default_factory=dict)
    """Heads and positions that have cells of their own, as far as they are known."""
    learns_from_stored: bool = False
    """Whether times of cells that were stored earlier tell how fast it goes."""
    title: str = ""
    stage: str = ""
    total: int = 0
    last_failure: str = ""
    finished: RunFinished | None = None
    started_at: float | None = None
    pace: Pace = field(default_factory=Pace)
    control_names: set[str] = field(default_factory=set)
    restored: int = 0
    _settled: dict[str, bool] = field(default_factory=dict)
    _values: dict[Row, dict[Part, dict[Any, float]]] = field(default_factory=dict)
    _means: dict[Row, dict[Part, Shown]] = field(default_factory=dict)
    _odds: dict[Row, dict[Any, float]] = field(default_factory=dict)
    _baselines: dict[str, dict[Any, float]] = field(default_factory=dict)
    _baseline_odds: dict[str, dict[Any, float]] = field(default_factory=dict)
    _failed_rows: dict[Row, dict[str, Part]] = field(default_factory=dict)
    _extra: int = 0

    def fold(self, event: Event) -> None:
        """Takes in one event."""
        match event:
            case RunStarted(title, _, cells, _):
                self._start(title, cells)
            case Stage(text):
                self.stage = text
            case CellDone():
                self._land(event)
            case CellFailed(cell, error):
                if self._settled.get(cell.id) is not True:
                    self._settled[cell.id] = False
                    self.last_failure = f"{cell.id}: {error}"
                row = _row(cell.coords)
                if row is not None:
                    self._failed_rows.setdefault(row, {})[cell.id] = _part(cell.coords)
            case RunFinished():
                self.finished, self.stage = event, ""

    def _start(self, title: str, cells: Sequence[Cell]) -> None:
        self.title, self.total, self.finished = title, len(cells), None
        if self.started_at is None:
            self.started_at = self.clock()
        self.pace.begin([cell.coords for cell in cells], self.layers, self.n_layers)
        for cell in cells:
            self._note_columns(cell.coords)

    def _note_columns(self, coords: Mapping[str, Any]) -> None:
        for axis in _AXES:
            at = coords.get(axis)
            if isinstance(at, int):
                self.columns.setdefault(axis, set()).add(at)

    def _land(self, event: CellDone) -> None:
        cell = event.cell
        is_new = self._settled.get(cell.id) is not True
        self._settled[cell.id] = True
        self.stage = ""
        if event.restored:
            self.restored += is_new
        else:
            self.finished = None
        if event.restored and not self.learns_from_stored:
            self.pace.skip(cell.coords, is_new=is_new)
        else:
            self.pace.add(cell.coords, event.seconds, event.tokens, is_new=is_new)
        number = documents.number(event.values, self.value)
        odds = documents.number(event.values, ODDS)
        prompt = cell.coords.get("prompt")
        row = _row(cell.coords)
        if row is not None:
            self._note_columns(cell.coords)
            self._failed_rows.get(row, {}).pop(cell.id, None)
            self._put(row, _part(cell.coords), prompt, number)
            self._odds.setdefault(row, {})[prompt] = odds
        elif cell.coords.get("baseline") is not None:
            model = str(cell.coords["baseline"])
            self._baselines.setdefault(model, {})[prompt] = number
            self._baseline_odds.setdefault(model, {})[prompt] = odds

    def _put(self, row: Row, part: Part, prompt: object, number: float) -> None:
        prompts = self._values.setdefault(row, {}).setdefault(part, {})
        prompts[prompt] = number
        self._means.setdefault(row, {})[part] = _mean(prompts)
        if row.control is not None:
            self.control_names.add(row.control)

    @property
    def done(self) -> int:
        """Cells that are stored."""
        return sum(self._settled.values()) + self._extra

    @property
    def failed(self) -> int:
        """Cells that failed and were not done since."""
        return len(self._settled) - sum(self._settled.values())

    def baseline(self, direction: str) -> float:
        """Mean over prompts of the recipient's own value; NaN while it is unknown."""
        return _mean(self._baselines.get(documents.recipient(direction), {})).value

    def shown(self, row: Row) -> Shown | None:
        """What the row shows: of several cells the furthest from the baseline; None before."""
        parts = self._means.get(row)
        if not parts:
            return None
        if len(parts) == 1:
            return next(iter(parts.values()))
        level = self.baseline(row.direction)
        if math.isnan(level):
            return None
        known = [mean for mean in parts.values() if not math.isnan(mean.value)]
        return max(known or parts.values(), key=lambda mean: abs(mean.value - level))

    @property
    def part_axis(self) -> str | None:
        """``head`` or ``position`` where a layer has a cell for each of them."""
        return next((axis for axis in _AXES if len(self.columns.get(axis, ())) > 1), None)

    @property
    def parts(self) -> list[int]:
        """The heads or positions of :attr:`part_axis`, ascending."""
        axis = self.part_axis
        return sorted(self.columns[axis]) if axis else []

    def effects(self, direction: str) -> dict[tuple[int, int], float]:
        """Value less baseline by layer and head or position; NaN where the value has none.

        Nothing but what failed is known before the baseline is.
        """
        axis = self.part_axis
        level = self.baseline(direction)
        found: dict[tuple[int, int], float] = {}
        for layer in self.layers if axis else ():
            row = Row(direction, layer)
            broken = dict.fromkeys(self._failed_rows.get(row, {}).values(), Shown(math.nan, 1))
            means = {} if math.isnan(level) else self._means.get(row, {})
            for (head, position), mean in (broken | means).items():
                at = head if axis == "head" else position
                if isinstance(at, int):
                    found[layer, at] = mean.value - level
        return found

    def half_layer(self, direction: str) -> tuple[int, bool] | None:
        """First layer seen to recover half of the log-odds, and whether all before it are in.

        None while no layer does, where layers hold several cells, and where the baselines are too
        near each other for a recovery.
        """
        levels = {
            model: _mean(self._baseline_odds.get(model, {})).value
            for model in (documents.donor(direction), documents.recipient(direction))
        }
        start = levels[documents.recipient(direction)]
        gap = levels[documents.donor(direction)] - start
        if not abs(gap) >= documents.SMALL_GAP or self.part_axis is not None:
            return None
        is_whole = True
        for layer in self.layers:
            odds = self._odds.get(Row(direction, layer))
            if odds is None:
                is_whole = False
            elif (_mean(odds).value - start) / gap >= documents.HALF:
                return layer, is_whole
        return None

    def has_failed(self, row: Row) -> bool:
        """Whether a cell of this row failed."""
        return bool(self._failed_rows.get(row))

    def controls(self, direction: str, layer: int) -> dict[str, float]:
        """The values of the controls that have landed for this layer."""
        found = {}
        for name in sorted(self.control_names):
            shown = self.shown(Row(direction, layer, name))
            if shown is not None and not math.isnan(shown.value):
                found[name] = shown.value
        return found

    @property
    def settled(self) -> int:
        """Cells that are done or have failed."""
        return len(self._settled) + self._extra

    @property
    def elapsed(self) -> float:
        """Seconds since the run started, by the monotonic clock."""
        if self.finished is not None:
            return self.finished.seconds
        return 0.0 if self.started_at is None else self.clock() - self.started_at

    @property
    def remaining(self) -> Eta | None:
        """Seconds still to go, with their range; None while nothing is known."""
        left = max(self.total - self.settled, 0)
        return self.pace.eta(left) if self.total else None

    @property
    def remaining_seconds(self) -> float | None:
        """The likely one of :attr:`remaining`."""
        eta = self.remaining
        return None if eta is None else eta.likely

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of the recent cells; None while nothing is known."""
        return self.pace.tokens_per_second


def from_document(doc: Mapping[str, Any]) -> Progress:
    """The final state of the run that this patch document summarises."""
    tested = documents.layers(doc)
    view = Progress(
        tested,
        documents.directions(doc),
        n_layers=int(doc.get("n_layers") or len(tested)),
        headline=str(doc.get("headline", "")),
    )
    prompts = doc.get("prompts") or []
    what = str(prompts[0].get("id")) if len(prompts) == 1 else f"{len(prompts)} prompts"
    name = str(doc.get("display") or doc.get("pair") or "")
    where = documents.place(doc.get("site") or "", doc.get("positions", "all"), doc.get("heads"))
    view.title = " · ".join([name, what, where])
    seconds = 0.0
    count = 0
    for model in ("instruct", "base"):
        value = documents.number(documents.baseline(doc, model), view.value)
        view._baselines[model] = {None: value}
        count += not math.isnan(value)
        odds = documents.number(documents.baseline(doc, model), ODDS)
        view._baseline_odds[model] = {None: odds}
    for control in [None, *documents.controls(doc)]:
        for direction in view.directions:
            for layer, values in documents.cells(doc, direction, control).items():
                for part, part_values in _parts_of(values):
                    number = documents.number(part_values, view.value)
                    view._put(Row(direction, layer, control), part, None, number)
                    view._note_columns(dict(zip(_AXES, part, strict=True)))
                    time_s = documents.number(part_values, "time_s")
                    seconds += 0.0 if math.isnan(time_s) else time_s
                    count += 1
                if len(view._means[Row(direction, layer, control)]) == 1:
                    odds = documents.number(values, ODDS)
                    view._odds[Row(direction, layer, control)] = {None: odds}
    view._extra = count
    view._settled = {str(at): False for at, _ in enumerate(doc.get("failed_cells") or [])}
    view.total = view.settled
    view.finished = RunFinished(view.done, view.failed, seconds)
    return view


def _parts_of(values: Mapping[str, Any]) -> Iterator[tuple[Part, Mapping[str, Any]]]:
    """The cells of a layer by head and position, or the layer itself."""
    by_head, by_position = values.get("by_head") or {}, values.get("by_position") or {}
    if not by_head and not by_position:
        yield (None, None), values
    for head, inner in by_head.items():
        yield (int(head), None), inner or {}
    for position, inner in by_position.items():
        yield (None, int(position)), inner or {}


def _row(coords: Mapping[str, Any]) -> Row | None:
    direction, layer = coords.get("direction"), coords.get("layer")
    if direction is None or not isinstance(layer, int):
        return None
    return Row(str(direction), layer, coords.get("control"))


def _part(coords: Mapping[str, Any]) -> Part:
    return coords.get("head"), coords.get("position")


def _mean(values: Mapping[Any, float]) -> Shown:
    known = [value for value in values.values() if not math.isnan(value)]
    missing = len(values) - len(known)
    return Shown(statistics.fmean(known) if known else math.nan, missing)
