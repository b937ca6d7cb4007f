"""The runner with studies that compute nothing: what is stored, what fails, what stops a run."""

import errno
import os
import signal
import threading
import time
from typing import NamedTuple

import pytest

from mlxroles import runner
from mlxroles.errors import PromptError, StoreError
from mlxroles.events import (
    DEADLINE,
    Cell,
    CellDone,
    CellFailed,
    Died,
    Note,
    RunFinished,
    RunStarted,
    Stage,
    Vitals,
)
from mlxroles.runner import Result, pulse, run
from mlxroles.runner.deaths import sorted_out, suspects
from mlxroles.runner.noted import Noted
from mlxroles.store.folder import RunFolder
from mlxroles.store.history import History, read_history
from mlxroles.supervision import Supervision


class Batch(NamedTuple):
    cells: tuple[Cell, ...]
    group: int


class Numbers:
    """Batches of four cells; a cell's value is its number unless ``broken`` says otherwise."""

    def __init__(self, broken=None):
        self.broken = broken or {}
        self.prepared = []
        self.computed = []

    def batches(self, pending):
        groups = {}
        for cell in pending:
            groups.setdefault(cell.coords["n"] // 4, []).append(cell)
        return [Batch(tuple(cells), group) for group, cells in groups.items()]

    def prepare(self, batches):
        self.prepared.append([cell.id for batch in batches for cell in batch.cells])
        yield

    def compute(self, batch):
        for cell in batch.cells:
            n = cell.coords["n"]
            self.computed.append(n)
            if n in self.broken:
                raise self.broken[n]
            yield Result(cell, {"x": n})


class OneGroup(Numbers):
    """The same batches, all of one group, so that nothing is waited for between them."""

    def __init__(self, broken=None, before=None):
        super().__init__(broken)
        self.before = before or {}

    def batches(self, pending):
        return [batch._replace(group=0) for batch in super().batches(pending)]

    def compute(self, batch):
        self.before.get(batch.cells[0].coords["n"], lambda: None)()
        return super().compute(batch)


LONG = 20
"""Seconds after which a test that hangs gives up."""


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("mlxroles-writer")]


CELLS = [Cell(f"c{n:02d}", {"n": n}) for n in range(12)]


def go(study, folder, cells=CELLS, **how):
    events = []
    with RunFolder.open(
        folder.parent, experiment="e", identity={"kind": "e"}, manifest={}, folder=folder
    ) as opened:
        finished = run(study, cells, opened, events.append, title="t", **how)
        return finished, events, opened.records()


def test_every_cell_is_stored_and_skipped_the_next_time(tmp_path):
    finished, events, records = go(Numbers(), tmp_path / "r", notes=["mind the gap"])
    assert (finished.done, finished.failed, finished.interrupted) == (12, 0, None)
    assert [r.values["x"] for r in records.values()] == list(range(12))
    assert isinstance(events[0], RunStarted)
    assert Note("mind the gap") in events
    study = Numbers()
    finished, events, _ = go(study, tmp_path / "r")
    assert (finished.done, study.computed, study.prepared) == (12, [], [])
    assert sum(isinstance(e, CellDone) and e.restored for e in events) == 12


def test_a_cell_that_fails_takes_no_neighbour_along(tmp_path):
    study = Numbers({5: ValueError("bad\nnews")})
    finished, events, records = go(study, tmp_path / "r")
    assert (finished.done, finished.failed) == (11, 1)
    assert records["c05"].status == "failed"
    assert records["c05"].error == "ValueError: bad"
    assert [e.cell.id for e in events if isinstance(e, CellFailed)] == ["c05"]
    assert study.computed.count(4) == 1  # what came before the failure counts
    assert records["c06"].attempt == 2
    finished, _, records = go(Numbers(), tmp_path / "r")
    assert (finished.done, records["c05"].values) == (12, {"x": 5})


def test_three_failures_of_one_cause_in_a_row_stop_the_run(tmp_path):
    broken = {n: RuntimeError("the device is gone") for n in range(4, 12)}
    with pytest.raises(StoreError, match=r"3 cells in a row failed alike.*the device is gone"):
        go(Numbers(broken), tmp_path / "r")
    finished, _, records = go(Numbers(), tmp_path / "r")
    assert (finished.done, len(records)) == (12, 12)


