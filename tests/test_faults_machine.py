"""Clocks that jump, memory that ends, numbers that are none, and very long runs."""

import gc
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_study
from run_contents import assert_same, cells
from toy_study import Toy, run

from mlxroles.dashboard.plain import PlainLines
from mlxroles.dashboard.progress import Progress
from mlxroles.errors import StoreError
from mlxroles.events import CellDone, CellFailed, Note, RunFinished
from mlxroles.runner import Result
from mlxroles.store import RunFolder, files
from mlxroles.studies import patch_sweep
from mlxroles.studies.patch_run import PatchWork

DAY = 86_400


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-DAY, DAY, -30 * 365 * DAY])
def test_a_clock_that_is_set_while_running_changes_no_duration_and_no_order(
    tmp_path, monkeypatch, jump
):
    real, moved = time.time, []
    monkeypatch.setattr(time, "time", lambda: real() + (jump if moved else 0))
    study = Toy(before=lambda n: moved.append(n) if n == 3 else None)
    told = []
    finished = run(tmp_path / "run", 8, study, told.append)
    assert 0 <= finished.seconds < 60
    records = list(RunFolder.read(tmp_path / "run").records().values())
    assert [record.id for record in records] == [cell.id for cell in toy_study.cells(8)]
    assert all(0 <= record.seconds < 60 for record in records)
    assert not any("asleep" in e.text or "slept" in e.text for e in told if isinstance(e, Note))
    monkeypatch.undo()
    run(tmp_path / "whole", 8)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_run_of_tomorrow_goes_on_today(zygote, tmp_path):
    ahead = f"import time\nreal = time.time\ntime.time = lambda: real() + {DAY}\n"
    code = "from pathlib import Path\nfrom toy_study import Toy, run\n"
    first = "run(Path('run'), 3)\n"
    status, _, err = zygote.run(cwd=tmp_path, code=ahead + code + first)
    assert status == 0, err
    for file in (tmp_path / "run").iterdir():
        os.utime(file, (time.time() + DAY,) * 2)
    study = Toy()
    assert run(tmp_path / "run", 6, study).done == 6
    assert study.computed == [3, 4, 5]


def test_durations_and_the_time_that_is_left_are_those_of_the_monotonic_clock(tmp_path):
    now = [1000.0]

    def later(n):
        now[0] += 2.0

    lines = []
    progress = Progress([0], ["base_to_instruct"], n_layers=1, headline="x", value="x")
    plain = PlainLines(progress, lines.append, quiet=False)
    finished = run(tmp_path / "run", 4, Toy(1, before=later), plain, clock=lambda: now[0])
    assert finished.seconds == 8.0
    stored = RunFolder.read(tmp_path / "run").records().values()
    assert [record.seconds for record in stored] == [2.0] * 4
    assert any("ETA" in line for line in lines)


# --- memory and numbers ---------------------------------------------------------------------------

ERRORS = {
    "malloc": RuntimeError("[malloc] Unable to allocate 17179869184 bytes."),
    "metal": RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"),
    "memory": MemoryError("no room"),
    "not finite": FloatingPointError("the logits are not all finite numbers"),
    "several lines": RuntimeError("a\nb\x1b[2J"),
    "no words": RuntimeError(),
}


