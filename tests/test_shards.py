"""Several processes on one run: shared batches, shards that are taken in, machines that die."""

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlxroles.errors import LockedError, StoreError
from mlxroles.events import Cell
from mlxroles.store.folder import RunFolder
from mlxroles.store.follow import is_held
from mlxroles.store.shards import Claims, is_led, take_in

IDENTITY = {"kind": "toy", "seed": 0}
CELLS = [Cell(f"cell/L{n:02d}", {"n": n}) for n in range(6)]
TOY = [sys.executable, str(Path(__file__).parent / "toy_command.py")]
ROOT = str(Path(__file__).parent.parent)


def lead(root):
    return RunFolder.open(root, experiment="toy", identity=IDENTITY, manifest={}, run_id="r")


def join(root, rank, identity=IDENTITY):
    return RunFolder.join(root / "toy" / "r", rank=rank, identity=identity)


def store(folder, n):
    folder.record(CELLS[n], {"value": n / 7}, {"x": np.arange(n + 1.0)})


def test_cells_of_a_shard_are_seen_by_all_and_taken_in_with_their_arrays(tmp_path):
    with lead(tmp_path) as first:
        with join(tmp_path, 1) as other:
            store(other, 1)
            store(first, 0)
            assert [r.id for r in first.refresh()] == ["cell/L01"]
            assert [r.id for r in other.refresh()] == ["cell/L00"]
            assert RunFolder.read(first.path).done() == {"cell/L00", "cell/L01"}
            assert first.arrays("cell/L01")["x"].tolist() == [0.0, 1.0]
            assert take_in(first) == 1
            assert take_in(first) == 0
            assert (first.path / "shards" / "1").is_dir()  # its process is still there
        assert take_in(first) == 0
        assert not (first.path / "shards").exists()
    again = RunFolder.read(tmp_path / "toy" / "r")
    assert again.done() == {"cell/L00", "cell/L01"}
    assert again.arrays("cell/L01")["x"].tolist() == [0.0, 1.0]


def test_a_shard_has_one_writer_and_belongs_to_the_same_run(tmp_path):
    with lead(tmp_path), join(tmp_path, 1):
        with pytest.raises(LockedError):
            join(tmp_path, 1)
        with pytest.raises(StoreError, match="seed is 0 there and 1 here"):
            join(tmp_path, 2, {"kind": "toy", "seed": 1})
    with pytest.raises(StoreError, match="not a run folder"):
        RunFolder.join(tmp_path / "nothing", rank=1, identity=IDENTITY)


def test_a_batch_is_claimed_once_and_again_when_its_process_is_gone(tmp_path):
    with lead(tmp_path) as first:
        mine = Claims(first)
        assert is_led(first.path)
        other = join(tmp_path, 1)
        theirs = Claims(other)
        assert theirs.take(CELLS[:3])
        assert not mine.take(CELLS[:3])
        assert theirs.take(CELLS[:3])
        assert mine.take(CELLS[3:])
        assert not theirs.take(CELLS[3:])
        other.close()
        assert mine.take(CELLS[:3])
    assert not is_led(tmp_path / "toy" / "r")
    with lead(tmp_path) as first:  # the claims of an earlier process are nobody's
        assert Claims(first).take(CELLS[:3])


def test_a_damaged_claim_counts_for_nothing(tmp_path):
    with lead(tmp_path) as first:
        claims = Claims(first)
        claims.take(CELLS[:3])
        (claim,) = [p for p in claims.path.iterdir() if p.name != "lead.json"]
        claim.write_bytes(b"")
        with join(tmp_path, 1) as other:
            assert Claims(other).take(CELLS[:3])


def machines(tmp_path, n, *, seconds=0.02, cells=60):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{32000 + i}"] for i in range(n)]))
    words = ["toy", "shared", "--cells", str(cells), "--seconds", str(seconds)]
    return [
        subprocess.Popen(
            [*TOY, *words],
            cwd=tmp_path,
            env=os.environ | {"MLX_RANK": str(i), "MLX_HOSTFILE": str(hosts), "PYTHONPATH": ROOT},
        )
        for i in range(n)
    ]


def numbers(path):
    folder = RunFolder.read(path)
    return {
        r.id: (dict(r.values), {k: v.tolist() for k, v in folder.arrays(r.id).items()})
        for r in folder.records().values()
    }


def undisturbed(tmp_path, cells=60):
    words = ["toy", "alone", "--cells", str(cells)]
    subprocess.run([*TOY, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT}, check=True)
    return numbers(tmp_path / "results" / "toy" / "alone")


@pytest.mark.slow
def test_three_processes_share_a_run_and_its_cells_are_those_of_one(tmp_path):
    assert [p.wait(120) for p in machines(tmp_path, 3)] == [0, 0, 0]
    path = tmp_path / "results" / "toy" / "shared"
    assert numbers(path) == undisturbed(tmp_path)
    assert not (path / "shards").exists()
    assert not (path / "claims").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 2])
def test_a_machine_that_dies_costs_its_running_batch(tmp_path, victim):
    processes = machines(tmp_path, 3, seconds=0.05)
    shard = tmp_path / "results" / "toy" / "shared" / "shards" / str(victim) / "cells.jsonl"
    end = time.monotonic() + 60
    while not (shard.exists() and shard.stat().st_size):
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(random.uniform(0.0, 0.3))
    processes[victim].send_signal(signal.SIGKILL)
    codes = [p.wait(120) for p in processes]
    assert [code for n, code in enumerate(codes) if n != victim] == [0, 0]
    path = tmp_path / "results" / "toy" / "shared"
    assert numbers(path) == undisturbed(tmp_path)
    assert not (path / "shards").exists()


@pytest.mark.slow
def test_when_the_first_machine_dies_the_others_finish_and_the_next_command_gathers(tmp_path):
    processes = machines(tmp_path, 3, seconds=0.05)
    path = tmp_path / "results" / "toy" / "shared"
    end = time.monotonic() + 60
    while len(list(path.glob("shards/*/cells.jsonl"))) != 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGKILL)
    codes = [p.wait(120) for p in processes]
    assert codes[1:] == [0, 0]
    expected = undisturbed(tmp_path)
    assert numbers(path) == expected
    words = ["toy", "shared", "--cells", "60"]
    subprocess.run([*TOY, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT}, check=True)
    assert numbers(path) == expected
    assert not (path / "shards").exists()


def test_where_locks_do_not_work_the_age_of_the_lock_file_tells_who_lives(tmp_path, monkeypatch):
    with lead(tmp_path) as first:
        other = join(tmp_path, 1)
        theirs, mine = Claims(other), Claims(first)
        assert theirs.take(CELLS[:3])

        def refuse(*_):
            raise OSError(errno.ENOTSUP, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)
        lock = other.home / "run.lock"
        first.beat()
        other.beat()
        assert not mine.take(CELLS[:3])
        os.utime(lock, (1.0, 1.0))  # silent for long, while the first one beats on
        first.beat()
        assert mine.take(CELLS[:3])
        other.beat()
        assert is_held(lock)
        monkeypatch.undo()
        other.close()