def test_numbers_that_are_not_finite_never_stop_a_run(tmp_path):
    broken = {n: FloatingPointError("not finite") for n in range(2, 10)}
    finished, _, _ = go(Numbers(broken), tmp_path / "r")
    assert (finished.done, finished.failed) == (4, 8)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError("no"), OSError("io")])
def test_what_cannot_be_prepared_stops_with_one_line(tmp_path, error):
    study = Numbers()

    def broken(batches):
        if batches[0].group == 1:
            raise error
        yield

    study.prepare = broken
    with pytest.raises(StoreError, match="the same command goes on") as caught:
        go(study, tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert go(Numbers(), tmp_path / "r")[0].done == 12


def test_an_error_of_the_user_is_not_a_failed_cell(tmp_path):
    with pytest.raises(PromptError):
        go(Numbers({0: PromptError("no such id")}), tmp_path / "r")
    assert go(Numbers(), tmp_path / "r")[2]["c00"].status == "ok"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run_after_the_batch_that_is_running(tmp_path, name):
    study = Numbers()
    compute = study.compute

    def signalled(batch):
        if batch.group == 1:
            signal.raise_signal(getattr(signal, name))
        return compute(batch)

    study.compute = signalled
    before = signal.getsignal(signal.SIGTERM)
    finished, _, records = go(study, tmp_path / "r")
    assert (finished.interrupted, finished.done) == (name, 8)
    assert len(records) == 8
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_stops_at_once(tmp_path):
    study = Numbers()
    compute = study.compute

    def signalled(batch):
        if batch.group == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return compute(batch)

    study.compute = signalled
    finished, _, _ = go(study, tmp_path / "r")
    assert (finished.interrupted, finished.done) == ("SIGINT", 4)


def test_a_signal_while_preparing_is_answered_at_the_next_step(tmp_path):
    study = Numbers()
    steps = []

    def slow(batches):
        for step in range(5):
            if step == 2:
                signal.raise_signal(signal.SIGTERM)
            steps.append(step)
            yield

    study.prepare = slow
    finished, *_ = go(study, tmp_path / "r")
    assert finished.interrupted == "SIGTERM"
    assert steps == [0, 1, 2]
    assert study.computed == []
    assert go(Numbers(), tmp_path / "r")[0].done == 12


def test_a_batch_is_written_while_the_next_one_computes(tmp_path):
    computing, waited = threading.Event(), []

    def stored(result):
        if result.cell.id == "c00":
            waited.append(computing.wait(LONG))  # for ever, if the next batch came after this one

    finished, events, records = go(
        OneGroup(before={4: computing.set}), tmp_path / "r", stored=stored
    )
    assert (waited, finished.done, len(records)) == ([True], 12, 12)
    assert [e.cell.id for e in events if isinstance(e, CellDone)] == [c.id for c in CELLS]


def test_no_more_than_two_batches_wait_to_be_written(tmp_path):
    third, fourth, early = threading.Event(), threading.Event(), []
    cells = [Cell(f"c{n:02d}", {"n": n}) for n in range(20)]

    def stored(result):
        if result.cell.id == "c00":
            assert third.wait(LONG)
            early.append(fourth.wait(0.2))

    study = OneGroup(before={8: third.set, 12: fourth.set})
    assert go(study, tmp_path / "r", cells, stored=stored)[0].done == 20
    assert early == [False]


def test_a_cell_is_told_of_when_it_is_safe_and_before_the_next_group_begins(tmp_path):
    told = []

    def emit(event):
        if isinstance(event, CellDone | CellFailed):
            record = RunFolder.read(tmp_path / "r").records()[event.cell.id]
            told.append((event.cell.coords["n"], record.status, type(event).__name__))
        elif isinstance(event, Stage):
            told.append(event.text)

    with RunFolder.open(
        tmp_path, experiment="e", identity={"kind": "e"}, manifest={}, folder=tmp_path / "r"
    ) as opened:
        run(Numbers({6: ValueError("no")}), CELLS, opened, emit, title="t")
    done = [(n, "ok", "CellDone") for n in range(12)]
    failed = (6, "failed", "CellFailed")
    said = "preparing"
    assert told == [said, *done[:4], said, *done[4:6], failed, done[7], said, *done[8:]]


def test_what_the_writing_raises_ends_the_run_as_it_is(tmp_path):
    error = KeyError("not a matter of the store")

    def stored(result):
        if result.cell.id == "c02":
            raise error

    with pytest.raises(KeyError) as caught:
        go(OneGroup(), tmp_path / "r", stored=stored)
    assert caught.value is error
    assert list(RunFolder.read(tmp_path / "r").records()) == ["c00", "c01", "c02"]
    assert go(OneGroup(), tmp_path / "r")[0].done == 12


@pytest.mark.parametrize("study", [Numbers, OneGroup])
def test_a_full_disk_stops_the_run_with_what_is_stored_safe(tmp_path, monkeypatch, study):
    real, lines = os.write, []

    def write(handle, data):
        if b'"id":"c' in bytes(data):
            lines.append(bytes(data))
            if len(lines) >= 7:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(StoreError, match="the disk is full") as caught:
            go(study(), tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert len(lines) == 7  # a disk that failed is not asked again
    assert len(RunFolder.read(tmp_path / "r").done()) == 6
    assert go(study(), tmp_path / "r")[0].done == 12


def test_what_was_computed_before_a_second_signal_is_stored_whatever_signals_follow(
    tmp_path, monkeypatch
):
    closing = threading.Event()
    real = runner.Writer.close

    def close(writer):
        closing.set()
        real(writer)

    def stored(result):
        if result.cell.id == "c00":
            assert closing.wait(LONG)
            signal.raise_signal(signal.SIGINT)

    def interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runner.Writer, "close", close)
    finished, _, records = go(OneGroup(before={8: interrupt}), tmp_path / "r", stored=stored)
    assert (finished.interrupted, finished.done, len(records)) == ("SIGINT", 8, 8)


def test_a_signal_is_answered_at_once(tmp_path):
    told = threading.Event()
    events = []

    def emit(event):
        events.append(event)
        if isinstance(event, Note) and "SIGTERM" in event.text:
            told.set()

    class Slow(OneGroup):
        def compute(self, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            assert told.wait(LONG)  # while the batch is still being computed
            return super().compute(batch)

    with RunFolder.open(
        tmp_path, experiment="e", identity={"kind": "e"}, manifest={}, folder=tmp_path / "r"
    ) as opened:
        finished = run(Slow(), CELLS, opened, emit, title="t")
    assert (finished.done, finished.interrupted) == (4, "SIGTERM")


def test_vital_signs_are_told_while_nothing_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "INTERVAL", 0.01)
    seen = threading.Event()

    def signs():
        return Vitals(1, 2, 3, 4, 5.0, 0)

    class Slow(OneGroup):
        def compute(self, batch):
            assert seen.wait(LONG)
            return super().compute(batch)

    events = []

    def emit(event):
        events.append(event)
        if isinstance(event, Vitals):
            seen.set()

    with RunFolder.open(
        tmp_path, experiment="e", identity={"kind": "e"}, manifest={}, folder=tmp_path / "r"
    ) as opened:
        run(Slow(), CELLS, opened, emit, title="t", signs=signs)
    assert Vitals(1, 2, 3, 4, 5.0, 0) in events
    kept = [line.event for line in read_history(tmp_path / "r")]
    assert Vitals(1, 2, 3, 4, 5.0, 0) in kept
    assert isinstance(kept[-1], RunFinished)


class Levels(OneGroup):
    """Every second batch shows the shape."""

    class Batch(NamedTuple):
        cells: tuple[Cell, ...]
        group: int
        level: int

    def batches(self, pending):
        return [
            self.Batch(b.cells, 0, b.cells[0].coords["n"] // 4 % 2)
            for b in super().batches(pending)
        ]


def wish(monkeypatch, **wishes):
    for name, value in Supervision(**wishes).variables().items():
        monkeypatch.setenv(name, value)


def test_where_time_is_short_the_shape_comes_first(tmp_path, monkeypatch):
    study = Levels()
    go(study, tmp_path / "r")
    assert study.computed == list(range(12))
    wish(monkeypatch, until=time.time() + 600)
    study = Levels()
    go(study, tmp_path / "s")
    assert study.computed == [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7]


def test_a_first_pass_computes_the_shape_alone(tmp_path, monkeypatch):
    wish(monkeypatch, until=time.time() + 600, coarse=True)
    finished, _, records = go(Levels(), tmp_path / "r")
    assert (finished.done, finished.interrupted) == (8, DEADLINE)
    assert set(records) == {c.id for c in CELLS if c.coords["n"] // 4 % 2 == 0}
    wish(monkeypatch)
    finished, _, records = go(Levels(), tmp_path / "r")
    assert (finished.done, finished.interrupted) == (12, None)


def test_a_deadline_ends_a_run_between_two_batches(tmp_path, monkeypatch):
    wish(monkeypatch, until=time.time() - 1)
    finished, _, records = go(Numbers(), tmp_path / "r")
    assert (finished.done, finished.interrupted, records) == (0, DEADLINE, {})


def test_a_clock_that_is_set_moves_no_deadline(monkeypatch):
    noted = Noted(until=time.time() + 600)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert noted.name is None


def died(path, *cells, times=1, cause="SIGABRT"):
    for _ in range(times):
        History(path).append(Died([f"c{n:02d}" for n in cells], cause))


def test_what_processes_died_of_is_tried_again_then_alone_then_given_up(tmp_path):
    place = tmp_path / "r"
    place.mkdir()
    died(place, 4, 5, 6, 7)
    died(place, 9)
    died(place, 0, 1, 2, 3, times=3, cause="SIGKILL, perhaps out of memory")
    held = suspects(read_history(place))
    assert sorted_out(CELLS, held) == (CELLS, [], [])
    died(place, 4, 5, 6, 7)
    died(place, 9)
    held = suspects(read_history(place))
    _, alone, given_up = sorted_out(CELLS, held)
    assert [c.coords["n"] for c in alone] == [4, 5, 6, 7]
    assert [c.coords["n"] for c in given_up] == [9]
    died(place, 5)

    class Alone(OneGroup):
        def alone(self, cell):
            self.by_themselves.append(cell.coords["n"])
            return Batch((cell,), 0)

    study = Alone()
    study.by_themselves = []
    finished, _, records = go(study, place)
    assert study.by_themselves == [4, 6, 7]
    assert (finished.done, finished.failed) == (10, 2)
    assert records["c05"].error == "the process ended each time (SIGABRT)"
    assert (records["c05"].attempt, records["c09"].attempt) == (3, 2)
    # asked for once more, everything is tried again
    finished, _, records = go(Alone(), place)
    assert (finished.done, finished.failed) == (12, 0)


def test_a_run_that_another_version_began_goes_on_and_says_so(tmp_path):
    def open_with(version):
        made = {"kind": "e", "computed_by": {"mlx": version, "mlx-lm": "1", "device": "cpu"}}
        return RunFolder.open(tmp_path, experiment="e", identity=made, manifest={})

    with open_with("0.32.2") as first:
        first.record(CELLS[0], {"x": 1})
    with open_with("0.33.0") as second:
        assert second.path == first.path
        assert second.done() == {"c00"}
        assert any("begun with mlx" in text and "0.33.0" in text for text in second.notes)
    with open_with("0.33.0") as third:
        (drift,) = third.manifest["drift"]
    assert (drift["field"], drift["was"], drift["now"]) == ("computed_by.mlx", "0.32.2", "0.33.0")


def test_what_nohup_has_had_ignored_ends_no_run(tmp_path):
    class Hung(OneGroup):
        def compute(self, batch):
            os.kill(os.getpid(), signal.SIGHUP)
            return super().compute(batch)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        finished, _, _ = go(Hung(), tmp_path / "r")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (finished.done, finished.interrupted) == (12, None)
