"""What is done with stored runs, on made-up folders: names, tallies, states, rows, differences."""

import io
import json
import math
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxroles.errors import SpecError, StoreError
from mlxroles.events import Cell, Died, Note, RunFinished, RunStarted, Slept, Vitals
from mlxroles.runs import cells, differ, long
from mlxroles.runs.check import check
from mlxroles.runs.find import find, find_run, runs_below
from mlxroles.runs.state import details, state_of
from mlxroles.runs.subject import subject
from mlxroles.runs.tally import tally
from mlxroles.store.folder import RunFolder
from mlxroles.store.history import History

IDENTITY = {
    "kind": "probe",
    "models": {"base": {"sha256": "b"}, "instruct": {"sha256": "i"}},
    "prompts": {"default": [["one", "d1"], ["two", "d2"]]},
    "layers": [0, 1, 2],
    "seed": 0,
}
CELLS = [
    Cell(f"{model}/p{p:03d}", {"model": model, "variant": "default", "prompt": p})
    for model in ("base", "instruct")
    for p in (0, 1)
]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def opened(results, *, experiment="probe_x", **changes):
    manifest = {"argv": ["probe", "--pair", "x"], "token_ids": {"default/one": [1, 2]}}
    return RunFolder.open(
        results, experiment=experiment, identity=IDENTITY | changes, manifest=manifest
    )


def made(results, n=4, *, failing=(), arrays=None, shift=0.0, **changes):
    """A run of which some cells are stored."""
    with opened(results, **changes) as folder:
        for number, cell in enumerate(CELLS[:n]):
            if number in failing:
                folder.fail(cell, "FloatingPointError: NaN")
            else:
                folder.record(cell, {"log_odds": number + shift, "rank": number}, arrays)
    return folder.path


def tell(path, *events, ago=0.0):
    history = History(path)
    for event in events:
        history.append(event)
    if ago:
        began = datetime.now(UTC) - timedelta(seconds=ago)
        text = history.path.read_text().splitlines()
        docs = [json.loads(line) | {"t": began.isoformat()} for line in text]
        history.path.write_text(
            "".join(f"{json.dumps(doc, separators=(',', ':'))}\n" for doc in docs)
        )


# --- names ----------------------------------------------------------------------------------------


def test_a_run_is_found_by_path_id_beginning_and_experiment(results):
    run = made(results)
    for text in (
        str(run),
        run.name,
        run.name[:5],
        f"probe_x/{run.name[:3]}",
        str(run / "run.lock"),
    ):
        assert find(text).samefile(run)
    assert find(str(run.parent)) == run


def test_a_name_of_two_runs_is_refused_with_both(results):
    first, second = made(results), made(results, seed=1)
    with pytest.raises(SpecError, match="holds 2 runs") as caught:
        find(str(first.parent))
    assert first.name in str(caught.value)
    assert second.name in str(caught.value)
    with pytest.raises(SpecError, match="stands for 2 runs"):
        find("probe_x")


def test_an_unknown_name_gets_the_nearest_or_the_newest(results):
    run = made(results)
    wrong = ("0" if run.name[0] != "0" else "1") + run.name[1:]
    with pytest.raises(SpecError, match=f"did you mean '{run.name}'"):
        find(wrong)
    with pytest.raises(SpecError, match=f"newest below results: probe_x/{run.name}"):
        find("zzz")
    with pytest.raises(StoreError, match="no run folder and holds none"):
        find(str(results.parent))


def test_runs_come_newest_first_without_those_set_aside(results):
    first = made(results)
    time.sleep(0.02)
    second = made(results, seed=1)
    with opened(results, seed=2) as folder:
        third = folder.path
    third.rename(third.with_name(f"{third.name}.old-1"))
    assert runs_below(results) == [second, first]


