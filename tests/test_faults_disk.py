"""Full, read-only, failing, vanishing disks: one line, nothing stored is lost, it goes on."""

import errno
import fcntl
import os
import shutil
import signal
import socket

import numpy as np
import pytest
import toy_study
from run_contents import assert_same, assert_sound, cells, one_line
from zygote import NO_FIGURES, PATCH, go, noted, wait_for, watched

from mlxroles.errors import StoreError
from mlxroles.store import RunFolder, files
from mlxroles.store.history import HISTORY, History


@pytest.fixture
def mounts(zygote):
    """The process that starts commands, which may mount file systems."""
    if not zygote.has_mounts:
        pytest.skip("platform: no mount namespace can be made here")
    return zygote


@pytest.fixture
def disk(mounts, tmp_path):
    """A small disk: its path for commands, and for this process."""
    place = tmp_path / "disk"
    place.mkdir()
    yield place, mounts.mount(place, options="size=20m")
    mounts.shell("umount", "--lazy", str(place))


@pytest.fixture
def plain_fsync(monkeypatch):
    """As on Linux: faults are put into ``os.fsync``."""
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)


def fill(disk):
    """Takes every block of a disk."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (2**20, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


# --- full -----------------------------------------------------------------------------------------


def test_a_disk_that_is_full_before_the_run_begins(mounts, disk, tiny_run, tmp_path):
    place, seen = disk
    fill(seen)
    command = [*PATCH, "--out", place / "run"]
    status, out, err = mounts.run(*command, cwd=tmp_path, code=NO_FIGURES)
    assert (status, out) == (1, "")
    line = one_line(err)
    assert "run.lock cannot be written: the disk is full (4.10 kB are needed)" in line
    assert "free space, then run the same command again" in line
    (seen / "filler").unlink()
    assert mounts.run(*command, cwd=tmp_path, code=NO_FIGURES)[0] == 0
    assert_same(seen / "run", tiny_run)


def test_a_disk_that_fills_up_between_two_batches(mounts, disk, tiny_run, tmp_path):
    place, seen = disk
    command, log = [*PATCH, "--out", place / "run"], tmp_path / "log"
    child = mounts.start(*command, cwd=tmp_path, code=watched(log, pause=4))
    wait_for(log, "begin", 4)
    fill(seen)
    before = cells(seen / "run")
    go(log)
    assert child.wait() == 1
    line = one_line(child.err.read_text())
    assert "disk" in line
    assert "needed" in line
    assert_sound(seen / "run")
    assert cells(seen / "run").keys() >= before.keys()
    (seen / "filler").unlink()
    assert mounts.run(*command, cwd=tmp_path, code=NO_FIGURES)[0] == 0
    assert_same(seen / "run", tiny_run)


FULL_AT = """
import os, sys
sys.path.insert(0, TESTS)
from pathlib import Path
from test_faults_disk import fill
from mlxroles.store import files
write_atomic, json = files.write_atomic, files.write_json
from mlxroles.studies import patch_sweep
from mlxroles.store import folder, manifest, pack

def full(path, *args):
    if path.name == NAME:
        fill(Path(DISK))
    return write_atomic(path, *args)

files.write_atomic = patch_sweep.write_atomic = pack.write_atomic = full
"""


@pytest.mark.parametrize("name", ["manifest.json", "report.html", "summary.json", "run.h5"])
def test_a_disk_that_fills_up_before_a_file(mounts, disk, tiny_run, tmp_path, name):
    place, seen = disk
    command = [*PATCH, "--out", place / "run"]
    tests = os.path.dirname(__file__)  # noqa: PTH120
    code = NO_FIGURES + FULL_AT.replace("TESTS", repr(tests)).replace("NAME", repr(name)).replace(
        "DISK", repr(str(place))
    )
    status, out, err = mounts.run(*command, cwd=tmp_path, code=code)
    assert (status, out) == (1, "")
    line = one_line(err)
    assert "disk" in line
    assert "needed" in line
    assert "free space, then run the same command again" in line
    assert not (seen / "run" / name).exists()
    assert_sound(seen / "run")
    if name != "manifest.json":
        assert cells(seen / "run") == cells(tiny_run)
    (seen / "filler").unlink()
    assert mounts.run(*command, cwd=tmp_path, code=NO_FIGURES)[0] == 0
    assert_same(seen / "run", tiny_run)


FULL_AT_CALL = """
import os, shutil, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, TESTS)
from run_contents import assert_same, assert_sound, cells
from test_faults_disk import fill
from toy_study import run
from mlxroles.errors import StoreError

