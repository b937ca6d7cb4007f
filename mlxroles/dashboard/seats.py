"""The cells of a run without layers: a row per model or step, a mark per prompt."""

import math
from collections.abc import Iterator

from rich.text import Text

from mlxroles import documents
from mlxroles.dashboard.curves import grouped
from mlxroles.dashboard.layout import clipped
from mlxroles.dashboard.state import RunState
from mlxroles.text import format_number, safe_text

DONE, PART, WAITING, FAILED = "█", "▄", "·", "✗"
_LABEL = 28
_NUMBERS = 4


def rows_wanted(state: RunState) -> int:
    """Rows that the grid and the last numbers can use."""
    return len(_names(state)) + (state.latest is not None)


def seats(state: RunState, width: int, height: int) -> list[Text]:
    """A row per model, variant or step, and the numbers that came last."""
    names = _names(state)
    label = min(max((len(name) for name in names), default=0), _LABEL, width // 3)
    last = _last(state, width)
    room = height - (last is not None and height > 1)
    lines = [_row(state, name, label, width) for name in names[:room]]
    if last is not None and height > len(lines):
        lines.append(last)
    return lines


def _names(state: RunState) -> list[str]:
    return list(dict.fromkeys((*state.planned, *state.seats)))


def _row(state: RunState, name: str, label: int, width: int) -> Text:
    done = state.seats.get(name, {})
    prompts = state.view.get("prompts")
    counted = len(prompts) if isinstance(prompts, list | tuple) else 0
    count = max(state.planned.get(name, 0), counted, max(done, default=-1) + 1)
    n_done = sum(done.values())
    counter = f"  {n_done}/{count}"
    shown = safe_text(name, limit=label).ljust(label)
    room = max(width - label - 1 - len(counter), 4)
    text = Text(f"{shown} ", no_wrap=True)
    for group in grouped(range(count), room):
        states = [done.get(at) for at in group]
        if False in states:
            text.append(FAILED, "bold red")
        elif None not in states:
            text.append(DONE, "green")
        elif True in states:
            text.append(PART, "green")
        else:
            text.append(WAITING, "dim")
    text.append(counter)
    return clipped(text, width)


def _last(state: RunState, width: int) -> Text | None:
    """The cell that came last and as many of its numbers as fit."""
    if state.latest is None:
        return None
    text = Text(f"last: {safe_text(state.latest.cell.id, limit=60)}", style="dim")
    for part in _numbers(state):
        if text.cell_len + len(part) > width:
            break
        text.append(part, "not dim")
    return clipped(text, width)


def _numbers(state: RunState) -> Iterator[str]:
    if state.latest is None:
        return
    values = state.latest.values
    for name in list(values)[: 4 * _NUMBERS]:
        value = documents.number(values, name)
        if not math.isnan(value):
            yield f"  {safe_text(name, limit=20)} {format_number(value, '.3g')}"