def test_a_sweep_and_a_capture_file_are_no_single_run(results, tmp_path):
    sweep = results / "sweep_x" / "abc"
    sweep.mkdir(parents=True)
    (sweep / "state.json").write_text("{}")
    assert find("abc").samefile(sweep)
    with pytest.raises(SpecError, match="sweep of several runs"):
        find_run("abc")
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(SpecError, match="capture by itself"):
        find_run(str(tmp_path / "x.h5"))
    (tmp_path / "x.txt").write_bytes(b"")
    with pytest.raises(StoreError, match="is no run"):
        find(str(tmp_path / "x.txt"))


# --- tallies --------------------------------------------------------------------------------------


def test_the_tally_is_what_the_folder_reads(results):
    path = made(results, failing=(1,))
    with (path / "cells.jsonl").open("ab") as file:
        file.write(b"00000000 {}\nhalf a li")
    found, folder = tally(path), RunFolder.read(path)
    assert found.ok == folder.done()
    assert set(found.failed) == {CELLS[1].id}
    assert found.lines == 5
    assert len(found.torn) == 1


def test_cells_of_shards_count(results):
    path = made(results, 2)
    with RunFolder.join(path, rank=1, identity=IDENTITY) as shard:
        shard.record(CELLS[2], {"log_odds": 1.0})
        assert state_of(path).state == "running"
    assert state_of(path).done == 3
    found = check(path)
    assert found.ok
    assert any("not taken in" in one.what for one in found.findings)


