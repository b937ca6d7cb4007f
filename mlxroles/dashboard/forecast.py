"""When a queue will be over: what has been spent, what is left, and whether the time suffices."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mlxroles.dashboard.pace import Eta
from mlxroles.dashboard.state import RunState
from mlxroles.store.sweep_state import Entry, QueueState
from mlxroles.text import format_seconds

_DOUBT = 0.5


@dataclass(frozen=True)
class Forecast:
    """What is known of the time that a queue takes."""

    elapsed: float
    """Seconds since it started."""
    left: Eta | None
    """None while an experiment that waits has no estimate and none has run."""
    share: float
    """Of the work, by time where every experiment has an estimate, otherwise by experiments."""
    until: float | None
    """Seconds to the deadline."""
    deadline: str = ""
    """Its time of day."""
    each: Mapping[int, Eta] = field(default_factory=dict)
    """Seconds that experiments still take, by number, where they are known."""

    @property
    def is_late(self) -> bool:
        """Whether the deadline will most likely come first."""
        return self.until is not None and self.left is not None and self.left.likely > self.until

    def when(self, queue: QueueState) -> str:
        """How long it has run and, where there is a deadline, how long it may."""
        if queue.finished is not None:
            return f"ended {clock_time(queue.finished)}"
        parts = [f"{_short(self.elapsed)} so far"]
        if self.until is not None:
            parts.append(f"until {self.deadline}, in {_short(max(self.until, 0))}")
        return "  ".join(parts)


def forecast(queue: QueueState, run: RunState | None, now: datetime | None = None) -> Forecast:
    """What the state of the queue and of its run say about the time."""
    now = now or datetime.now(UTC)
    start, end = _time(queue.started), _time(queue.finished)
    until = _time(queue.until)
    elapsed = ((end or now) - start).total_seconds() if start else 0.0
    each = {e.number: eta for e in queue.entries if (eta := _ahead(e, run)) is not None}
    pending = [e for e in queue.entries if e.status in ("running", "waiting")]
    left = _sum(each[e.number] for e in pending if e.number in each)
    if any(e.number not in each for e in pending):
        left = None
    return Forecast(
        max(elapsed, 0.0),
        left if queue.finished is None else None,
        _share(queue, run, left),
        (until - now).total_seconds() if until else None,
        clock_time(queue.until or ""),
        each,
    )


def _share(queue: QueueState, run: RunState | None, left: Eta | None) -> float:
    over = [e for e in queue.entries if e.status not in ("running", "waiting")]
    if queue.finished is not None or len(over) == len(queue.entries):
        return 1.0
    spent = sum(e.seconds for e in queue.entries)  # also of those that wait for a second turn
    if left is not None and spent + left.likely > 0:
        return spent / (spent + left.likely)
    parts = 0.0
    for entry in queue.entries:
        settled, total = entry.done + entry.failed, entry.cells
        if entry.status == "running" and run is not None and run.progress.total:
            settled, total = run.progress.settled, run.progress.total
        if entry.status in ("running", "waiting") and total:
            parts += min(settled / total, 1.0)
    return (len(over) + parts) / max(len(queue.entries), 1)


def _ahead(entry: Entry, run: RunState | None) -> Eta | None:
    if entry.status == "running" and run is not None and run.remaining is not None:
        return run.remaining
    if entry.status not in ("running", "waiting") or entry.estimate is None:
        return None
    share = 1.0
    if entry.cells:
        share = max(entry.cells - entry.done - entry.failed, 0) / entry.cells
    low = entry.estimate * (1 - _DOUBT) if entry.estimate_low is None else entry.estimate_low
    high = entry.estimate * (1 + _DOUBT) if entry.estimate_high is None else entry.estimate_high
    return Eta(entry.estimate * share, low * share, high * share)


def _sum(etas: Iterable[Eta]) -> Eta:
    """All of them one after the other: errors of estimates rarely cancel, so ends are added."""
    found = list(etas)
    return Eta(*(sum(parts) for parts in zip(*found, strict=True))) if found else Eta(0, 0, 0)


def _time(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    if found is not None and found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return found


def clock_time(text: str) -> str:
    """The local time of day of an ISO time: ``02:41``; empty where it is none."""
    found = _time(text)
    return "" if found is None else f"{found.astimezone():%H:%M}"


def _short(seconds: float) -> str:
    return format_seconds(seconds if seconds < 60 else round(seconds / 60) * 60).replace(
        " min 00 s", " min"
    )
