"""`mlxroles watch`: runs and sweeps of other processes, read from their files."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import night_states
import pytest

from mlxroles.cli import run
from mlxroles.dashboard import sources
from mlxroles.dashboard.sources import RunSource, SweepSource
from mlxroles.events import CellDone, Died, Note, RunFinished, RunStarted
from mlxroles.store.folder import RunFolder
from mlxroles.store.history import History
from mlxroles.store.lock import RunLock
from mlxroles.store.sweep_state import STATE, Entry, QueueState

IDENTITY = {"kind": "patch", "seed": 0}
ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Written:
    """A run that a test writes as a process would."""

    def __init__(self, results, name="patch_tiny", **identity):
        about = {"view": night_states.view(4)}
        self.folder = RunFolder.open(
            results, experiment=name, identity=IDENTITY | identity, manifest={"about": about}
        )
        self.path = self.folder.path
        self.history = History(self.path)
        self.events = night_states.run_events(4, 1.0, trouble=False)
        self.cells = [e for e in self.events if isinstance(e, CellDone)]
        self.history.append(self.events[0])

    def store(self, count):
        for event in self.cells[:count]:
            self.folder.record(event.cell, event.values, seconds=event.seconds)
        del self.cells[:count]

    def finish(self, interrupted=None):
        done = 26 - len(self.cells)
        self.history.append(RunFinished(done, 0, 12.0, interrupted))
        self.folder.close()


def spoken(*arguments, capsys):
    code = run(["watch", "--plain", *map(str, arguments)])
    return code, capsys.readouterr().err


def test_a_finished_run_is_shown_once(here, capsys):
    written = Written(here / "results")
    written.store(26)
    written.finish()
    code, text = spoken(written.path, capsys=capsys)
    assert code == 0
    assert text.splitlines()[0].endswith("resid_post, notepad: 26 cells")
    assert text.splitlines()[-1] == "Finished: 26 cells in 12 s."


def test_a_run_that_nobody_writes_names_the_cure(here, capsys):
    written = Written(here / "results")
    written.store(5)
    written.folder.close()
    code, text = spoken(written.path, capsys=capsys)
    assert code == 1
    assert f"no process writes this run; resume with: mlxroles resume {written.path}" in text
    assert "5 of 26 cells, 19 percent" in text


def test_an_interrupted_run_can_be_resumed(here, capsys):
    written = Written(here / "results")
    written.store(5)
    written.finish("SIGTERM")
    code, text = spoken(written.path, capsys=capsys)
    assert (code, "Stopped by SIGTERM: 5 cells" in text, "resume with" in text) == (1, True, True)


def test_a_run_is_followed_from_its_middle_to_its_end(here):
    written = Written(here / "results")
    written.store(5)
    source = RunSource(written.path)
    assert source.poll() == "running"
    progress = source.state.progress
    assert (progress.done, progress.total, progress.restored) == (5, 26, 0)
    assert source.state.remaining is not None
    assert source.state.kind == "patch"
    written.store(3)
    written.history.append(Note("hot"))
    written.history.append(Died(["x"], "SIGKILL"))
    failed = written.cells.pop(0).cell
    written.folder.fail(failed, "boom")
    assert source.poll() == "running"
    assert (progress.done, progress.failed, source.state.deaths) == (8, 1, 1)
    written.folder.record(failed, {"tool_call_prob": 0.1}, seconds=1.0)
    written.store(99)
    written.finish()
    assert source.poll() == "ended"
    assert (progress.done, progress.failed) == (26, 0)


def test_a_process_that_dies_may_be_followed_by_another_one(here):
    clock = night_states.Clock()
    written = Written(here / "results")
    source = RunSource(written.path, clock)
    written.folder.close()
    assert source.poll() == "running"
    clock.now += sources.GRACE + 1
    assert source.poll() == "stopped"


def test_nothing_is_written_or_locked(here):
    written = Written(here / "results")
    written.store(5)
    written.folder.close()
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in here.rglob("*")}
    for path in written.path.iterdir():
        path.chmod(0o444)
    written.path.chmod(0o555)
    try:
        source = RunSource(written.path)
        RunLock(written.path / "run.lock").release()  # nobody is in the way
        source.poll()
    finally:
        written.path.chmod(0o755)
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in here.rglob("*")}
    assert {p for p in after if after[p] != before.get(p)} <= {written.path / "run.lock"}


def sweep(results, status="running", *, finished=None, run_path=None):
    path = results / "sweep_night" / "ab12"
    path.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entries = [
        Entry(0, "first", "probe", ["probe"], status="done", cells=4, done=4, sentence="So it is."),
        Entry(1, "second", "patch", ["patch"], status=status, run=run_path, cells=26),
    ]
    state = QueueState("night", "ab12", str(path), now, entries, finished=finished, current=1)
    state.current = None if finished else 1
    state.write()
    return path


def test_a_sweep_is_shown_with_the_run_of_the_moment(here, capsys):
    written = Written(here / "results")
    written.store(9)
    path = sweep(here / "results", run_path=str(written.path))
    lock = RunLock(path / "run.lock")
    source = SweepSource(path)
    assert source.poll() == "running"
    assert source.run.progress.done == 9
    code = run(["watch", "--json"])  # the newest that runs: the sweep, not its run
    doc = json.loads(capsys.readouterr().out)
    assert (code, doc["schema"], doc["what"]) == (0, "mlxroles/watch/1", "sweep")
    assert doc["queue"]["entries"][0]["sentence"] == "So it is."
    assert doc["run"]["done"] == 9
    sweep(here / "results", "done", finished=datetime.now(UTC).isoformat())
    lock.release()
    written.folder.close()
    assert source.poll() == "ended"
    assert source.run is None
    code, text = spoken(path, capsys=capsys)
    assert code == 0
    assert "Experiment 1 of 2, first, is done: 4 cells" in text
    (path / STATE).write_text("{ torn")
    source.poll()
    assert source.queue.name == "night"


def test_a_sweep_that_lies_elsewhere_on_this_machine_finds_its_run(here):
    written = Written(here / "results")
    path = sweep(here / "results", run_path=f"/elsewhere/results/patch_tiny/{written.path.name}")
    source = SweepSource(path)
    assert source.run is not None
    assert source.poll() == "stopped"


def test_a_sweep_whose_process_is_gone_names_the_cure(here, capsys):
    path = sweep(here / "results")
    code, text = spoken(path, capsys=capsys)
    assert code == 1
    assert f"mlxroles resume {path}" in text


def test_the_newest_run_is_meant_where_none_runs(here, capsys):
    assert run(["watch"]) == 1
    assert "nothing to watch: no runs below results/" in capsys.readouterr().err
    old, new = Written(here / "results"), Written(here / "results", seed=1)
    old.folder.close()
    new.folder.close()
    past = time.time() - 1000
    for path in old.path.iterdir():
        os.utime(path, (past, past))
    run(["watch", "--json"])
    assert json.loads(capsys.readouterr().out)["path"].endswith(new.path.name)
    lock = RunLock(old.path / "run.lock")
    run(["watch", "--json"])
    doc = json.loads(capsys.readouterr().out)
    lock.release()
    assert doc["path"].endswith(old.path.name)
    assert doc["state"] == "running"


def test_a_path_that_is_no_run_is_an_error(here, capsys):
    assert run(["watch", "results/none"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    (here / "empty").mkdir()
    assert run(["watch", "empty"]) == 1


def test_odd_views_are_shown(here, capsys):
    folder = RunFolder.open(here / "results", experiment="x", identity=IDENTITY, manifest={})
    view = {"kind": "patch", "layers": "all", "directions": 7, "n_layers": None}
    History(folder.path).append(RunStarted("odd", "", (), 0, view))
    folder.fail(night_states.patch_cells(2)[3], "boom")
    folder.close()
    assert run(["watch", str(folder.path), "--plain"]) == 1
    assert RunSource(folder.path).state.progress.failed == 1


def watching(path, size=b"80 24", **env):
    """`mlxroles watch` on a terminal of its own: process and the handle of the other end."""
    ours, theirs = pty.openpty()
    base = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")}
    columns, lines = size.decode().split()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxroles.cli", "watch", str(path)],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
        env=base | {"TERM": "xterm-256color", "COLUMNS": columns, "LINES": lines} | env,
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def read_until(handle, text, seconds=60):
    found, end = b"", time.monotonic() + seconds
    while text not in found and time.monotonic() < end:
        try:
            found += os.read(handle, 65536)
        except OSError:
            break
    return found


@pytest.mark.slow
@pytest.mark.parametrize("leave", ["q", "SIGINT"])
def test_q_and_an_interrupt_leave_at_once(here, leave):
    written = Written(here / "results")
    written.store(5)
    process, terminal = watching(written.path)
    try:
        assert b"5/26" in read_until(terminal, b"5/26")
        if leave == "q":
            os.write(terminal, b"q")
        else:
            process.send_signal(signal.SIGINT)
        rest = read_until(terminal, b"\x1b[?1049l")
        after = read_until(terminal, b"5/26", 10)
        assert process.wait(30) == 130
        assert b"\x1b[?1049l" in rest
        assert b"5/26" in rest.partition(b"\x1b[?1049l")[2] + after
        assert b"Traceback" not in rest + after
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


@pytest.mark.slow
def test_watching_ends_with_the_run_and_leaves_its_last_state(here):
    written = Written(here / "results")
    written.store(5)
    process, terminal = watching(written.path, b"120 40")
    try:
        read_until(terminal, b"5/26")
        written.store(21)
        written.finish()
        text = read_until(terminal, b"done in 12 s") + read_until(terminal, b"\x1b[?1049l", 5)
        text += read_until(terminal, b"done in 12 s", 5)
        assert b"done in 12 s" in text.rpartition(b"\x1b[?1049l")[2]
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
