"""The supervisor of a queue: processes that die, hang, fail and are killed lose nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlxroles.overnight import child as child_module
from mlxroles.overnight import supervise
from mlxroles.overnight.queue import Planned, begin, folder_of
from mlxroles.overnight.ranks import Ranks
from mlxroles.overnight.supervise import Supervisor
from mlxroles.store.folder import RunFolder
from mlxroles.store.history import read_history
from mlxroles.store.sweep_state import read_state

TOY = (sys.executable, str(Path(__file__).parent / "toy_command.py"))
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """The supervisor starts the toy command, in a folder of the test's own."""
    monkeypatch.setattr(child_module, "PROGRAM", TOY)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


def experiment(name, **options):
    words = [w for k, v in options.items() for w in (f"--{k}", str(v))]
    return Planned(name, "patch", ("toy", name, *words))


def supervised(*experiments, until=None, hang=600.0, show=None):
    short, path = folder_of(Path("results").absolute(), "night", experiments)
    state = begin(path, "night", short, experiments, ["sweep", "night.toml"])
    ranks = Ranks(path)
    leader = Supervisor(
        state, show or (lambda state, events: None), ranks, until, hang=hang, cooldown=0.01
    )
    return leader.lead()


def numbers(name):
    with RunFolder.read(Path("results/toy") / name) as folder:
        return {
            r.id: (dict(r.values), {k: v.tolist() for k, v in folder.arrays(r.id).items()})
            for r in folder.records().values()
            if r.status == "ok"
        }


def undisturbed(n=12):
    subprocess.run([*TOY, "toy", "plain", "--cells", str(n)], check=True)
    return numbers("plain")


def test_a_queue_runs_to_its_end_and_the_second_time_starts_nothing():
    state = supervised(experiment("a"), experiment("b"))
    assert [e.status for e in state.entries] == ["done", "done"]
    assert [(e.cells, e.done, e.failed) for e in state.entries] == [(12, 12, 0)] * 2
    assert state.finished
    assert read_state(Path(state.path)).entries == state.entries
    assert numbers("a") == undisturbed()
    again = supervised(experiment("a"), experiment("b"))
    assert again.sessions == 2
    # without models there is nothing to compare, so that they are asked once more
    assert [e.restored for e in again.entries] == [12, 12]


@pytest.mark.parametrize("fault", ["abort", "segfault", "kill"])
def test_a_process_that_dies_once_costs_nothing(fault):
    state = supervised(experiment("a", faults=f"{fault}@4@once"))
    (entry,) = state.entries
    assert (entry.status, entry.done, entry.failed, entry.deaths) == ("done", 12, 0, 1)
    assert numbers("a") == undisturbed()


@pytest.mark.parametrize(("fault", "deaths"), [("abort", 3), ("kill", 5)])
def test_a_cell_that_processes_die_of_is_tried_alone_and_recorded(fault, deaths):
    state = supervised(experiment("a", faults=f"{fault}@4"), experiment("b"))
    a, b = state.entries
    assert (a.status, a.done, a.failed, b.status) == ("done", 11, 1, "done")
    expected = undisturbed()
    assert numbers("a") == {k: v for k, v in expected.items() if k != "cell/L04"}
    with RunFolder.read(Path("results/toy/a")) as folder:
        record = folder.records()["cell/L04"]
    assert record.status == "failed"
    assert "SIG" in str(record.error)
    # what may come from outside is held against a cell half as much
    assert record.attempt == deaths


def test_a_process_that_hangs_is_ended_and_started_again():
    state = supervised(experiment("a", faults="hang@4@once"), hang=1.5)
    (entry,) = state.entries
    assert (entry.status, entry.done, entry.deaths) == ("done", 12, 1)
    assert any("hung" in line["text"] for line in state.events)
    assert numbers("a") == undisturbed()


def test_cells_that_kill_cost_only_themselves_wherever_they_are():
    state = supervised(experiment("a", faults="abort@0,abort@1,abort@11"))
    (entry,) = state.entries
    assert (entry.status, entry.done, entry.failed) == ("done", 9, 3)
    expected = undisturbed()
    gone = {"cell/L00", "cell/L01", "cell/L11"}
    assert numbers("a") == {k: v for k, v in expected.items() if k not in gone}


def test_an_experiment_whose_processes_die_of_everything_is_left():
    faults = ",".join(f"abort@{n}" for n in range(12))
    state = supervised(experiment("a", faults=faults), experiment("b"))
    a, b = state.entries
    assert a.status == "failed"
    assert "7 times in a row" in a.error
    assert b.status == "done"


def test_an_experiment_that_dies_before_it_computes_is_left_after_three_deaths():
    state = supervised(experiment("a", early="abort"), experiment("b"))
    a, b = state.entries
    assert (a.status, a.deaths, b.status) == ("failed", 3, "done")


def test_a_command_that_tells_of_no_run_is_done_when_it_ends_well():
    def show(state, events):
        state.entries[0].cells = 2  # as planned

    state = supervised(experiment("a", silent=1), show=show)
    assert (state.entries[0].status, state.entries[0].done, state.interrupted) == ("done", 2, None)


def test_no_process_at_all_ends_one_experiment_and_not_the_night(monkeypatch):
    real, calls = supervise.Child, []

    def start(argv, *rest):
        calls.append(argv)
        if argv[1] == "a":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(argv, *rest)

    monkeypatch.setattr(supervise, "Child", start)
    state = supervised(experiment("a"), experiment("b"))
    assert [e.status for e in state.entries] == ["failed", "done"]
    assert "Resource temporarily unavailable" in state.entries[0].error
    assert len(calls) == 4


