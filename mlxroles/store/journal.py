"""The truth of a run: an append-only file with one line per finished or failed cell.

A line is ``crc32 json``: eight hex digits of the CRC-32 of the JSON text, a space, the JSON text.
It is written by one system call and synced before the next one starts. A line that does not match
its CRC is passed over and counted, never believed: that is the torn tail of a process that was
killed, or damage. JSON has no NaN: a number that is not finite is written as ``{"$": "nan"}``.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mlxroles.errors import StoreError
from mlxroles.store.files import plain_errors, shown, sync, sync_folder, write_all

SCHEMA = 1
"""Version of a journal line, its field ``v``."""

_LINE = re.compile(rb"([0-9a-f]{8}) (.*)")


class JournalContent(NamedTuple):
    """What a journal holds."""

    entries: list[dict[str, object]]
    """Valid lines in the order in which they were written."""
    torn_lines: int
    """Number of lines that were passed over."""


class JournalWriter:
    """Appends lines to a journal.

    Raises:
        StoreError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        """Opens the journal at ``path`` and creates it if need be."""
        self.path = path
        with plain_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._handle = os.open(path, flags, 0o666)
            size = os.fstat(self._handle).st_size
            self._fresh = size == 0 or os.pread(self._handle, 1, size - 1) == b"\n"
            sync_folder(path.parent)

    def append(self, line: bytes) -> None:
        """Writes one line of ``encode_line`` and returns when it is on the medium.

        Raises:
            StoreError: it cannot be written. The journal stays valid, a later line starts afresh.
        """
        with plain_errors(self.path, needed=len(line)):
            if not os.path.samestat(self.path.stat(), os.fstat(self._handle)):
                raise StoreError(
                    f"{shown(self.path)} was replaced while the run was going on:"
                    " nothing more is written"
                )
            data = line if self._fresh else b"\n" + line
            self._fresh = False
            write_all(self._handle, data)
            self._fresh = True
            sync(self._handle)

    def close(self) -> None:
        """Closes the file; every line is on the medium already."""
        os.close(self._handle)


def read_journal(path: Path) -> JournalContent:
    """Reads every valid line; a journal that does not exist yet is empty.

    Raises:
        StoreError: it cannot be read, or a line has a schema that this version does not know.
    """
    with plain_errors(path, verb="read"):
        data = path.read_bytes() if path.exists() else b""
    entries: list[dict[str, object]] = []
    torn = 0
    for line in filter(None, data.split(b"\n")):
        entry = decode_line(line)
        if entry is None:
            torn += 1
        elif entry.get("v") != SCHEMA:
            raise StoreError(
                f"{shown(path)} has lines of schema {entry.get('v')!r}, this mlxroles reads schema"
                f" {SCHEMA}: use the version that wrote the run"
            )
        else:
            entries.append(entry)
    return JournalContent(entries, torn)


class Tail:
    """The whole lines that were added to a file since it was last read."""

    def __init__(self, path: Path) -> None:
        """Reads the file at ``path``, which need not exist yet, from its beginning."""
        self.path, self._offset, self._file = path, 0, -1

    def lines(self) -> list[bytes]:
        """New lines; a file that was replaced is read from its beginning."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._file or facts.st_size < self._offset:
                    self._file, self._offset = facts.st_ino, 0
                file.seek(self._offset)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._offset += len(whole) + len(end)
        return [line for line in whole.split(b"\n") if line]


def encode_line(entry: Mapping[str, object]) -> bytes:
    """The line that stands for an entry, with its line feed."""
    doc = _encode({"v": SCHEMA, **entry})
    text = json.dumps(doc, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode_line(line: bytes) -> dict[str, object] | None:
    """The entry that a line stands for, None if it was damaged."""
    match = _LINE.fullmatch(line.rstrip(b"\n"))
    if match is None or int(match[1], 16) != zlib.crc32(match[2]):
        return None
    try:
        entry = _decode(json.loads(match[2]))
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _encode(value: object) -> object:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$": str(float(value))}
    if isinstance(value, Mapping):
        doc = {str(key): _encode(item) for key, item in value.items()}
        return {"$": doc} if doc.keys() == {"$"} else doc
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    # numpy and mlx scalars and arrays, without importing either
    to_list = getattr(value, "tolist", None)
    return value if to_list is None else _encode(to_list())


def _decode(value: object) -> object:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$"}:
        inner = value["$"]
        return {"$": _decode(inner["$"])} if isinstance(inner, dict) else float(inner)
    return {key: _decode(item) for key, item in value.items()}