class Sometimes:
    """Raises the error on the given cells, the first ``times`` times that each is computed."""

    def __init__(self, error, numbers, times=1):
        self.error, self.left = error, dict.fromkeys(numbers, times)

    def __call__(self, n):
        if self.left.get(n):
            self.left[n] -= 1
            raise self.error


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_in_the_middle_is_tried_again_once_and_leaves_no_trace(tmp_path, name):
    run(tmp_path / "whole")
    told = []
    study = Toy(before=Sometimes(ERRORS[name], [2, 5]))
    finished = run(tmp_path / "run", study=study, emit=told.append)
    assert (finished.done, finished.failed, finished.interrupted) == (6, 0, None)
    assert not any(isinstance(event, CellFailed) for event in told)
    assert RunFolder.read(tmp_path / "run").records()["c00002"].attempt == 2
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_that_stays_is_recorded_and_costs_its_own_cell(tmp_path, name):
    run(tmp_path / "whole")
    told = []
    study = Toy(before=Sometimes(ERRORS[name], [2, 5], times=9))
    finished = run(tmp_path / "run", study=study, emit=told.append)
    assert (finished.done, finished.failed) == (4, 2)
    assert [e.cell.id for e in told if isinstance(e, CellFailed)] == ["c00002", "c00005"]
    failed = [r for r in RunFolder.read(tmp_path / "run").records().values() if r.status != "ok"]
    assert [(r.id, r.attempt, r.values, r.arrays) for r in failed] == [
        ("c00002", 2, {}, None),
        ("c00005", 2, {}, None),
    ]
    words = f"{type(ERRORS[name]).__name__}: {ERRORS[name]}".splitlines()[0]
    assert {record.error for record in failed} == {words}
    study = Toy()
    run(tmp_path / "run", study=study)
    assert study.computed == [2, 5]
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ["malloc", "memory"])
def test_three_of_one_cause_in_a_row_stop_the_run_and_others_do_not(tmp_path, name):
    errors = iter([ERRORS["malloc"], ERRORS["metal"], ERRORS["memory"]] * 9)

    def changing(n):
        if n in (1, 3, 5):
            raise next(errors)

    assert run(tmp_path / "other", 8, Toy(1, before=changing)).failed == 3
    study = Toy(before=Sometimes(ERRORS[name], range(2, 99), times=9))
    with pytest.raises(StoreError, match="stopped after 3 cells in a row failed alike") as found:
        run(tmp_path / "run", 40, study)
    assert "the same command goes on from there" in str(found.value)
    assert "\n" not in str(found.value)
    assert max(study.computed) < 2  # nothing else was computed after them
    assert run(tmp_path / "run", 40).done == 40


class Late(Toy):
    """An error of the device that shows after some cells of the batch are computed."""

    def compute(self, batch):
        for result in super().compute(batch):
            yield result
            if result.cell.coords["n"] == 1 and self.computed.count(1) == 1:
                raise RuntimeError("[METAL] Command buffer execution failed: an earlier operation")


def test_an_error_at_a_later_operation_keeps_what_came_before_it(tmp_path):
    run(tmp_path / "whole", 8)
    study = Late(4)
    assert run(tmp_path / "run", 8, study).done == 8
    assert study.computed == [0, 1, 2, 3, 4, 5, 6, 7]  # 0 and 1 were whole: not once more
    assert_same(tmp_path / "run", tmp_path / "whole")


class NotANumber(Toy):
    def compute(self, batch):
        for result in super().compute(batch):
            n = result.cell.coords["n"]
            if n == 3:
                values = dict(result.values) | {"x": float("nan"), "more": [float("inf"), 1.0]}
                yield Result(result.cell, values, {"row": np.full(16, np.nan, "f4")})
            else:
                yield result


def test_numbers_that_are_none_are_stored_as_what_they_are_and_documents_stay_json(tmp_path):
    run(tmp_path / "run", study=NotANumber())
    run(tmp_path / "run", study=Toy())  # stored is stored
    values = RunFolder.read(tmp_path / "run").records()["c00003"].values
    assert np.isnan(values["x"])
    assert values["more"] == [float("inf"), 1.0]
    for line in (tmp_path / "run" / "cells.jsonl").read_bytes().splitlines():
        json.loads(line[9:], parse_constant=lambda text: pytest.fail(text))
    with RunFolder.reopen(tmp_path / "run") as folder:
        folder.write_json("more.json", dict(values))
    assert json.loads((tmp_path / "run" / "more.json").read_text())["x"] is None


# --- the same with a model ------------------------------------------------------------------------


