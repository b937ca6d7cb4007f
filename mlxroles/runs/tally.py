"""How far a run is: its cells counted from the journal without reading their numbers."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlxroles.store.folder import JOURNAL
from mlxroles.store.journal import decode_line
from mlxroles.store.record import Record, record_of

_HEAD = re.compile(rb'([0-9a-f]{8}) (\{"v":1,"id":("(?:[^"\\]|\\.)*"),"status":"(ok|failed)".*)')


@dataclass
class Tally:
    """What the journals of a run hold."""

    ok: set[str] = field(default_factory=set)
    """Ids of the cells whose last line has numbers."""
    failed: dict[str, Record] = field(default_factory=dict)
    """Cells that failed when they were last tried."""
    torn: list[bytes] = field(default_factory=list)
    """Whole lines that are not what was written."""
    lines: int = 0

    def add(self, line: bytes) -> None:
        """Counts one line of a journal."""
        self.lines += 1
        match = _HEAD.fullmatch(line)
        if match is not None and match[4] == b"ok" and int(match[1], 16) == zlib.crc32(match[2]):
            cell = str(json.loads(match[3]))
            self.ok.add(cell)
            self.failed.pop(cell, None)
            return
        record = record_of(decode_line(line) or {})
        if record is None:
            self.torn.append(line)
        elif record.status == "ok":
            self.ok.add(record.id)
            self.failed.pop(record.id, None)
        else:
            self.failed[record.id] = record
            self.ok.discard(record.id)


def tally(path: Path) -> Tally:
    """Counts the cells of a run, its shards included; a line being written is not there yet."""
    found = Tally()
    for journal in journals(path):
        for line in _lines(journal):
            found.add(line)
    return found


def journals(path: Path) -> list[Path]:
    """The journals of a run: its own, then those of the machines that work on it."""
    own = path / JOURNAL
    return [*([own] if own.is_file() else []), *sorted(path.glob(f"shards/*/{JOURNAL}"))]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        data = path.read_bytes()
    except OSError:
        return
    # Text after the last line feed is being written now, or was when the writer was killed.
    whole, _, tail = data.rpartition(b"\n")
    yield from filter(None, whole.split(b"\n"))
    if tail and decode_line(tail) is not None:
        yield tail
