"""The experiments of a queue as a list: what became of each, and what it found in half a line."""

from collections.abc import Sequence

from rich.console import RenderableType

from mlxroles.dashboard import facts
from mlxroles.dashboard.listing import Column, Row, listing
from mlxroles.store.sweep_state import Entry

_COLUMNS = (
    Column("status"),
    Column("cells", is_right=True),
    Column("failed", is_right=True),
    Column("time", is_right=True, turn=1),
)
_STYLES = {"failed": "red", "left": "yellow", "stopped": "yellow", "waiting": "dim"}


def queue_table(entries: Sequence[Entry], title: str = "") -> RenderableType:
    """A list for a terminal or a log; findings stand below the names where it is narrow."""
    return listing(title, "experiment", _COLUMNS, [_row(e) for e in entries], told="found")


def _row(entry: Entry) -> Row:
    total = "?" if entry.cells is None else str(entry.cells)
    is_whole = entry.status == "done" and entry.done == entry.cells
    far = total if is_whole else f"{entry.done}/{total}"
    cells = [
        _status(entry),
        far if entry.done or entry.cells is not None else "",
        str(entry.failed or ""),
        facts.coarse(entry.seconds) if entry.seconds else "",
    ]
    found = entry.error or entry.brief or _opening(entry.sentence)
    return Row(entry.name or entry.kind, cells, found, _STYLES.get(entry.status, ""))


def _status(entry: Entry) -> str:
    """The status in words: what never had its turn was neither left nor stopped."""
    has_begun = entry.done or entry.seconds
    return "not begun" if entry.status in ("left", "stopped") and not has_begun else entry.status


def _opening(text: str | None) -> str:
    """The first sentence of a finding."""
    first, stop, _ = (text or "").partition(". ")
    return first + stop.strip()