@given(st.binary(max_size=300))
def test_any_bytes_in_a_journal_can_be_counted(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run")
    (path / "cells.jsonl").write_bytes(data)
    found = tally(path)
    assert not found.ok
    assert found.lines == len([line for line in data.rpartition(b"\n")[0].split(b"\n") if line])


# --- states ---------------------------------------------------------------------------------------


def test_a_run_without_history_and_summary_has_no_total(results):
    path = made(results, 3)
    state = state_of(path)
    assert (state.state, state.done, state.total, state.total_from) == ("stopped", 3, None, None)
    (path / "summary.json").write_text('{"schema": "mlxroles/probe/1", "interrupted": "SIGINT"}')
    assert state_of(path).state == "stopped"


def test_a_run_with_a_summary_and_all_cells_is_finished(results):
    path = made(results)
    assert state_of(path).state == "stopped"  # what is made of the cells is missing
    (path / "summary.json").write_text('{"schema": "mlxroles/probe/1", "interrupted": null}')
    state = state_of(path)
    assert state.state == "finished"
    assert not state.is_unfinished


def test_failed_cells_leave_a_run_unfinished(results):
    path = made(results, failing=(0, 2))
    (path / "summary.json").write_text('{"schema": "mlxroles/probe/1"}')
    state = state_of(path)
    assert (state.state, state.done, state.failed) == ("finished", 2, 2)
    assert state.is_unfinished
    doc = details(state)
    [failure] = doc["failures"]
    assert failure["count"] == 2
    assert doc["resume"] == f"mlxroles resume {path}"


def test_the_history_gives_total_sessions_and_times(results):
    path = made(results, 3)
    estimate = {"likely": 9.0, "low": 5.0, "high": 20.0, "basis": "calibrated here"}
    tell(path, RunStarted("t", str(path), CELLS, 0, estimate=estimate), Note("careful"))
    tell(path, Vitals(1, 2, 3, 4, 5.0, 6), Slept(12.0), Died(["x"], "killed"))
    tell(path, RunFinished(2, 0, 3.5, "SIGTERM"))
    tell(path, RunStarted("t", str(path), CELLS, 2))
    doc = details(state_of(path))
    assert doc["cells"] == {"done": 3, "failed": 0, "total": 4}
    assert doc["total_from"] == "history"
    first, second = doc["sessions"]
    assert (first["ended"], first["seconds"], first["slept"]) == ("SIGTERM", 3.5, 12.0)
    assert first["deaths"] == ["killed"]
    assert (second["ended"], second["done_before"]) == (None, 2)
    assert doc["notes"] == ["careful"]
    assert doc["time"]["estimate"] == estimate
    assert doc["time"]["actual"] >= 3.5


def test_what_is_left_of_a_running_run_follows_from_its_pace(results):
    with opened(results) as folder:
        for cell in CELLS[:2]:
            folder.record(cell, {"log_odds": 0.0})
        tell(folder.path, RunStarted("t", "", CELLS * 5, 0), ago=10.0)
        state = state_of(folder.path)
        assert state.state == "running"
        assert state.eta == pytest.approx(90.0, rel=0.2)
        tell(folder.path, RunStarted("t", "", CELLS * 5, 2, estimate={"likely": 60.0}), ago=10.0)
        assert state_of(folder.path).eta == pytest.approx(50.0, rel=0.2)
    assert state_of(folder.path).eta is None


def test_a_history_that_is_damaged_or_gone_is_no_error(results):
    path = made(results)
    (path / "events.jsonl").write_bytes(b'{"t":1}\nnull\n\xff\n{"event":"started"')
    assert state_of(path).sessions == []


PATCH = {"kind": "patch", "site": "resid_post", "positions": "all", "heads": None, "seed": 0}


@pytest.mark.parametrize(
    ("identity", "rest", "told"),
    [
        (PATCH | {"prompts": [["notepad", "x"]]}, {}, ["notepad"]),
        (
            PATCH | {"prompts": [["a", "x"], ["b", "y"]], "site": "z", "heads": "each", "seed": 3},
            {},
            ["a+b", "z", "each head", "seed 3"],
        ),
        (
            PATCH | {"prompts": [["p000", "x"]], "layers": [2, 3], "positions": "each"},
            {"argv": ["patch", "--prompt", "Once upon"], "about": {"view": {"n_layers": 6}}},
            ["Once upon", "each position", "layers 2-3"],
        ),
        (PATCH | {"prompts": [[f"p{n}", "x"] for n in range(9)]}, {}, ["9 prompts"]),
        ({"kind": "capture", "prompts": [["\x1b[2J"]], "keep": ["z"]}, {}, ["\\x1b[2J", "z"]),
        (3, {}, []),
        ({"kind": [], "prompts": 3, "layers": "x", "seed": "y"}, {"about": 1}, ["seed y"]),
    ],
)
def test_what_a_run_is_about_in_a_few_words(identity, rest, told):
    assert subject({"identity": identity} | rest) == told


# --- rows -----------------------------------------------------------------------------------------


def test_nested_values_come_out_flat_with_their_places():
    values = {
        "p": 0.5,
        "flag": True,
        "none": None,
        "strings": {"<a>": {"p_first": 1e-3, "p_chain": None}},
        "top5": [{"id": 3, "token": "x", "prob": 0.9}],
        "rows": [{"site": "z", "layer": 2, "head": 1, "kind": "largest", "exact": 2.0}],
        "ends": [[0, "z", 1]],
    }
    found = [(n.measure, dict(n.at), n.value) for n in cells.numbers(values)]
    assert found == [
        ("p", {}, 0.5),
        ("flag", {}, 1),
        ("p_first", {"string": "<a>"}, 1e-3),
        ("top5.id", {"top": 0}, 3),
        ("top5.token", {"top": 0}, "x"),
        ("top5.prob", {"top": 0}, 0.9),
        ("kind", {"site": "z", "layer": 2, "head": 1}, "largest"),
        ("exact", {"site": "z", "layer": 2, "head": 1}, 2.0),
        ("ends", {"item": 0}, "0 z 1"),
    ]


def test_rows_name_their_prompts(results):
    source = cells.source(made(results, failing=(1,)))
    rows = list(source.rows())
    assert [row.coords["prompt"] for row in rows] == ["one", "one", "two"]
    assert [row.id for row in rows] == [CELLS[i].id for i in (0, 2, 3)]


# --- differences ----------------------------------------------------------------------------------


def compared(one, other):
    return differ.differ(cells.source(one), cells.source(other))


def test_every_number_is_compared_and_the_largest_named(results):
    first = made(results)
    second = made(results, shift=0.5, seed=1)
    found = compared(first, second)
    assert found.spec == [{"field": "seed", "first": 0, "second": 1}]
    measure = found.measures["log_odds"]
    assert (measure.numbers, measure.differing, measure.beyond) == (4, 4, 4)
    assert measure.largest == 0.5
    assert measure.where == CELLS[0].id
    assert found.measures["rank"].differing == 0


def test_nan_equals_nan_and_differs_from_a_number():
    measure = differ.Measure("x")
    measure.add(math.nan, math.nan, "a")
    assert measure.differing == 0
    measure.add(math.nan, 1.0, "b")
    measure.add(1.0, 1.0 + 1e-9, "c")
    measure.add("x", "y", "d")
    assert (measure.differing, measure.beyond) == (3, 2)
    measure.add(1.0, 3.0, "e")
    assert measure.largest == 2.0


def test_arrays_are_compared_where_their_labels_agree():
    def array(layers, data):
        return cells.Array("z", ("layer", "position"), (layers, range(2)), np.array(data))

    measure = differ.Measure("z")
    here, there = array([1, 2], [[1.0, 2.0], [3.0, math.nan]]), array([2, 3], [[3.5, math.nan]] * 2)
    measure.add_array(here, there, "cell")
    assert (measure.numbers, measure.differing, measure.one_side) == (2, 1, 4)
    assert measure.largest == 0.5
    assert measure.where == "cell: layer 2, position 0"
    assert measure.values == (3.0, 3.5)


def test_arrays_of_runs_on_disk(results):
    first = made(results, arrays={"x": np.arange(6.0).reshape(2, 3)})
    second = made(
        results, arrays={"x": np.arange(6.0).reshape(2, 3) + np.array([0, 0, 1e-3])}, seed=1
    )
    measure = compared(first, second).measures["x [array]"]
    assert (measure.numbers, measure.differing) == (24, 8)
    assert measure.largest == pytest.approx(1e-3)
    assert json.dumps(compared(first, second).document())


def test_cells_of_one_run_alone_are_counted(results):
    first, second = made(results, 2), made(results, 4, seed=1)
    found = compared(first, second)
    assert (found.shared, len(found.only_first), len(found.only_second)) == (2, 0, 2)
    assert found.coordinates == {"model": ([], ["instruct"])}


def test_tokens_have_no_size_of_a_difference():
    measure = differ.Measure("top5.id")
    measure.add(3, 948, "a")
    assert (measure.differing, measure.largest, measure.values) == (1, None, (3, 948))


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@a", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_run_is_guarded(text):
    assert long.guarded(text) == f"'{text}"


def test_numbers_of_a_table_are_not_guarded_and_nan_is_empty(results):
    with opened(results) as folder:
        folder.record(CELLS[0], {"a": -1.5, "b": math.nan, "c": math.inf, "d": "-x"})
    file = io.BytesIO()
    counts = long.write_csv(cells.source(folder.path), file, "")
    lines = file.getvalue().decode().splitlines()
    assert counts["rows"] == 4
    assert [line.split(",", 5)[-1] for line in lines] == [
        "measure,value,text",
        "a,-1.5,",
        "b,,",
        "c,inf,",
        "d,,'-x",
    ]
    text = io.BytesIO()
    long.write_json(cells.source(folder.path), text, "mlxroles/export/1 x")
    rows = json.loads(text.getvalue())["rows"]
    assert [row["value"] for row in rows] == [-1.5, None, None, "-x"]


def test_a_float32_is_written_with_its_own_digits(results):
    with opened(results) as folder:
        folder.record(CELLS[0], {}, {"x": np.array([0.1], dtype="f4")})
    [line] = long.lines(cells.source(folder.path))
    assert line[3] == 0.1
    assert np.float32(line[3]) == np.float32(0.1)