@pytest.fixture
def tiny(call, tmp_path, monkeypatch):
    """Runs a small sweep over the embedded pair into a folder; its status, document, messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(patch_sweep, "patch_figures", lambda doc, folder: {})
    monkeypatch.setattr(patch_sweep, "svg", lambda doc, path, *, title: None)

    def go(name):
        command = ["patch", "--pair", "tiny", "--layers", "1-4", "--controls", "none", "--plain"]
        status, out, err = call(*command, "--json", "--out", tmp_path / name)
        return status, json.loads(out) if out else None, err

    return go


def failing(monkeypatch, error, layers, times):
    """Patched runs at these layers raise the error so many times each."""
    real, left = PatchWork._patched, dict.fromkeys(layers, times)

    def patched(work, batch):
        for cell in batch.cells:
            if left.get(cell.coords["layer"]):
                left[cell.coords["layer"]] -= 1
                raise error
        return real(work, batch)

    monkeypatch.setattr(PatchWork, "_patched", patched)


@pytest.mark.parametrize("name", ["malloc", "memory", "not finite"])
def test_a_sweep_with_a_cell_that_fails_says_so_everywhere_and_ends_in_3(
    tiny, tmp_path, monkeypatch, name
):
    assert tiny("whole")[0] == 0
    with monkeypatch.context() as patch:
        failing(patch, ERRORS[name], [2], 99)
        status, doc, err = tiny("run")
    assert status == 3
    assert "2 cells failed; the same command tries them again" in err
    assert {f["cell"].split("/")[2] for f in doc["failed_cells"]} == {"L02"}
    assert all(type(ERRORS[name]).__name__ in f["error"] for f in doc["failed_cells"])
    for direction in ("base_to_instruct", "instruct_to_base"):
        assert sorted(doc[direction]) == ["1", "3", "4"]  # no number is made up
    assert doc["summary"]["i2b_peak_layer"] != 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "failed" in page
    status, doc, _ = tiny("run")
    assert (status, doc["failed_cells"]) == (0, [])
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_sweep_that_runs_out_of_memory_once_has_the_same_numbers(tiny, tmp_path, monkeypatch):
    assert tiny("whole")[0] == 0
    failing(monkeypatch, ERRORS["malloc"], [2, 3], 1)
    status, doc, _ = tiny("run")
    assert (status, doc["failed_cells"]) == (0, [])
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_model_that_does_not_fit_into_memory_is_one_line(tiny, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise RuntimeError("[malloc] Unable to allocate 9 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr("mlxroles.studies.subject.load", full)
        status, doc, err = tiny("run")
    assert (status, doc) == (1, None)
    (line,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert "Unable to allocate" in line
    assert "the same command goes on from there" in line
    assert tiny("run")[0] == 0


# --- twenty thousand cells ------------------------------------------------------------------------

SOAK = 20_000


@pytest.mark.slow
def test_twenty_thousand_cells_leak_nothing_and_are_read_in_one_go(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sync", lambda handle: None)  # the disk's time is not the point
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    handles, sizes = [], []

    def emit(event):
        if isinstance(event, CellDone) and event.cell.coords["n"] % 2000 == 1999:
            gc.collect()
            handles.append(len(list(Path("/dev/fd").iterdir())))
            sizes.append(resident())

    study = Toy(50, arrays=False)
    with RunFolder.open(
        tmp_path, folder=tmp_path / "run", experiment="soak", identity={}, manifest={}
    ) as folder:
        plan = toy_study.cells(SOAK)
        finished = toy_study.runner.run(study, plan, folder, emit, title="soak")
    assert isinstance(finished, RunFinished)
    assert finished.done == SOAK
    assert max(handles) - min(handles) <= 1
    if sizes[0]:
        # what is kept per cell is its record: about a kilobyte
        assert sizes[-1] - sizes[0] < 4096 * SOAK
        later = np.diff(sizes[1:])
        assert later.max() < 4 * max(np.median(later), 2**20)
    calls = []
    monkeypatch.setattr(os, "open", counting(calls, os.open))
    assert len(cells(tmp_path / "run")) == SOAK
    assert len(calls) < 10
    again = Toy(50, arrays=False)
    with RunFolder.reopen(tmp_path / "run") as folder:
        assert toy_study.runner.run(again, plan, folder, emit, title="soak").done == SOAK
    assert again.computed == []


def counting(calls, real):
    def call(*args, **kwargs):
        calls.append(args[0])
        return real(*args, **kwargs)

    return call


def resident():
    """Bytes of this process in memory, 0 where they cannot be told."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
