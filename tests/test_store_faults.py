"""Kills, full disks and second writers: what was stored stays, and the run can go on."""

import errno
import fcntl
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlxroles.errors import StoreError
from mlxroles.events import Cell
from mlxroles.store import RunFolder, folder

ROOT = Path(folder.__file__).parents[2]
N_CELLS = 60

WRITER = """
import os, sys, warnings
from pathlib import Path
import numpy as np
from mlxroles.events import Cell
from mlxroles.store import RunFolder

def run(root, n_cells, size=64):
    with RunFolder.open(root, experiment="kill", identity={"n": 1}, manifest={}) as folder:
        done = folder.done()
        for number in range(n_cells):
            cell = Cell(f"L{number:03d}", {"layer": number})
            if cell.id not in done:
                values = np.random.default_rng(number).normal(size=size).astype("f4")
                folder.record(cell, {"sum": float(values.sum())}, {"x": values})
        return folder.path
"""


@pytest.fixture(autouse=True)
def plain_fsync(monkeypatch):
    """As on Linux: the faults below are put into ``os.fsync``."""
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)


def run_script(code, *args):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER + code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_whole(path, n_cells):
    reader = RunFolder.read(path)
    assert reader.done() == {f"L{number:03d}" for number in range(n_cells)}
    for number in range(n_cells):
        expected = np.random.default_rng(number).normal(size=64).astype("f4")
        np.testing.assert_array_equal(reader.arrays(f"L{number:03d}")["x"], expected)
        assert reader.records()[f"L{number:03d}"].values == {"sum": float(expected.sum())}
    return reader


def test_a_run_survives_being_killed_at_random_moments(tmp_path):
    rng = random.Random(0)
    journal = None
    kept: set[str] = set()
    # Kill when the journal has grown by a random number of bytes, wherever the writer then is.
    for _ in range(6):
        before = journal.stat().st_size if journal and journal.exists() else 0
        goal = before + rng.randrange(1, 2000)
        process = run_script("run(Path(sys.argv[1]), 60)", tmp_path)
        while process.poll() is None and (not journal or journal.stat().st_size < goal):
            journal = next(iter(tmp_path.glob("kill/*/cells.jsonl")), None)
            time.sleep(0.0005)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-9, 0), errors
        assert journal is not None
        reader = RunFolder.read(journal.parent)
        assert kept <= reader.done()
        kept = reader.done()
    process = run_script("run(Path(sys.argv[1]), 60)", tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    reader = assert_whole(journal.parent, N_CELLS)
    assert not list(journal.parent.rglob("*.tmp"))
    n_lines = len([line for line in journal.read_bytes().split(b"\n") if line])
    assert n_lines - reader.torn_lines - N_CELLS <= 6


SYSCALLS = """
warnings.simplefilter("ignore", DeprecationWarning)
root = Path(sys.argv[1])
NAMES = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "ftruncate", "unlink")
real = {name: getattr(os, name) for name in NAMES}
trial = calls = 0
ended = False
while not ended:
    trial += 1
    place = root / str(trial)
    child = os.fork()
    if child == 0:
        left = trial
        def dying(name):
            def call(*args, **kwargs):
                global left
                left -= 1
                if left == 0:
                    os._exit(9)
                return real[name](*args, **kwargs)
            return call
        for name in NAMES:
            setattr(os, name, dying(name))
        run(place, 2)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    ended = status == 0
    run(place, 2)
print(trial)
"""


def test_a_run_goes_on_after_a_kill_before_any_system_call(tmp_path):
    process = run_script(SYSCALLS, tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    n_trials = int(output)
    assert n_trials > 40
    for trial in range(1, n_trials + 1):
        (path,) = (tmp_path / str(trial) / "kill").iterdir()
        assert_whole(path, 2)
        assert not list(path.rglob("*.tmp"))


def test_a_second_process_is_refused_and_reading_is_not(tmp_path):
    code = """
from mlxroles.errors import LockedError
try:
    run(Path(sys.argv[1]), 1)
except LockedError as error:
    print(error)
    (path,) = Path(sys.argv[1]).glob("kill/*")
    print(len(RunFolder.read(path).done()))
    sys.exit(error.exit_code)
"""
    with RunFolder.open(tmp_path, experiment="kill", identity={"n": 1}, manifest={}) as first:
        first.record(Cell("a"), {})
        process = run_script(code, tmp_path)
        output, errors = process.communicate()
        assert process.returncode == 4, errors
        assert f"process {os.getpid()} on " in output
        assert output.endswith("\n1\n")
        first.record(Cell("b"), {})
    process = run_script(code, tmp_path)
    assert process.wait() == 0
    process.communicate()


def test_a_disk_that_is_full_at_any_write_loses_nothing(tmp_path, monkeypatch):
    real = os.write
    left = 0

    def full(handle, data):
        nonlocal left
        left -= 1
        if left == 0:
            return real(handle, bytes(data[: len(data) // 2]))
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    stored: set[str] = set()
    messages: list[str] = []
    monkeypatch.setattr(os, "write", full)
    for room in range(1, 12):
        left = room
        try:
            with RunFolder.open(tmp_path, experiment="e", identity={}, manifest={}) as run:
                assert stored <= run.done()
                for number in range(3):
                    run.record(Cell(f"{room}.{number}"), {"a": number}, {"x": np.ones(9)})
                    stored.add(f"{room}.{number}")
                run.write_json("summary.json", {"n": room})
        except StoreError as error:
            messages.append(str(error))
    assert len(messages) >= 8
    assert all("the disk is full" in text and "\n" not in text for text in messages)
    left = 1000
    with RunFolder.open(tmp_path, experiment="e", identity={}, manifest={}) as run:
        assert run.done() == stored
        run.record(Cell("last"), {})
        assert run.done() == stored | {"last"}
        summary = run.path / "summary.json"
        assert not summary.exists() or json.loads(summary.read_text())["n"] < 12
        assert not list(run.path.rglob("*.tmp"))


def test_an_error_of_fsync_ends_the_cell_and_is_not_retried(tmp_path, monkeypatch):
    calls = []

    def fail(_handle):
        calls.append(1)
        raise OSError(errno.EIO, "Input/output error")

    with RunFolder.open(tmp_path, experiment="e", identity={}, manifest={}) as run:
        run.record(Cell("a"), {})
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StoreError, match="Input/output error"):
                run.record(Cell("b"), {})
        assert calls == [1]
        assert run.done() == {"a"}
