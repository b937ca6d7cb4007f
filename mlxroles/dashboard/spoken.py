"""Runs and queues as sentences, for screen readers and logs: nothing drawn, nothing repeated.

One sentence when something happens, and one a minute about how far it is.
"""

import time
from collections.abc import Callable

from mlxroles import documents
from mlxroles.dashboard import facts
from mlxroles.dashboard.forecast import forecast
from mlxroles.dashboard.pace import Eta
from mlxroles.dashboard.state import RunState, Said
from mlxroles.store.sweep_state import Entry, QueueState
from mlxroles.text import format_bytes, format_seconds, safe_text

MINUTE = 60.0
_LONGEST = 400

Write = Callable[[str], None]


class SpokenRun:
    """Says what is new in the state of a run, and once a minute how far it is."""

    def __init__(self, write: Write, clock: Callable[[], float] = time.monotonic) -> None:
        """Writes whole lines through ``write``."""
        self.write, self.clock = write, clock
        self._last = -MINUTE
        self._heard: Said | None = None
        self._crossed: set[str] = set()
        self._has_begun = False

    def __call__(self, state: RunState) -> None:
        """Says what is worth saying of this state."""
        progress = state.progress
        if not self._has_begun and progress.total:
            self._has_begun = True
            earlier = [said for said in state.log if said.kind != "ended" or not state.is_over]
            self._heard = earlier[-1] if earlier else None
            self.write(f"{safe_text(progress.title, limit=200)}: {progress.total} cells")
        for direction, layer, is_whole in facts.crossings(state):
            if is_whole and direction not in self._crossed:
                self._crossed.add(direction)
                way = f"{documents.donor(direction)} into {documents.recipient(direction)}"
                self.write(f"{_capital(way)}: half of the effect at layer {layer}.")
        for said in _since(list(state.log), self._heard):
            self._heard = said
            self.write(_capital(safe_text(said.text, limit=_LONGEST)) + ".")
        if self.clock() - self._last >= MINUTE and progress.total and not state.is_over:
            self._last = self.clock()
            self.write(progress_sentence(state))


class SpokenQueue:
    """Says what is new in a queue, and once a minute how far its experiment is."""

    def __init__(self, write: Write, clock: Callable[[], float] = time.monotonic) -> None:
        """Writes whole lines through ``write``."""
        self.write, self.clock = write, clock
        self._last = clock()
        self._states: dict[int, str] = {}
        self._heard: tuple[str, str] | None = None

    def __call__(self, queue: QueueState, run: RunState | None) -> None:
        """Says what is worth saying of this state."""
        if not self._states:
            self._begin(queue)
        for place, entry in enumerate(queue.entries, 1):
            before = self._states.get(entry.number, "waiting")
            self._states[entry.number] = entry.status
            if before != entry.status:
                where = f"Experiment {place} of {len(queue.entries)}"
                self.write(entry_sentence(entry, where))
        self._events(queue)
        if self.clock() - self._last >= MINUTE and queue.finished is None:
            self._last = self.clock()
            for place, entry in enumerate(queue.entries, 1):
                if entry.status == "running" and run is not None and run.progress.total:
                    name = safe_text(entry.name, limit=80)
                    where = f"Experiment {place} of {len(queue.entries)}, {name}"
                    self.write(f"{where}: {progress_sentence(run)}")

    def _begin(self, queue: QueueState) -> None:
        guess = forecast(queue, None)
        until = f", until {guess.deadline}" if guess.deadline else ""
        left = f", {about(guess.left)} left" if guess.left and guess.left.likely else ""
        name = safe_text(queue.name, limit=80)
        ended = () if queue.finished else ("done", "failed")
        before = [entry for entry in queue.entries if entry.status in ended]
        self._states = {entry.number: entry.status for entry in before}
        earlier = f", {len(before)} of them done before" if before else ""
        self.write(f"Queue {name}: {len(queue.entries)} experiments{earlier}{left}{until}.")

    def _events(self, queue: QueueState) -> None:
        told = [(str(e.get("time", "")), str(e.get("text", ""))) for e in queue.events]
        known = {
            (str(e.get("time", "")), str(e.get("text", "")))
            for e in queue.events
            if e.get("kind") == "progress"
        }
        if self._heard is None and told:
            self._heard = ("", "") if len(told) < 2 else told[-2]
        at = told.index(self._heard) + 1 if self._heard in told else 0
        for each in told[at:]:
            self._heard = each
            if each not in known:  # said of the experiment already
                self.write(_capital(safe_text(each[1], limit=_LONGEST)) + ".")


def progress_sentence(state: RunState) -> str:
    """How far a run is, how long it takes still, what failed, what memory it uses."""
    progress = state.progress
    share = progress.settled / progress.total if progress.total else 0.0
    parts = [f"{progress.settled} of {progress.total} cells, {round(100 * share)} percent"]
    eta = state.remaining
    if eta is not None and eta.likely > 0:
        parts.append(f"{about(eta)} left")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    speed = state.tokens_per_second
    if speed is not None:
        parts.append(f"{speed:,.0f} tokens per second")
    memory = facts.memory_of(state)
    if memory is not None and memory.limit:
        used = f"{format_bytes(memory.active)} of {format_bytes(memory.limit)}"
        parts.append(f"memory {used}")
    return "; ".join(parts) + "."


def entry_sentence(entry: Entry, where: str) -> str:
    """What became of an experiment, which stands there in the queue."""
    head = f"{where}, {safe_text(entry.name, limit=80)}"
    failed = f", {entry.failed} of them failed" if entry.failed else ""
    found = f" {safe_text(entry.sentence, limit=_LONGEST)}" if entry.sentence else ""
    match entry.status:
        case "running":
            cells = f": {entry.cells} cells" if entry.cells else ""
            return f"{head}, begins{cells}."
        case "done":
            cells = entry.done if entry.cells is None else entry.cells
            return (
                f"{head}, is done: {cells} cells{failed} in {format_seconds(entry.seconds)}.{found}"
            )
        case "failed":
            cause = safe_text(entry.error or "it could not go on", limit=_LONGEST)
            return f"{head}, failed: {cause}."
        case "left":
            return f"{head}, was left: the time was over first."
        case "stopped":
            return f"{head}, was stopped."
        case _:
            return f"{head}, waits."


def about(eta: Eta) -> str:
    """The time and its range in words: ``about 32 min, between 28 min and 40 min,``."""
    low, likely, high = (facts.coarse(each) for each in (eta.low, eta.likely, eta.high))
    return f"about {likely}" if low == high else f"about {likely} (between {low} and {high})"


def _since(log: list[Said], heard: Said | None) -> list[Said]:
    for at in range(len(log) - 1, -1, -1):
        if log[at] is heard:
            return log[at + 1 :]
    return log


def _capital(text: str) -> str:
    return (text[:1].upper() + text[1:]).rstrip(".")
