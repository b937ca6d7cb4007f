"""The curve of a patch run: a row per layer with a bar per direction and what it is compared with.

From 44 columns up a layer has one bar per direction; below that only its numbers. Layers that do
not fit in the height share a row, which then shows the one farthest from the baseline.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from mlxroles import documents
from mlxroles.dashboard.bars import BASELINE, COLORS, CONTROLS, Mark, bar, control_marks
from mlxroles.dashboard.layout import clipped
from mlxroles.dashboard.progress import Progress, Row, Shown
from mlxroles.text import format_number, safe_text

NARROW = 44
"""Below this width there are numbers and no bars."""

_NUMBER = 5


def curves(progress: Progress, width: int, height: int) -> list[Text]:
    """The heading and the layers, in this many lines."""
    groups = grouped(progress.layers, max(height - 1, 1))
    body = [_layer_row(progress, group, width) for group in groups]
    return [_heading(progress, width), *body][:height] if height > 1 else body[:height]


def heights(progress: Progress) -> list[int]:
    """Rows that the heading and the layers can fill, with fewer and fewer layers per row."""
    count = len(progress.layers)
    return sorted({math.ceil(count / size) + 1 for size in range(1, count + 1)})


def grouped(layers: Sequence[int], rows: int) -> list[list[int]]:
    """The layers in at most ``rows`` groups of equal size, the last one perhaps smaller."""
    size = max(math.ceil(len(layers) / max(rows, 1)), 1)
    return [list(layers[start : start + size]) for start in range(0, len(layers), size)]


def legend(progress: Progress, width: int) -> Text | None:
    """What the marks on the bars stand for; nothing where there are no bars."""
    if width < NARROW:
        return None
    texts = [f"{BASELINE} unpatched"]
    names = progress.control_names
    texts += [
        f"{char} {name.replace('_', ' ')}" for name, char in CONTROLS.items() if name in names
    ]
    texts.append("▲▼ moved by > .01")
    scale = f"P({safe_text(progress.headline, limit=24)}), 0 to 1"
    return clipped(Text("  ".join([scale, *texts]), style="dim"), width)


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
    return clipped(text, width)


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
    return clipped(text, width)


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
