"""The state of a run as its events tell it: what is shown, without how it is shown.

A row is one (direction, layer, control). It holds a value per prompt and, for runs over heads
or positions, per head and position; what it shows is the mean over prompts and, of several
heads or positions, the one farthest from the recipient's baseline.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxroles import documents
from mlxroles.events import (
    CellDone,
    CellFailed,
    Event,
    Note,
    RunFinished,
    RunStarted,
    Stage,
)

_RECENT = 32


class Shown(NamedTuple):
    """What one row shows."""

    value: float
    """Mean over the prompts that have a number; NaN when none has."""
    missing: int
    """Prompts whose value is NaN."""


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
    title: str = ""
    stage: str = ""
    total: int = 0
    done: int = 0
    failed: int = 0
    restored: int = 0
    last_failure: str = ""
    finished: RunFinished | None = None
    started_at: float | None = None
    _values: dict[Row, dict[tuple[Any, Any], dict[Any, float]]] = field(default_factory=dict)
    _baselines: dict[str, dict[Any, float]] = field(default_factory=dict)
    control_names: set[str] = field(default_factory=set)
    _failed_rows: set[Row] = field(default_factory=set)
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def fold(self, event: Event) -> None:
        """Takes in one event."""
        match event:
            case RunStarted(title, _, cells, _):
                self.title, self.total = title, len(cells)
                self.started_at = self.clock()
            case Stage(text):
                self.stage = text
            case CellDone():
                self._land(event)
            case CellFailed(cell, error):
                self.failed += 1
                self.last_failure = f"{cell.id}: {error}"
                row = _row(cell.coords)
                if row is not None:
                    self._failed_rows.add(row)
            case RunFinished():
                self.finished, self.stage = event, ""
            case Note():
                pass

    def _land(self, event: CellDone) -> None:
        self.done += 1
        self.stage = ""
        if event.restored:
            self.restored += 1
        else:
            self._recent.append((event.seconds, event.tokens))
        number = documents.number(event.values, self.value)
        coords = event.cell.coords
        prompt = coords.get("prompt")
        row = _row(coords)
        if row is not None:
            part = coords.get("head"), coords.get("position")
            self._put(row, part, prompt, number)
        elif coords.get("baseline") is not None:
            self._baselines.setdefault(str(coords["baseline"]), {})[prompt] = number

    def _put(self, row: Row, part: tuple[Any, Any], prompt: object, number: float) -> None:
        self._values.setdefault(row, {}).setdefault(part, {})[prompt] = number
        if row.control is not None:
            self.control_names.add(row.control)

    def baseline(self, direction: str) -> float:
        """Mean over prompts of the recipient's own value; NaN while it is unknown."""
        return _mean(self._baselines.get(documents.recipient(direction), {})).value

    def shown(self, row: Row) -> Shown | None:
        """What the row shows; None while no cell of it has landed."""
        parts = self._values.get(row)
        if not parts:
            return None
        means = [_mean(prompts) for prompts in parts.values()]
        if len(means) == 1:
            return means[0]
        level = self.baseline(row.direction)
        level = 0.0 if math.isnan(level) else level
        known = [mean for mean in means if not math.isnan(mean.value)]
        return max(known or means, key=lambda mean: abs(mean.value - level))

    def has_failed(self, row: Row) -> bool:
        """Whether a cell of this row failed."""
        return row in self._failed_rows

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
        return self.done + self.failed

    @property
    def elapsed(self) -> float:
        """Seconds since the run started, by the monotonic clock."""
        if self.finished is not None:
            return self.finished.seconds
        return 0.0 if self.started_at is None else self.clock() - self.started_at

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate from the median of the recent cell times; None while nothing is known."""
        if not self._recent or not self.total:
            return None
        median = statistics.median(seconds for seconds, _ in self._recent)
        return median * max(self.total - self.settled, 0)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of the recent cells; None while nothing is known."""
        seconds = sum(seconds for seconds, _ in self._recent)
        tokens = sum(tokens for _, tokens in self._recent)
        return tokens / seconds if seconds > 0 and tokens else None


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
    view.title = " · ".join([name, what, str(doc.get("site") or "")])
    for model in ("instruct", "base"):
        value = documents.number(documents.baseline(doc, model), view.value)
        view._baselines[model] = {None: value}
    seconds = 0.0
    count = 0
    for control in [None, *documents.controls(doc)]:
        for direction in view.directions:
            for layer, values in documents.cells(doc, direction, control).items():
                inner = {**(values.get("by_head") or {}), **(values.get("by_position") or {})}
                for part, part_values in inner.items() or [(None, values)]:
                    number = documents.number(part_values, view.value)
                    view._put(Row(direction, layer, control), (part, None), None, number)
                    time_s = documents.number(part_values, "time_s")
                    seconds += 0.0 if math.isnan(time_s) else time_s
                    count += 1
    view.total = view.done = count
    view.failed = len(doc.get("failed_cells") or [])
    view.total += view.failed
    view.finished = RunFinished(view.done, view.failed, seconds)
    return view


def _row(coords: Mapping[str, Any]) -> Row | None:
    direction, layer = coords.get("direction"), coords.get("layer")
    if direction is None or not isinstance(layer, int):
        return None
    return Row(str(direction), layer, coords.get("control"))


def _mean(values: Mapping[Any, float]) -> Shown:
    known = [value for value in values.values() if not math.isnan(value)]
    missing = len(values) - len(known)
    return Shown(statistics.fmean(known) if known else math.nan, missing)