def test_a_second_signal_is_not_held_against_the_cells():
    one = experiment("a", seconds=3.0, cells=3)
    process = in_background(one)
    wait_for(lambda: Path("results/toy/a/events.jsonl").exists())
    wait_for(lambda: "batch" in Path("results/toy/a/events.jsonl").read_text())
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.strip() == "SIGINT"
    assert not [e for *_, e in read_history(Path("results/toy/a")) if type(e).__name__ == "Died"]


def test_a_run_that_another_process_has_open_is_waited_for(monkeypatch):
    monkeypatch.setattr(supervise, "PATIENCE", 0.5)
    held = subprocess.Popen([*TOY, "toy", "a", "--seconds", "0.3"])
    wait_for(lambda: Path("results/toy/a/cells.jsonl").exists())
    state = supervised(experiment("a"), experiment("b"))
    assert held.wait(60) == 0
    assert [e.status for e in state.entries] == ["done", "done"]
    assert any("it waits" in line["text"] for line in state.events)


def test_the_end_of_a_killed_sweep_stays_where_it_was():
    planned = [experiment("a")]
    short, path = folder_of(Path("results").absolute(), "night", planned)
    state = begin(path, "night", short, planned, ["sweep", "x.toml", "--budget", "8h"])
    state.until = "2099-01-01T00:00:00+00:00"
    state.write()
    again = begin(path, "night", short, planned, ["sweep", "x.toml", "--budget", "8h"])
    assert again.until == state.until
    other = begin(path, "night", short, planned, ["sweep", "x.toml", "--budget", "2h"])
    assert other.until is None
    state.finished = "2098-01-01T00:00:00+00:00"
    state.write()
    assert begin(path, "night", short, planned, ["sweep", "x.toml", "--budget", "2h"]).until is None


def test_a_clock_that_is_set_ends_no_queue(monkeypatch):
    leader = Supervisor(None, None, None, until=time.time() + 600)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not leader._is_over()


def test_an_experiment_that_cannot_run_keeps_its_reason_and_the_queue_goes_on():
    state = supervised(experiment("a", broken=1), experiment("b"))
    a, b = state.entries
    assert (a.status, b.status) == ("failed", "done")
    assert a.error == "this experiment cannot run: do something else"


def test_cells_that_fail_are_tried_twice_and_three_alike_end_only_their_experiment():
    faults = "raise@3,raise@4,raise@5"
    state = supervised(experiment("a", faults=faults), experiment("b", faults="nan@1"))
    a, b = state.entries
    assert a.status == "failed"
    assert "failed alike" in a.error
    assert (b.status, b.failed, b.done) == ("done", 1, 11)


def test_a_deadline_ends_the_queue_with_the_coarse_cells_done():
    began = time.time()
    state = supervised(
        experiment("a", seconds=0.2), experiment("b", seconds=0.2), until=began + 8.0
    )
    assert state.interrupted in (None, "deadline")
    assert all(e.done >= 6 for e in state.entries)
    done = numbers("a")
    assert {f"cell/L{n:02d}" for n in (0, 1, 2, 6, 7, 8)} <= done.keys()
    again = supervised(experiment("a", seconds=0.2), experiment("b", seconds=0.2))
    assert [e.status for e in again.entries] == ["done", "done"]
    assert numbers("a") == undisturbed()


def in_background(*experiments):
    names = [(e.name, e.argv) for e in experiments]
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_overnight as t
from mlxroles.overnight import child
child.PROGRAM = t.TOY
state = t.supervised(*[t.Planned(n, "patch", tuple(a)) for n, a in {names!r}])
sys.stdout.write(str(state.interrupted))
"""
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_supervisor_that_is_killed_takes_its_process_along_and_the_next_one_goes_on():
    one = experiment("a", seconds=0.3)
    process = in_background(one)
    journal = Path("results/toy/a/cells.jsonl")
    wait_for(lambda: journal.exists() and journal.stat().st_size > 0)
    process.kill()
    process.communicate()
    state = supervised(one)
    assert (state.sessions, state.entries[0].status, state.entries[0].done) == (2, "done", 12)
    assert state.entries[0].restored > 0
    assert numbers("a") == undisturbed()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_queue_after_the_running_batch(name):
    one = experiment("a", seconds=0.3)
    process = in_background(one, experiment("b"))
    journal = Path("results/toy/a/cells.jsonl")
    wait_for(lambda: journal.exists() and journal.stat().st_size > 0)
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=60)
    assert out.strip() == name
    (sweep,) = Path("results").glob("sweep_night/*")
    state = read_state(sweep)
    assert state.entries[0].status == "stopped"
    assert state.entries[1].status == "stopped"
    assert not [e for *_, e in read_history(Path("results/toy/a")) if type(e).__name__ == "Died"]
    assert supervised(one, experiment("b")).entries[0].restored > 0
    assert numbers("a") == undisturbed()


def test_the_state_on_disk_is_what_is_shown(tmp_path):
    seen = []
    supervised(experiment("a"), show=lambda state, events: seen.append(state.to_json()))
    (sweep,) = Path("results").glob("sweep_night/*")
    assert json.loads((sweep / "state.json").read_text()) == seen[-1]
    assert seen[-1]["pid"] == os.getpid()


def test_a_process_that_hangs_when_it_is_asked_to_end_is_ended(monkeypatch):
    monkeypatch.setattr(supervise, "LAST", 1.5)
    monkeypatch.setattr(child_module, "MANY_TIMES", 2)
    threading.Timer(6.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    state = supervised(experiment("a", faults="hang@4"))
    assert time.monotonic() - began < 60
    assert (state.interrupted, state.entries[0].status) == ("SIGTERM", "stopped")
