"""The journal: what is written is read back, what is damaged is passed over and counted."""

import errno
import fcntl
import math
import os
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxroles.errors import StoreError
from mlxroles.store.journal import JournalWriter, decode_line, encode_line, read_journal

ENTRIES = [{"id": f"c{number}", "x": [number, None, "é\n"]} for number in range(3)]
LINES = [encode_line(entry) for entry in ENTRIES]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("$"), inner),
)


@pytest.fixture(autouse=True)
def plain_fsync(monkeypatch):
    """As on Linux: the faults below are put into ``os.fsync``."""
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)


def ids(path):
    return [entry["id"] for entry in read_journal(path).entries]


def append(path, *lines):
    writer = JournalWriter(path)
    for line in lines:
        writer.append(line)
    writer.close()


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_every_document_survives(value):
    line = encode_line({"value": value})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    entry = decode_line(line)
    assert repr(entry) == repr({"v": 1, "value": value})


def test_numpy_values_become_plain_ones():
    entry = decode_line(encode_line({"a": np.float32(np.inf), "b": np.array([1, 2]), "c": (1,)}))
    assert entry == {"v": 1, "a": math.inf, "b": [1, 2], "c": [1]}


def test_lines_are_read_in_order_and_appended_to(tmp_path):
    path = tmp_path / "cells.jsonl"
    assert read_journal(path) == ([], 0)
    append(path, *LINES[:2])
    append(path, LINES[2])
    assert ids(path) == ["c0", "c1", "c2"]
    assert path.read_bytes() == b"".join(LINES)


def test_a_journal_cut_at_any_byte_keeps_every_whole_line_and_takes_new_ones(tmp_path):
    path = tmp_path / "cells.jsonl"
    data = b"".join(LINES)
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        content = read_journal(path)
        whole = data[:size].count(b"\n")
        # A line that lacks nothing but its line feed is whole too.
        whole += any(size == sum(map(len, LINES[:n])) - 1 for n in (1, 2, 3))
        assert [entry["id"] for entry in content.entries] == ["c0", "c1", "c2"][:whole]
        assert content.torn_lines == (0 if size == 0 or data[size - 1 : size] == b"\n" else 1) - (
            whole - data[:size].count(b"\n")
        )
        append(path, encode_line({"id": "new"}))
        assert ids(path) == [*["c0", "c1", "c2"][:whole], "new"]


def test_no_flipped_bit_is_believed(tmp_path):
    path = tmp_path / "cells.jsonl"
    data = bytearray(b"".join(LINES))
    start, end = len(LINES[0]), len(LINES[0]) + len(LINES[1]) - 1
    for position in range(start, end):
        data[position] ^= 1 << (position % 8)
        path.write_bytes(data)
        content = read_journal(path)
        assert [entry["id"] for entry in content.entries] == ["c0", "c2"]
        assert content.torn_lines >= 1
        data[position] ^= 1 << (position % 8)


@pytest.mark.parametrize("text", [b"[1]", b"{", b"[" * 100_000, b'{"a":{"$":"word"}}', b"\xff"])
def test_a_line_that_is_no_entry_is_passed_over(text):
    assert decode_line(b"%08x %s" % (zlib.crc32(text), text)) is None


def test_an_unknown_schema_is_refused(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_bytes(LINES[0] + encode_line({"v": 2, "id": "c"}))
    with pytest.raises(StoreError, match="lines of schema 2, this mlxroles reads schema 1"):
        read_journal(path)


def test_a_write_that_stops_half_way_costs_only_its_own_line(tmp_path, monkeypatch):
    path = tmp_path / "cells.jsonl"
    writer = JournalWriter(path)
    writer.append(LINES[0])
    real = os.write

    def half(handle, data):
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, bytes(data[: len(data) // 2]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(StoreError, match="disk is full"):
            writer.append(LINES[1])
    writer.append(LINES[2])
    writer.close()
    assert ids(path) == ["c0", "c2"]
    assert read_journal(path).torn_lines == 1


def test_a_line_that_is_not_synced_is_an_error(tmp_path, monkeypatch):
    writer = JournalWriter(tmp_path / "cells.jsonl")

    def fail(_handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        writer.append(LINES[0])
    writer.close()


def test_a_journal_that_vanishes_or_is_replaced_is_noticed(tmp_path):
    path = tmp_path / "cells.jsonl"
    writer = JournalWriter(path)
    path.rename(tmp_path / "aside")
    with pytest.raises(StoreError, match="deleted or moved"):
        writer.append(LINES[0])
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="was replaced"):
        writer.append(LINES[0])
    writer.close()


def test_a_journal_is_not_written_through_a_link_and_must_be_a_file(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "cells.jsonl").symlink_to("precious")
    with pytest.raises(StoreError, match="symbolic link"):
        JournalWriter(tmp_path / "cells.jsonl")
    with pytest.raises(StoreError, match="cannot be read"):
        read_journal(tmp_path)
