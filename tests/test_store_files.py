"""Durable files, plain error messages, and the lock."""

import errno
import fcntl
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxroles.errors import LockedError, StoreError
from mlxroles.store import files
from mlxroles.store.lock import RunLock

ROOT = Path(files.__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_fsync(monkeypatch):
    """As on Linux: the faults below are put into ``os.fsync``."""
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)


def failing(number):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a b.json"
    files.write_atomic(path, b"one")
    files.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a b.json"]


def test_a_name_of_the_greatest_length_works(tmp_path):
    path = tmp_path / ("x" * 255)
    files.write_atomic(path, b"one")
    assert path.read_bytes() == b"one"
    with pytest.raises(StoreError, match="name is too long"):
        files.write_atomic(tmp_path / ("x" * 256), b"one")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"the disk is full \(2.00 kB are needed\); free space"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "read-only; choose another place with --out"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["write", "open", "fsync"])
def test_a_system_error_is_one_line_and_keeps_the_old_content(
    tmp_path, monkeypatch, number, words, call
):
    path = tmp_path / "a.json"
    files.write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        with pytest.raises(StoreError, match=words) as caught:
            files.write_atomic(path, b"x" * 2000)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:3])))
    files.write_atomic(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_folder_that_cannot_be_synced_is_accepted_but_not_an_io_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    files.sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        files.sync_folder(tmp_path)


def test_macos_syncs_through_the_drives_cache_where_it_can(monkeypatch):
    calls = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(os, "fsync", lambda _handle: calls.append("fsync"))
    monkeypatch.setattr(fcntl, "fcntl", lambda _handle, command: calls.append(command))
    files.sync(3)
    assert calls == [51]
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.ENOTSUP))
    files.sync(3)
    assert calls == [51, "fsync"]
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        files.sync(3)


def test_errors_without_a_number_are_explained_too(tmp_path):
    hdf5 = RuntimeError("Can't write (errno = 28, error message = 'No space left on device')")
    assert "the disk is full; free" in files.explain(hdf5, tmp_path)
    assert files.explain(ValueError(), tmp_path, verb="read").endswith("cannot be read: ValueError")


def test_space_is_checked_before_writing(tmp_path, monkeypatch):
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    place = tmp_path / "not" / "there"
    with pytest.raises(StoreError, match=r"0 B left, 1\.0\d MB needed"):
        files.require_space(place, 10)
    free = 2 * 10 + files.MIB
    files.require_space(place, 10)
    with pytest.raises(StoreError, match="needed"):
        files.require_space(place, 11)
    free = 10**9 + files.LARGEST_RESERVE
    files.require_space(place, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", failing(errno.EIO))
    with pytest.raises(StoreError, match="cannot be measured"):
        files.require_space(place, 10)


def test_json_is_standard_json(tmp_path):
    doc = {
        "nan": math.nan,
        "list": [math.inf, np.float32("nan"), np.array([1.5, -math.inf])],
        "number": np.int64(3),
        "float": np.float64(0.1),
        1: (True, None),
        "path": Path("a"),
        "text": "é\0\ud800<",
        "set": {1},
    }
    path = tmp_path / "s.json"
    files.write_json(path, doc)

    def refuse(text):
        raise AssertionError(text)

    back = json.loads(path.read_bytes(), parse_constant=refuse)
    assert back == {
        "nan": None,
        "list": [None, None, [1.5, None]],
        "number": 3,
        "float": 0.1,
        "1": [True, None],
        "path": "a",
        "text": "é\0\ud800<",
        "set": [1],
    }


def test_the_second_writer_is_told_who_the_first_is(tmp_path):
    lock = RunLock(tmp_path / "run.lock")
    with pytest.raises(LockedError, match="mlxroles watch") as caught:
        RunLock(tmp_path / "run.lock")
    for part in (f"process {os.getpid()}", socket.gethostname(), str(tmp_path), "since 2"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 4
    lock.release()
    lock.release()
    again = RunLock(tmp_path / "run.lock")
    assert again.notes == []
    again.release()


@pytest.mark.parametrize("content", ["", "[]", "\x1b{", '{"pid": "\\u001b"}'])
def test_a_lock_file_that_says_nothing_useful_still_locks(tmp_path, content):
    path = tmp_path / "run.lock"
    path.write_text(content)
    lock = RunLock(path)
    path.write_text(content)
    with pytest.raises(LockedError, match="being written by process") as caught:
        RunLock(path)
    assert "\x1b" not in str(caught.value)
    lock.release()


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    path = tmp_path / "run.lock"
    script = (
        "import os, sys, pathlib; from mlxroles.store.lock import RunLock;"
        "RunLock(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert json.loads(path.read_text())["host"] == socket.gethostname()
    lock = RunLock(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert lock.notes == []
    lock.release()


def test_a_lock_left_by_another_host_is_noted(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text('{"host": "else\\u202ewhere"}')
    lock = RunLock(path)
    assert "last written on else\\u202ewhere" in lock.notes[0]
    lock.release()


def test_a_file_system_without_locks_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    lock = RunLock(tmp_path / "run.lock")
    assert "without locks" in lock.notes[0]
    lock.release()
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(StoreError, match="Input/output"):
        RunLock(tmp_path / "run.lock")


def test_a_lock_is_not_taken_through_a_symbolic_link(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "run.lock").symlink_to("precious")
    with pytest.raises(StoreError, match="symbolic link"):
        RunLock(tmp_path / "run.lock")
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_folder_that_is_set_aside_while_locking_is_not_locked(tmp_path, monkeypatch):
    path = tmp_path / "run.lock"
    real = fcntl.flock
    moved = []

    def flock(handle, operation):
        if not moved:
            path.rename(tmp_path / "aside")
            moved.append(True)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = RunLock(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert (tmp_path / "aside").read_text() == ""
    lock.release()


@pytest.mark.parametrize("call", ["write", "open", "ftruncate"])
def test_a_full_disk_stops_the_lock(tmp_path, monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(errno.ENOSPC))
        with pytest.raises(StoreError, match="disk is full"):
            RunLock(tmp_path / "run.lock")
    RunLock(tmp_path / "run.lock").release()
