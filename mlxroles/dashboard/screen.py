"""Draws the state of a run for a given width and height: pure, so every screen can be tested.

From 44 columns up a layer has one bar per direction; below that only its numbers. Layers that
do not fit in the height share a row, which then shows the one farthest from the baseline.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from mlxroles import documents
from mlxroles.dashboard.bars import BASELINE, COLORS, CONTROLS, Mark, bar, control_marks, gauge
from mlxroles.dashboard.progress import Progress, Row, Shown
from mlxroles.events import Event
from mlxroles.text import format_bytes, format_number, format_seconds, safe_text

FINAL_ROWS = 40
"""Rows of the state that stays on the screen after a run."""

NARROW = 44
"""Below this width there are numbers and no bars."""

_MIN_WIDTH, _MAX_WIDTH = 20, 200
_NUMBER = 5
_ROOMY = 20


class Memory(NamedTuple):
    """Bytes of memory in use, at most so far, and available."""

    active: float
    peak: float
    limit: float | None
    """None where the device names no limit."""


MemorySource = Callable[[], tuple[float, float, float | None]]
"""Bytes active, at peak, and the limit: what is asked for at every refresh."""


class Screen:
    """A rich renderable of the run, drawn anew for the console at hand."""

    def __init__(self, progress: Progress, memory: MemorySource | None = None) -> None:
        """Shows this state; ``memory`` yields active, peak and limit in bytes."""
        self.progress = progress
        self.memory = memory
        self._lock = threading.Lock()  # a live view draws from its own thread

    def fold(self, event: Event) -> None:
        """Takes in one event."""
        with self._lock:
            self.progress.fold(event)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the lines for the console's present size."""
        final = self.progress.finished is not None
        height = FINAL_ROWS if final else min(console.size.height - 1, FINAL_ROWS)
        memory = None if self.memory is None else Memory(*self.memory())
        width = min(max(options.max_width, _MIN_WIDTH), _MAX_WIDTH)
        with self._lock:
            drawn = lines(self.progress, width=width, height=height, memory=memory)
        yield Group(*drawn)


def lines(
    progress: Progress, *, width: int, height: int, memory: Memory | None = None
) -> list[Text]:
    """The whole screen as lines, none wider than ``width``, at most ``height`` of them."""
    top = [_title(progress, width), _overall(progress, width)]
    top += [line for line in (_status(progress, width, memory),) if line is not None]
    bottom = [line for line in (_failure(progress, width),) if line is not None]
    if not progress.layers:
        return [*top, *bottom][:height]
    legend = _legend(progress, width)
    if legend is not None and height >= _ROOMY:
        bottom.insert(0, legend)
    if height >= len(top) + len(bottom) + len(progress.layers) + 3:
        top.append(Text())
        bottom.insert(0, Text())
    top.append(_heading(progress, width))
    space = max(height - len(top) - len(bottom), 1)
    groups = grouped(progress.layers, space)
    body = [_layer_row(progress, group, width) for group in groups]
    return [*top, *body, *bottom][:height]


def grouped(layers: Sequence[int], rows: int) -> list[list[int]]:
    """The layers in at most ``rows`` groups of equal size, the last one perhaps smaller."""
    size = max(math.ceil(len(layers) / max(rows, 1)), 1)
    return [list(layers[start : start + size]) for start in range(0, len(layers), size)]