disk, whole = Path(DISK), Path(WHOLE)
run(whole)
real = {name: getattr(os, name) for name in ("open", "write")}
shutil.disk_usage = lambda path: SimpleNamespace(free=2**40)  # as under a quota: nobody knows
messages, trial, ended = [], 0, False
while not ended:
    trial += 1
    left = trial
    def counted(name):
        def call(*args, **kwargs):
            global left
            left -= 1
            if left == 0:
                fill(disk)
            return real[name](*args, **kwargs)
        return call
    for name in real:
        setattr(os, name, counted(name))
    try:
        run(disk / "run")
    except StoreError as error:
        messages.append(str(error))
    finally:
        for name, call in real.items():
            setattr(os, name, call)
    ended = left > 0
    (disk / "filler").unlink(missing_ok=True)
    if (disk / "run").exists():
        assert_sound(disk / "run")
    run(disk / "run")
    assert_same(disk / "run", whole)
    shutil.rmtree(disk / "run")
assert all("the disk is full" in text and "\\n" not in text for text in messages), messages
assert all("cannot be written" in text for text in messages), messages
print(trial, len(messages))
"""


def test_a_disk_that_is_full_at_any_call_loses_nothing(mounts, disk, tmp_path):
    place, _ = disk
    tests, whole = os.path.dirname(__file__), str(tmp_path / "whole")  # noqa: PTH120
    code = FULL_AT_CALL.replace("TESTS", repr(tests)).replace("DISK", repr(str(place)))
    status, out, err = mounts.run(cwd=tmp_path, code=code.replace("WHOLE", repr(whole)))
    assert status == 0, err
    trials, failures = map(int, out.split())
    assert trials > 30
    assert failures > 20  # of the rest, the write went to a block that the file had already


CSV = ("--to", "csv", "--out", "cells.csv")


# --- read-only, gone, renamed ---------------------------------------------------------------------


def test_a_read_only_disk_can_be_read_and_says_where_else_to_write(mounts, disk, tmp_path):
    place, seen = disk
    command = [*PATCH, "--layers", "2", "--controls", "none"]
    how = {"cwd": tmp_path, "code": NO_FIGURES}
    assert mounts.run(*command, "--out", place / "run", **how)[0] == 0
    before = {p: p.read_bytes() for p in seen.rglob("*") if p.is_file()}
    mounts.shell("mount", "-o", "remount,ro", str(place))
    for args in (
        [*command, "--out", place / "run"],
        [*command, "--out", place / "other"],
        [*command, "--out", place / "run", "--fresh"],
        ["report", place / "run"],
    ):
        status, out, err = mounts.run(*args, **how)
        assert (status, out) == (1, "")
        line = one_line(err)
        assert "read-only" in line
        assert "--out" in line
    for args in (["status", place / "run"], ["show", place / "run"], ["verify", place / "run"]):
        status, out, err = mounts.run(*args, **how)
        assert (status, bool(out)) == (0, True), err
    for args in (["diff", place / "run", place / "run"], ["export", place / "run", *CSV]):
        status, _, err = mounts.run(*args, **how)
        assert status == 0, err
    assert (tmp_path / "cells.csv").stat().st_size > 100
    assert len(cells(seen / "run")) == 4
    assert {p: p.read_bytes() for p in seen.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("change", ["removed", "renamed", "journal removed"])
def test_a_folder_that_goes_away_while_running(zygote, tiny_run, tmp_path, change):
    log, path = tmp_path / "log", tmp_path / "run"
    child = zygote.start(*PATCH, "--out", path, cwd=tmp_path, code=watched(log, pause=4))
    wait_for(log, "begin", 4)
    time_stored = set(cells(path))
    if change == "removed":
        shutil.rmtree(path)
    elif change == "renamed":
        path.rename(tmp_path / "aside")
    else:
        (path / "cells.jsonl").unlink()
    go(log)
    assert child.wait() == 1
    assert "was it deleted or moved while the run was going on?" in one_line(child.err.read_text())
    begun, _ = noted(log)
    assert len(begun) < 8  # it ended soon after
    if change == "renamed":
        assert not path.exists()
        path = tmp_path / "aside"
        assert cells(path).keys() >= time_stored
    status, _, err = zygote.run(*PATCH, "--out", path, cwd=tmp_path, code=NO_FIGURES)
    assert (status, "stored earlier" in err) == (0, change == "renamed")
    assert_same(path, tiny_run)


NAMES = {
    "spaces": " my  run ",
    "unicode": "Läufe 日本語 🙂",
    "longest": "x" * 255,
    "dashes": "--out",
    "hostile": "a\x1b[2J\n\u202eb",
    "colon": "a:b?c*d",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_may_have_any_name(tmp_path, name):
    path = tmp_path / NAMES[name]
    assert toy_study.run(path).done == 6
    before = cells(path)
    assert toy_study.run(path).done == 6
    assert cells(path) == before
    holder = RunFolder.reopen(path)
    try:
        with pytest.raises(StoreError, match="is being written by process") as caught:
            toy_study.run(path)
    finally:
        holder.close()
    assert not any(c in str(caught.value) for c in "\x1b\n\u202e")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    for path in (tmp_path / ("x" * 256), tmp_path / "/".join(["y" * 200] * 30)):
        with pytest.raises(StoreError, match="the name is too long; choose a shorter one") as found:
            toy_study.run(path)
        assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_run_is_that_run(tmp_path):
    toy_study.run(tmp_path / "real", 4)
    (tmp_path / "link").symlink_to("real")
    study = toy_study.Toy()
    assert toy_study.run(tmp_path / "link", 6, study).done == 6
    assert study.computed == [4, 5]
    assert cells(tmp_path / "link") == cells(tmp_path / "real")
    assert (tmp_path / "link").is_symlink()
    with (
        RunFolder.reopen(tmp_path / "real"),
        pytest.raises(StoreError, match="is being written by"),
    ):
        toy_study.run(tmp_path / "link", 6)


# --- a disk that fails ----------------------------------------------------------------------------

FAULTS = {
    errno.EIO: "Input/output error",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
}


class Failing:
    """Lets a call fail from its n-th time on, and counts what is asked afterwards."""

    def __init__(self, patch, name, number, after):
        self.real, self.number, self.after = getattr(os, name), number, after
        self.calls = 0
        patch.setattr(os, name, self)

    def __call__(self, *args):
        self.calls += 1
        if self.calls > self.after:
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*args)


@pytest.mark.parametrize("number", FAULTS, ids=lambda n: errno.errorcode[n])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_error_of_the_disk_ends_the_run_and_is_not_asked_for_twice(
    tmp_path, monkeypatch, plain_fsync, call, number
):
    monkeypatch.setattr(History, "append", lambda *_: None)  # whose failure is none of the run
    whole = tmp_path / "whole"
    toy_study.run(whole, 3)
    messages = []
    for after in range(60):
        path = tmp_path / f"run{after}"
        with monkeypatch.context() as patch:
            failing = Failing(patch, call, number, after)
            try:
                toy_study.run(path, 3)
                break
            except StoreError as error:
                messages.append(str(error))
        assert failing.calls == after + 1  # once it failed nobody asks again
        if path.exists():
            assert_sound(path)
        toy_study.run(path, 3)
        assert_same(path, whole)
    assert failing.calls <= after
    assert len(messages) > 8
    assert all(FAULTS[number] in text and "\n" not in text for text in messages)


@pytest.mark.parametrize("number", FAULTS, ids=lambda n: errno.errorcode[n])
def test_a_history_that_cannot_be_written_costs_only_itself(tmp_path, monkeypatch, number):
    toy_study.run(tmp_path / "whole")
    real = os.open

    def broken(path, *args, **kwargs):
        if str(path).endswith(HISTORY):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", broken)
    assert toy_study.run(tmp_path / "run").done == 6
    assert not (tmp_path / "run" / HISTORY).exists()
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_line_that_was_not_synced_does_not_count_in_that_process(
    tmp_path, monkeypatch, plain_fsync
):
    told = []
    with RunFolder.open(tmp_path, experiment="e", identity={}, manifest={}) as folder:
        folder.record(toy_study.cells(1)[0], {"x": 1})
        with monkeypatch.context() as patch:
            Failing(patch, "fsync", errno.EIO, 0)
            for cell in toy_study.cells(3)[1:]:
                with pytest.raises(StoreError, match="Input/output error"):
                    folder.record(cell, {"x": 1}, {"row": np.ones(3)})
                told.append(cell.id)
        assert folder.done() == {"c00000"}
    assert RunFolder.read(folder.path).done() == {"c00000"}


def test_the_lock_of_a_dead_process_and_the_name_of_another_host_do_not_lock(tmp_path):
    toy_study.run(tmp_path / "run", 2)
    dead = '{"pid": 4194304, "host": "%s", "start": "2020-01-01T00:00:00+00:00", "argv": []}'
    lock = tmp_path / "run" / "run.lock"
    lock.write_text(dead % socket.gethostname())
    told = []
    assert toy_study.run(tmp_path / "run", 4, emit=told.append).done == 4
    assert "other-host" not in str(told)
    lock.write_text(dead % "other-host")
    assert toy_study.run(tmp_path / "run", 6, emit=told.append).done == 6
    assert "was last written on other-host" in str(told)


def test_a_run_whose_process_was_killed_is_free_at_once(zygote, tmp_path):
    log = tmp_path / "log"
    child = zygote.start(*PATCH, "--out", "run", cwd=tmp_path, code=watched(log, pause=4))
    wait_for(log, "begin", 4)
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert str(child.pid) in (tmp_path / "run" / "run.lock").read_text()
    with RunFolder.reopen(tmp_path / "run") as folder:
        assert folder.notes == []


def test_files_need_the_lock_of_their_folder_only_to_be_written(tmp_path, monkeypatch):
    """Reading neither locks nor writes: a folder may be copied while a run goes on."""
    toy_study.run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: pytest.fail("locked"))
        patch.setattr(files, "write_all", lambda *_: pytest.fail("written"))
        assert len(cells(tmp_path / "run")) == 6
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert_same(tmp_path / "copy", tmp_path / "run")
