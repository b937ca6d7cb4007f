"""Killed, stopped and paused runs of the real command: nothing stored is lost or computed twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_contents import assert_same, assert_sound, cells, one_line
from zygote import FORKS, NO_FIGURES, PATCH, go, noted, wait_for, watched

from mlxroles.runner.writer import WAITING
from mlxroles.store import RunFolder

ROOT = Path(__file__).parent.parent
N_KILLS = 50 if FORKS else 6  # without a fork each of them imports everything
RUN = 0.7
"""Seconds that an undisturbed run takes, about."""


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_nothing(zygote, tiny_run, tmp_path):
    rng = random.Random(0)
    expected = cells(tiny_run)
    kills = lost = number = 0
    stored: set[str] = set()
    while kills < N_KILLS:
        path, log = tmp_path / f"run{number}", tmp_path / f"{kills}.log"
        child = zygote.start(*PATCH, "--out", path, cwd=tmp_path, code=watched(log))
        if kills % 2 and len(stored) < len(expected):  # however slow the machine is: while it works
            wait_for(log, "begin")
            time.sleep(rng.uniform(0, RUN / 2))
        else:
            time.sleep(rng.uniform(0, RUN))
        child.send(signal.SIGKILL)
        status = child.wait()
        assert status in (0, -signal.SIGKILL), child.err.read_text()
        assert_sound(path)
        now = cells(path) if (path / "manifest.json").exists() else {}
        assert stored <= now.keys()
        assert all(expected[cell] == line for cell, line in now.items())
        begun, computed = noted(log)
        assert not stored & {cell for batch in begun for cell in batch}
        repeated = [batch for batch in begun if not set(batch) <= now.keys()]
        assert len(repeated) <= 1 + WAITING
        lost += len(set(computed) - now.keys())
        stored = set(now)
        if status == 0:
            assert_same(path, tiny_run)
            stored, number = set(), number + 1
            log.unlink()
        else:
            kills += 1
    assert zygote.run(*PATCH, "--out", path, cwd=tmp_path, code=NO_FIGURES)[0] == 0
    assert_same(path, tiny_run)
    assert zygote.run("verify", *tmp_path.glob("run*/"), cwd=tmp_path)[0] == 0
    n_lines = sum(len(p.read_bytes().splitlines()) for p in tmp_path.glob("run*/cells.jsonl"))
    n_runs = len(list(tmp_path.glob("run*/manifest.json")))
    assert n_lines - n_runs * len(expected) <= kills  # torn lines; no cell has two
    assert lost <= (1 + WAITING) * 4 * kills


@pytest.mark.slow
def test_kills_of_a_run_whose_cells_have_arrays(zygote, tmp_path):
    rng = random.Random(1)
    how = {"cwd": tmp_path, "code": NO_FIGURES}
    command = ["entropy", "--family", "tiny", "--prompts-per-category", "3", "--plain", "--json"]
    assert zygote.run(*command, "--out", "whole", **how)[0] == 0
    for _ in range(N_KILLS // 5):
        child = zygote.start(*command, "--out", "run", **how)
        time.sleep(rng.uniform(0, 1))
        child.send(signal.SIGKILL)
        assert child.wait() in (0, -signal.SIGKILL)
        assert_sound(tmp_path / "run")
    assert zygote.run(*command, "--out", "run", **how)[0] == 0
    assert len(list((tmp_path / "run" / "arrays").iterdir())) > 10
    assert_same(tmp_path / "run", tmp_path / "whole")


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_one_signal_stores_the_running_batch_and_says_how_to_go_on(
    zygote, tiny_run, tmp_path, number
):
    log = tmp_path / "log"
    child = zygote.start(*PATCH, "--out", "run", cwd=tmp_path, code=watched(log, pause=4))
    wait_for(log, "begin", 4)
    child.send(number)
    wait_for(child.err, f"{number.name}: the running cells are finished and stored first")
    go(log)
    assert child.wait() == SIGNALS[number]
    assert "Traceback" not in child.err.read_text()
    last = child.err.read_text().splitlines()[-1]
    begun, _ = noted(log)
    stored = cells(tmp_path / "run")
    assert stored.keys() == {cell for batch in begun for cell in batch}
    assert last == (
        f"stopped by {number.name}; {len(stored)} cells are stored, and the same command goes on "
        "from there"
    )
    assert json.loads(child.out.read_text())["interrupted"] == number.name
    status, _, err = zygote.run(*PATCH, "--out", "run", cwd=tmp_path, code=NO_FIGURES)
    assert (status, f"{len(stored)} stored earlier" in err) == (0, True)
    assert_same(tmp_path / "run", tiny_run)


@pytest.mark.parametrize("second", SIGNALS, ids=lambda n: n.name)
def test_a_second_signal_ends_the_run_at_once(zygote, tiny_run, tmp_path, second):
    log = tmp_path / "log"
    child = zygote.start(*PATCH, "--out", "run", cwd=tmp_path, code=watched(log, pause=4))
    wait_for(log, "begin", 4)
    child.send(signal.SIGINT)
    wait_for(child.err, "SIGINT: the running cells are finished and stored first")
    child.send(second)  # the batch would wait for ever
    assert child.wait() == 130
    assert "the same command goes on from there" in child.err.read_text().splitlines()[-1]
    begun, _ = noted(log)
    assert cells(tmp_path / "run").keys() == {cell for batch in begun[:-1] for cell in batch}
    assert zygote.run(*PATCH, "--out", "run", cwd=tmp_path, code=NO_FIGURES)[0] == 0
    assert_same(tmp_path / "run", tiny_run)


def test_a_run_that_was_asleep_goes_on_and_its_times_stay_times(zygote, tiny_run, tmp_path):
    log = tmp_path / "log"
    child = zygote.start(*PATCH, "--out", "run", cwd=tmp_path, code=watched(log, pause=4))
    wait_for(log, "begin", 4)
    child.send(signal.SIGSTOP)
    wait_for(Path(f"/proc/{child.pid}/stat"), ") T ", 1) if FORKS else time.sleep(0.2)
    go(log)
    child.send(signal.SIGCONT)
    assert child.wait() == 0
    assert_same(tmp_path / "run", tiny_run)
    records = RunFolder.read(tmp_path / "run").records().values()
    assert all(0 <= record.seconds < 60 for record in records)


def test_a_second_process_on_a_run_is_told_whose_it_is_and_changes_nothing(
    zygote, tiny_run, tmp_path
):
    log = tmp_path / "log"
    first = zygote.start(*PATCH, "--out", "run", cwd=tmp_path, code=watched(log, pause=4))
    wait_for(log, "begin", 4)
    code = "import os\nos.environ['HDF5_USE_FILE_LOCKING'] = 'FALSE'\n" + NO_FIGURES
    for more in ((), ("--fresh",)):
        status, out, err = zygote.run(
            *PATCH, "--out", "run", *more, cwd=tmp_path, code=code, name="second"
        )
        assert (status, out) == (4, "")
        line = one_line(err)
        assert f"process {first.pid} on {os.uname().nodename} since 2" in line
    assert len(cells(tmp_path / "run")) >= 1  # reading needs no lock
    go(log)
    assert first.wait() == 0
    assert_same(tmp_path / "run", tiny_run)


def program(*args: object, **how: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlxroles.cli", *map(str, args)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **how)


@pytest.mark.slow
def test_the_program_itself_can_be_paused_and_killed(tiny_run, tmp_path):
    command = [*PATCH, "--out", tmp_path / "run"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # in a process group of its own but this session, as a shell would have it
    process = program(*command, **quiet, process_group=0)
    wait_for(tmp_path / "run" / "cells.jsonl", "\n", 5)
    process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    before = cells(tmp_path / "run")
    process.send_signal(signal.SIGCONT)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert before.keys() <= cells(tmp_path / "run").keys() < cells(tiny_run).keys()
    assert program(*command, **quiet).wait() == 0
    assert cells(tmp_path / "run") == cells(tiny_run)
    assert_sound(tmp_path / "run")


SYSCALLS = """
import os
from pathlib import Path
from run_contents import assert_same, assert_sound
from toy_study import run

NAMES = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "ftruncate", "unlink")
real = {name: getattr(os, name) for name in NAMES}
root = Path(ROOT)
run(root / "whole", 3)
trial, ended = 0, False
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
        run(place, 3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    ended = status == 0
    assert_sound(place)
    run(place, 3)
    assert_same(place, root / "whole")
print(trial)
"""


@pytest.mark.slow
@pytest.mark.skipif(not FORKS, reason="platform: trials by the hundred need a cheap fork")
def test_a_kill_before_any_system_call_of_a_whole_run_loses_nothing(zygote, tmp_path):
    code = SYSCALLS.replace("ROOT", repr(str(tmp_path)))
    status, out, err = zygote.run(cwd=tmp_path, code=code)
    assert status == 0, err
    assert int(out) > 70  # lock, manifest, arrays, journal, packed file, document