def _clipped(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text


def _title(progress: Progress, width: int) -> Text:
    text = Text.assemble((safe_text(progress.title, limit=200) or "patching", "bold"))
    if progress.layers and len(progress.layers) < progress.n_layers:
        text.append(f"  {len(progress.layers)} of {progress.n_layers} layers", "dim")
    return _clipped(text, width)


def _overall(progress: Progress, width: int) -> Text:
    share = progress.settled / progress.total if progress.total else 0.0
    parts = [f"{progress.settled}/{progress.total}"]
    finished = progress.finished
    if finished is None:
        parts.append(f"{share:.0%}")
        remaining = progress.remaining_seconds
        if remaining:
            parts.append(f"ETA {format_seconds(remaining)}")
    elif finished.interrupted:
        parts.append(f"interrupted ({safe_text(finished.interrupted, limit=20)})")
    else:
        parts.append(f"done in {format_seconds(finished.seconds)}")
    info = "  ".join(parts)
    length = min(width - len(info) - 2, 60)
    text = Text()
    if length >= 10:
        filled = min(int(share * length), length)
        color = "yellow" if finished and finished.interrupted else "green"
        text.append("━" * filled, color)
        text.append("━" * (length - filled), "bright_black")
        text.append("  ")
    text.append(info)
    return _clipped(text, width)


def _status(progress: Progress, width: int, memory: Memory | None) -> Text | None:
    """Stage, speed, memory and time, as many as fit; what matters least is left out first."""
    parts: list[tuple[int, Text]] = []
    if progress.stage and progress.finished is None:
        parts.append((0, Text(f"▸ {safe_text(progress.stage, limit=200)}", style="cyan")))
    speed = progress.tokens_per_second
    if speed is not None:
        digits = 0 if speed >= 10 else 1
        parts.append((1, Text(f"{speed:,.{digits}f} tokens/s")))
    if memory is not None:
        used = Text("memory ")
        if memory.limit:
            used.append_text(gauge(memory.active / memory.limit, 8)).append(" ")
        used.append(format_bytes(memory.active))
        used.append(f" of {format_bytes(memory.limit)}" if memory.limit else "")
        parts.append((2, used))
        parts.append((3, Text(f"peak {format_bytes(memory.peak)}")))
    if progress.finished is None and progress.settled:
        parts.append((4, Text(f"{format_seconds(progress.elapsed)} elapsed")))
    if progress.restored:
        parts.append((5, Text(f"{progress.restored} stored earlier", style="dim")))
    separator = Text.assemble(("  ·  ", "dim"))
    while len(parts) > 1 and separator.join(text for _, text in parts).cell_len > width:
        parts.remove(max(parts, key=lambda part: part[0]))
    return _clipped(separator.join(text for _, text in parts), width) if parts else None


def _failure(progress: Progress, width: int) -> Text | None:
    if not progress.failed:
        return None
    text = Text(f"✗ {progress.failed} failed", style="bold red")
    if progress.last_failure:
        text.append(f"  last: {safe_text(progress.last_failure, limit=300)}", "not bold red")
    return _clipped(text, width)


def _legend(progress: Progress, width: int) -> Text | None:
    if width < NARROW:
        return None
    texts = [f"{BASELINE} unpatched"]
    names = progress.control_names
    texts += [
        f"{char} {name.replace('_', ' ')}" for name, char in CONTROLS.items() if name in names
    ]
    texts.append("▲▼ moved by > .01")
    scale = f"P({safe_text(progress.headline, limit=24)}), 0 to 1"
    return _clipped(Text("  ".join([scale, *texts]), style="dim"), width)


class _Columns(NamedTuple):
    label: int
    bar: int
    """Cells of a bar; 0 where there is no room for one."""

    @property
    def value(self) -> int:
        return _NUMBER + (3 if self.bar else 1)

    @property
    def gap(self) -> int:
        return 2 if self.bar else 1


def _columns(progress: Progress, width: int) -> _Columns:
    widest = len(str(max(progress.layers)))
    count = max(len(progress.directions), 1)
    if width < NARROW:
        return _Columns(2 * widest + 1 if widest < 3 else widest, 0)
    label = max(2 * widest + 1, len("layer"))
    each = (width - label) // count - 2
    return _Columns(label, each - _NUMBER - 3)


def _heading(progress: Progress, width: int) -> Text:
    columns = _columns(progress, width)
    text = Text(("layer" if columns.bar else "L").rjust(columns.label), style="dim")
    for direction in progress.directions:
        text.append(" " * columns.gap)
        name = documents.arrow(direction)
        if not columns.bar:
            name = f"{documents.donor(direction)[0]}→{documents.recipient(direction)[0]}"
        room = columns.bar + columns.value
        level = progress.baseline(direction)
        mark = "" if math.isnan(level) else f"{BASELINE} {format_number(level)}"
        spread = room - len(name) - len(mark) - 2
        name = name[:room]
        text.append(name, f"bold not dim {COLORS.get(direction, '')}")
        if columns.bar and mark and spread >= 2:
            text.append(" " * spread + mark + "  ", "not dim")
        else:
            text.append(" " * (room - len(name)))
    text.rstrip()
    return _clipped(text, width)


def _layer_row(progress: Progress, group: Sequence[int], width: int) -> Text:
    columns = _columns(progress, width)
    label = str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"
    text = Text(label.rjust(columns.label))
    for direction in progress.directions:
        text.append(" " * columns.gap)
        layer, shown = _representative(progress, direction, group)
        level = progress.baseline(direction)
        if columns.bar:
            marks = control_marks(progress.controls(direction, layer))
            marks.append(Mark(level, BASELINE, "bold"))
            value = math.nan if shown is None else shown.value
            text.append_text(bar(value, columns.bar, COLORS.get(direction, ""), marks))
            text.append(" ")
        failed = any(progress.has_failed(Row(direction, each)) for each in group)
        text.append_text(_value(shown, level, failed=failed, roomy=bool(columns.bar)))
    text.rstrip()
    return _clipped(text, width)


def _representative(
    progress: Progress, direction: str, group: Sequence[int]
) -> tuple[int, Shown | None]:
    """The layer of the group that is farthest from the baseline, and what it shows."""
    level = progress.baseline(direction)
    level = 0.0 if math.isnan(level) else level
    landed = {layer: progress.shown(Row(direction, layer)) for layer in group}
    known = {layer: shown for layer, shown in landed.items() if shown is not None}
    if not known:
        return group[0], None
    numbers = {layer: shown for layer, shown in known.items() if not math.isnan(shown.value)}
    layer = max(numbers or known, key=lambda each: abs(known[each].value - level))
    return layer, known[layer]


def _value(shown: Shown | None, level: float, *, failed: bool, roomy: bool) -> Text:
    """The number beside the bar and, after it, which way it moved: ▲, ▼, or ? for a gap."""
    width = _NUMBER + (2 if roomy else 1)
    if shown is None:
        text = Text("✗" if failed else "·", style="red" if failed else "dim")
        return Text(" " * (_NUMBER - 1)) + text + Text(" " * (width - _NUMBER))
    if math.isnan(shown.value):
        return Text("NaN".rjust(_NUMBER).ljust(width), style="bold red")
    sign = " "
    effect = shown.value - level
    if abs(effect) > documents.MARKED_EFFECT:
        sign = "▲" if effect > 0 else "▼"
    if shown.missing or failed:
        sign = "?"
    return Text(format_number(shown.value).rjust(_NUMBER) + (" " if roomy else "") + sign)
