"""Power cuts, as a model: what was not synced may be lost, what was stored may not.

Every system call of two sessions is noted. A cut at a random moment keeps all data before the last
fsync of a file and each later page with probability 1/2; of the names in a folder it keeps those
before the last fsync of the folder and a random prefix of the later changes.
"""

import fcntl
import os
import random
from pathlib import Path

import numpy as np
import pytest

from mlxroles.events import Cell
from mlxroles.store import RunFolder

PAGE = 64
N_STATES = 200
NAMES = ("open", "write", "fsync", "close", "replace", "mkdir", "unlink")


@pytest.fixture(autouse=True)
def plain_fsync(monkeypatch):
    """As on Linux: the faults below are put into ``os.fsync``."""
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)


def session(root, ids):
    with RunFolder.open(root, experiment="power", identity={}, manifest={}) as folder:
        for cell_id in ids:
            values = np.full(100, len(cell_id), "f4")
            folder.record(Cell(cell_id), {"n": len(cell_id)}, {"x": values})
            yield cell_id


class Recorder:
    """Notes the system calls that change what is on the disk."""

    def __init__(self, patch):
        self.log = []
        self.handles = {}
        self.inodes = 0
        self.by_path = {}
        for name in NAMES:
            self.real = {name: getattr(os, name) for name in NAMES}
        for name in NAMES:
            patch.setattr(os, name, getattr(self, name))

    def open(self, path, flags, *args, **kwargs):
        path = str(path)
        is_new = flags & os.O_CREAT and not Path(path).exists()
        handle = self.real["open"](path, flags, *args, **kwargs)
        if is_new:
            self.inodes += 1
            self.by_path[path] = self.inodes
            self.log.append(("create", path, self.inodes))
        self.handles[handle] = self.by_path.get(path, path)
        return handle

    def write(self, handle, data):
        self.log.append(("write", self.handles[handle], os.fstat(handle).st_size, bytes(data)))
        return self.real["write"](handle, data)

    def fsync(self, handle):
        self.log.append(("fsync", self.handles[handle]))
        self.real["fsync"](handle)

    def close(self, handle):
        self.real["close"](handle)

    def replace(self, source, target):
        self.real["replace"](source, target)
        self.by_path[str(target)] = self.by_path.pop(str(source))
        self.log.append(("rename", str(source), str(target)))

    def mkdir(self, path, *args, **kwargs):
        self.real["mkdir"](path, *args, **kwargs)
        self.log.append(("mkdir", str(path)))

    def unlink(self, path, *args, **kwargs):
        self.real["unlink"](path, *args, **kwargs)
        self.log.append(("unlink", str(path)))


def surviving_content(log, inode, rng):
    writes = [(at, *entry[2:]) for at, entry in enumerate(log) if entry[:2] == ("write", inode)]
    synced = max((at for at, entry in enumerate(log) if entry == ("fsync", inode)), default=-1)
    content = bytearray()
    for at, offset, data in writes:
        for start in range(0, len(data), PAGE):
            if at < synced or rng.random() < 0.5:
                piece = data[start : start + PAGE]
                content.extend(b"\0" * (offset + start + len(piece) - len(content)))
                content[offset + start : offset + start + len(piece)] = piece
    return bytes(content)


def surviving_names(log, rng):
    """What stands where: path to inode, None for a folder."""
    folders = {str(Path(entry[1]).parent) for entry in log if entry[0] in ("create", "mkdir")}
    changes = []
    for folder in sorted(folders):
        synced = max((at for at, entry in enumerate(log) if entry == ("fsync", folder)), default=-1)
        own = [
            at
            for at, entry in enumerate(log)
            if entry[0] in ("create", "mkdir", "rename", "unlink")
            and str(Path(entry[1]).parent) == folder
        ]
        later = [at for at in own if at > synced]
        kept = later[: rng.randint(0, len(later))]
        changes += [at for at in own if at < synced] + kept
    names = {}
    for at in sorted(changes):
        entry = log[at]
        if entry[0] == "rename":
            names[entry[2]] = names.pop(entry[1])
        elif entry[0] == "unlink":
            names.pop(entry[1], None)
        else:
            names[entry[1]] = entry[2] if entry[0] == "create" else None
    return names


def restore(log, source, target, rng):
    names = surviving_names(log, rng)
    for path in sorted(names):
        place = target / Path(path).relative_to(source)
        if not place.parent.is_dir():
            continue
        if names[path] is None:
            place.mkdir()
        else:
            place.write_bytes(surviving_content(log, names[path], rng))


def test_a_power_cut_loses_nothing_that_was_stored(tmp_path, monkeypatch):
    source = tmp_path / "run"
    source.mkdir()
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        for ids in (["a", "bb"], ["ccc", "dddd"]):
            for cell_id in session(source, ids):
                recorder.log.append(("stored", cell_id))
    log = recorder.log
    assert {entry[0] for entry in log} == {"create", "write", "fsync", "mkdir", "rename", "stored"}
    rng = random.Random(0)
    n_torn = n_stored = 0
    for state in range(N_STATES):
        cut = log[: rng.randint(1, len(log))]
        target = tmp_path / str(state)
        target.mkdir()
        restore(cut, source, target, rng)
        stored = {entry[1] for entry in cut if entry[0] == "stored"}
        n_stored += len(stored)
        if stored:
            (path,) = (target / "power").iterdir()
            reader = RunFolder.read(path)
            n_torn += reader.torn_lines
            assert stored <= reader.done()
            for cell_id in reader.done():
                assert reader.records()[cell_id].values == {"n": len(cell_id)}
                assert reader.arrays(cell_id)["x"].tolist() == [len(cell_id)] * 100
        if state % 8 == 0:
            todo = ["a", "bb", "ccc", "dddd"]
            assert list(session(target, todo)) == todo
            (path,) = (target / "power").iterdir()
            assert RunFolder.read(path).done() == set(todo)
    assert n_stored > N_STATES / 2
    assert n_torn > 0
