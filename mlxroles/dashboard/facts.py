"""What a run is worth saying in a line: how far, how fast, how long still, what was found."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.text import Text

from mlxroles import documents
from mlxroles.dashboard.bars import COLORS, gauge
from mlxroles.dashboard.layout import clipped, joined, wrapped
from mlxroles.dashboard.pace import Eta
from mlxroles.dashboard.state import RunState
from mlxroles.text import format_bytes, format_seconds, safe_text

_GAUGE = 8
_SHORTEST_BAR, _LONGEST_BAR = 10, 60
_SAME = 1.06
_NEAR = 60.0
"""Seconds below which a range says nothing that one would not see at once."""
LOG_MARKS = {"note": "·", "failed": "✗", "died": "†", "slept": "z", "ended": "■"}
_LOG_STYLES = {"failed": "red", "died": "bold red", "note": "yellow", "slept": "cyan"}


class Memory(NamedTuple):
    """Bytes of memory in use, at most so far, available, and what the system has left."""

    active: float
    peak: float
    limit: float | None
    """None where nothing names a limit."""
    free: float | None = None


MemorySource = Callable[[], tuple[float, float, float | None]]
"""Bytes active, at peak, and the limit: what is asked for at every refresh."""


def memory_of(state: RunState) -> Memory | None:
    """What the run itself has said of its memory."""
    vitals = state.meter.latest
    if vitals is None:
        return None
    return Memory(vitals.active, vitals.peak, vitals.limit, vitals.free)


def coarse(seconds: float) -> str:
    """A duration that is only known roughly: seconds are left out from two minutes on."""
    if seconds < 120:
        return format_seconds(seconds)
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return format_seconds(round(seconds / 60) * 60)


def span(eta: Eta) -> str:
    """The likely time and its range: ``32 min (28–40 min)``."""
    low, likely, high = coarse(eta.low), coarse(eta.likely), coarse(eta.high)
    if eta.high < _NEAR or eta.high <= eta.low * _SAME or low == high:
        return likely
    number, _, unit = low.partition(" ")
    if high.partition(" ")[2] == unit and " " not in unit:
        low = number
    return f"{likely} ({low}–{high})"


def progress_bar(share: float, width: int, color: str) -> Text:
    """A thin bar, full for 1."""
    filled = min(int(min(max(share, 0.0), 1.0) * width), width)
    return Text.assemble(("━" * filled, color), ("━" * (width - filled), "bright_black"))


def overall(state: RunState, width: int) -> Text:
    """Bar, cells, share and what is known of the time."""
    progress, finished = state.progress, state.progress.finished
    share = progress.settled / progress.total if progress.total else 0.0
    parts = [f"{progress.settled}/{progress.total}"] if progress.total or finished else []
    if finished is None and progress.total:
        parts.append(f"{share:.0%}")
        eta = state.remaining
        if eta is not None and eta.likely > 0:
            short = f"ETA {coarse(eta.likely)}"
            long = f"ETA {span(eta)}"
            is_wide = width >= len("  ".join([*parts, long])) + _SHORTEST_BAR + 2
            parts.append(long if is_wide else short)
    elif finished is None:
        parts.append("nothing is counted yet")
    elif finished.interrupted:
        parts.append(f"interrupted ({safe_text(finished.interrupted, limit=20)})")
    else:
        parts.append(f"done in {format_seconds(finished.seconds)}")
    info = "  ".join(parts)
    length = min(width - len(info) - 2, _LONGEST_BAR)
    text = Text()
    if length >= _SHORTEST_BAR:
        color = "yellow" if finished and finished.interrupted else "green"
        text.append_text(progress_bar(share, length, color))
        text.append("  ")
    text.append(info)
    return clipped(text, width)


def status(state: RunState, width: int, memory: Memory | None) -> Text | None:
    """Stage, speed, memory and time, as many as fit; what matters least is left out first."""
    progress = state.progress
    parts: list[tuple[int, Text]] = []
    if progress.stage and progress.finished is None:
        parts.append((0, Text(f"▸ {safe_text(progress.stage, limit=200)}", style="cyan")))
    for rank, speed, unit in (
        (1, state.tokens_per_second, "tokens/s"),
        (3, state.meter.layer_calls, "layer calls/s"),
    ):
        if speed is not None:
            parts.append((rank, Text(f"{speed:,.{0 if speed >= 10 else 1}f} {unit}")))
    if memory is not None:
        used = Text("memory ")
        if memory.limit:
            used.append_text(gauge(memory.active / memory.limit, _GAUGE)).append(" ")
        used.append(format_bytes(memory.active))
        used.append(f" of {format_bytes(memory.limit)}" if memory.limit else "")
        parts.append((2, used))
        if memory.free is not None:
            parts.append((4, Text(f"{format_bytes(memory.free)} free")))
        parts.append((5, Text(f"peak {format_bytes(memory.peak)}")))
    if progress.finished is None and progress.settled:
        parts.append((6, Text(f"{coarse(progress.elapsed)} elapsed")))
    if progress.restored:
        parts.append((7, Text(f"{progress.restored} stored earlier", style="dim")))
    return joined(parts, width) if parts else None


def failure(state: RunState, width: int) -> Text | None:
    """How many cells failed and why the last one did."""
    progress = state.progress
    if not progress.failed:
        return None
    text = Text(f"✗ {progress.failed} failed", style="bold red")
    if progress.last_failure:
        text.append(f"  last: {safe_text(progress.last_failure, limit=300)}", "not bold red")
    return clipped(text, width)


def halves(state: RunState, width: int) -> Text | None:
    """Where each direction crosses half of the effect, as far as it is known."""
    parts: list[tuple[int, Text]] = []
    for rank, (direction, layer, is_whole) in enumerate(crossings(state)):
        where = f"layer {layer}" if is_whole else f"layer {layer} or before"
        name = documents.arrow(direction)
        found = Text.assemble((name, COLORS.get(direction, "")), f" half at {where}")
        parts.append((rank, found))
    return joined([(0, Text("½")), *parts], width, "  ") if parts else None


def crossings(state: RunState) -> Iterator[tuple[str, int, bool]]:
    """Direction, first layer that recovers half, and whether no earlier one can."""
    for direction in state.progress.directions:
        found = state.progress.half_layer(direction)
        if found is not None:
            yield direction, *found


def said(kind: str, at: str, text: str, width: int, *, rows: int = 1) -> list[Text]:
    """A line of the log, on more than one row where it has them."""
    mark = LOG_MARKS.get(kind, "·")
    head = f"{at} {mark} " if at else f"{mark} "
    shown = wrapped(head + safe_text(text, limit=400), width, "", " " * len(head))
    kept = shown[:rows]
    if len(shown) > rows:
        kept = [clipped(Text(head + safe_text(text, limit=400)), width)] if rows == 1 else kept
    for row in kept:
        row.style = _LOG_STYLES.get(kind, "dim")
    return kept


def log(state: RunState, width: int, height: int) -> list[Text]:
    """The last lines of the log, the newest at the end."""
    lines: list[Text] = []
    for each in reversed(state.log):
        if len(lines) >= height:
            break
        lines = said(each.kind, each.time, each.text, width) + lines
    return lines[-height:] if height else []
