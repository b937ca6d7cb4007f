"""How fast a run goes and when it will be over, as a range.

A patched cell runs the layers above it, so that early layers take longer than late ones: times
are compared per layer still to run, not per cell. Cells that were computed together share their
batch's time in equal parts; they count as one observation.
"""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxroles.events import Vitals

_RECENT = 32
_TRUST = 4
"""Batches after which what was measured counts as much as the plan's estimate."""
_LEAST_DOUBT = 0.05
"""Share by which the best of estimates may still be wrong."""
_FIRST_DOUBT = 0.5
_STRAY = 8.0
"""Batches that take this many times the usual are left out: the machine slept or was stuck."""
_WINDOW = 90.0


class Eta(NamedTuple):
    """Seconds still to go."""

    likely: float
    low: float
    high: float


@dataclass
class _Batch:
    """Cells in a row that took the same time each."""

    each: float
    cells: int = 0
    work: float = 0.0
    tokens: int = 0

    @property
    def seconds(self) -> float:
        return self.each * self.cells

    @property
    def pace(self) -> float:
        return self.seconds / self.work


@dataclass
class Pace:
    """Times of the recent batches and the work that is left."""

    estimate: Mapping[str, Any] | None = None
    """Seconds that the whole plan was thought to take: likely, low, high."""
    parallel: int = 1
    """Processes that work on the run at the same time."""
    _n_layers: int = 1
    _total: float = 0.0
    _settled: float = 0.0
    _mean: float = 1.0
    _batches: deque[_Batch] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def begin(
        self, coords: Sequence[Mapping[str, Any]], layers: Sequence[int], n_layers: int
    ) -> None:
        """Sets the plan: the coordinates of its cells, where they are known."""
        self._n_layers = max(n_layers, 1)
        if any("layer" in each for each in coords):
            self._total = sum(self._work(each) for each in coords)
        else:  # a plan that is only counted: cells are spread evenly over the layers
            works = [self._work({"layer": layer}) for layer in layers]
            self._total = len(coords) * (statistics.fmean(works) if works else 1.0)
        self._mean = self._total / len(coords) if coords else 1.0

    def _work(self, coords: Mapping[str, Any]) -> float:
        layer = coords.get("layer")
        return max(self._n_layers - layer, 1) if isinstance(layer, int) else 1.0

    def skip(self, coords: Mapping[str, Any], *, is_new: bool) -> None:
        """Takes in a cell that was stored earlier."""
        self._settled += self._work(coords) * is_new

    def add(
        self, coords: Mapping[str, Any], seconds: float, tokens: int, *, is_new: bool = True
    ) -> None:
        """Takes in a cell that was computed just now."""
        self.skip(coords, is_new=is_new)
        if not self._batches or self._batches[-1].each != seconds:
            self._batches.append(_Batch(seconds))
        batch = self._batches[-1]
        batch.cells += 1
        batch.work += self._work(coords)
        batch.tokens += tokens

    def eta(self, left: int) -> Eta | None:
        """Seconds that this many cells still take; None while nothing is known."""
        if not left:
            return Eta(0.0, 0.0, 0.0)
        work = max(self._total - self._settled, 0.1 * left * self._mean)
        planned = self._planned(work)
        measured = self._measured(work)
        if measured is None or planned is None:
            return measured or planned
        weight = len(self._batches) / (len(self._batches) + _TRUST)
        mixed = (weight * m + (1 - weight) * p for m, p in zip(measured, planned, strict=True))
        return Eta(*mixed)

    def _planned(self, work: float) -> Eta | None:
        share = work / self._total if self._total else 1.0
        given = self.estimate or {}
        likely = given.get("likely")
        if not isinstance(likely, int | float):
            return None
        ends = given.get("low"), given.get("high")
        low, high = (each if isinstance(each, int | float) else likely for each in ends)
        return Eta(likely * share, low * share, high * share)

    def _measured(self, work: float) -> Eta | None:
        batches = [batch for batch in self._batches if batch.seconds > 0]
        if not batches:
            return None
        usual = statistics.median_low([batch.pace for batch in batches])
        kept = [batch for batch in batches if batch.pace <= _STRAY * usual]
        pace = sum(batch.seconds for batch in kept) / sum(batch.work for batch in kept)
        doubt = _FIRST_DOUBT
        if len(kept) > 2:
            spread = statistics.stdev(batch.pace for batch in kept) / pace
            doubt = 2 * spread / len(kept) ** 0.5
        doubt = min(max(doubt, _LEAST_DOUBT), 0.9)
        likely = work * pace / max(self.parallel, 1)
        return Eta(likely, likely * (1 - doubt), likely * (1 + doubt))

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of the recent cells; None while nothing is known."""
        seconds = sum(batch.seconds for batch in self._batches)
        tokens = sum(batch.tokens for batch in self._batches)
        return tokens * self.parallel / seconds if seconds > 0 and tokens else None


@dataclass
class Meter:
    """Rates of the last minute or so, from counters that a process tells every few seconds."""

    latest: Vitals | None = None
    _seen: deque[tuple[float, Vitals]] = field(default_factory=deque)

    def add(self, now: float, vitals: Vitals) -> None:
        """Takes in the counters as they stand at this second of a monotonic clock."""
        before = self._seen[-1][1] if self._seen else vitals
        if vitals.layer_calls < before.layer_calls or vitals.tokens < before.tokens:
            self._seen.clear()  # another process counts from zero
        self.latest = vitals
        self._seen.append((now, vitals))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()

    def _rate(self, name: str) -> float | None:
        if len(self._seen) < 2:
            return None
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        gained = getattr(last, name) - getattr(first, name)
        return gained / (end - begin) if end - begin > 0.5 and gained > 0 else None

    @property
    def layer_calls(self) -> float | None:
        """Layers per second; None while nothing is known."""
        return self._rate("layer_calls")

    @property
    def tokens(self) -> float | None:
        """Tokens per second; None while nothing is known."""
        return self._rate("tokens")
