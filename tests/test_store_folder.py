"""The run folder: identity, resume, records and arrays, reading beside a writer."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlxroles import plan
from mlxroles.errors import IntegrityError, LockedError, StoreError
from mlxroles.events import Cell
from mlxroles.store import RunFolder
from mlxroles.store.journal import encode_line

IDENTITY = {"models": {"base": "a", "instruct": "b"}, "grid": {"layers": (2, 3)}, "seed": 0}
CELL = Cell("base_to_instruct/resid_post/L07/all", {"layer": 7, "position": "all"})


def start(root, identity=IDENTITY, **options):
    options = {"experiment": "patch", "manifest": {"versions": {"mlx": "0.32"}}, **options}
    return RunFolder.open(root, identity=identity, **options)


def test_the_store_is_light():
    script = (
        "import sys, mlxroles.store, mlxroles.plan;"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'h5py', 'safetensors', 'mlx')))"
    )
    root = Path(plan.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0


def test_a_new_run(tmp_path):
    with start(tmp_path / "results with space", experiment="Patch/8B") as folder:
        assert folder.path.parent.name.startswith("patch-8b-")
        assert folder.path.name == plan.run_id(IDENTITY) == folder.run_id
        doc = json.loads((folder.path / "manifest.json").read_text())
        assert doc == folder.manifest
        assert doc["schema"] == "mlxroles/run/1"
        assert doc["experiment"] == "Patch/8B"
        assert doc["identity"]["grid"] == {"layers": [2, 3]}
        assert doc["versions"] == {"mlx": "0.32"}
        assert (folder.done(), folder.records(), folder.torn_lines, folder.notes) == (
            set(),
            {},
            0,
            [],
        )


def test_what_is_stored_is_done_and_read_back(tmp_path):
    arrays = {
        "pattern": np.arange(6, dtype="f4").reshape(2, 3).T,
        "none": np.full((2, 0), np.nan, dtype="f2"),
        "scalar": np.array(np.inf),
    }
    values = {"effect": np.float32(0.5), "nan": float("nan"), "text": "\0\ud800é", "list": (1, 2)}
    with start(tmp_path) as folder:
        folder.record(CELL, values, arrays, seconds=1.5)
        folder.record(Cell("plain"), {"a": 1})
        folder.fail(Cell("bad"), "out of memory\n\ud800", attempt=2)
        fresh = folder.records()
        assert folder.done() == {CELL.id, "plain"}
    with start(tmp_path) as folder:
        assert folder.done() == {CELL.id, "plain"}
        assert repr(folder.records()) == repr(fresh)
        record = folder.records()[CELL.id]
        assert (record.coords, record.seconds) == (CELL.coords, 1.5)
        assert np.isnan(record.values["nan"])
        assert record.values["text"] == values["text"]
        bad = folder.records()["bad"]
        assert (bad.status, bad.error, bad.attempt) == ("failed", "out of memory\n\ud800", 2)
        back = folder.arrays(CELL.id)
        assert back.keys() == arrays.keys()
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype
            np.testing.assert_array_equal(back[name], array)
        assert folder.arrays("plain") == {}
        with pytest.raises(StoreError, match="holds no cell 'other'"):
            folder.arrays("other")


def test_the_last_line_of_a_cell_counts(tmp_path):
    with start(tmp_path) as folder:
        folder.fail(CELL, "boom")
        folder.record(CELL, {"a": float("nan")}, attempt=2)
        folder.record(CELL, {"a": float("nan")})
        folder.record(Cell("other"), {"a": 1})
        folder.record(Cell("other"), {"a": 2})
    with start(tmp_path) as folder:
        assert folder.done() == {CELL.id, "other"}
        assert folder.records()["other"].values == {"a": 2}
        assert folder.notes == ["1 cells were stored twice with different values"]
        folder.fail(CELL, "boom again")
        assert folder.done() == {"other"}


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "link", "folder"])
def test_a_cell_whose_arrays_are_not_what_was_written_is_not_done(tmp_path, damage):
    with start(tmp_path) as folder:
        folder.record(CELL, {}, {"a": np.zeros(4, "f4")})
        folder.record(Cell("other"), {}, {"a": np.ones(4, "f4")})
        stored = folder.records()[CELL.id].arrays
        path = folder.path / "arrays" / stored.file
    data = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        path.write_bytes(data[:-1] + b"\x01")
    elif damage == "link":
        (tmp_path / "copy").write_bytes(data)
        path.symlink_to(tmp_path / "copy")
    elif damage == "folder":
        path.mkdir()
    with start(tmp_path) as folder:
        assert folder.done() == {"other"}
        assert folder.done() == {"other"}
        with pytest.raises(IntegrityError, match=r"L07/all must be run again|L07/all must"):
            folder.arrays(CELL.id)
        if damage != "folder":
            folder.record(CELL, {}, {"a": np.zeros(4, "f4")})
            assert folder.done() == {CELL.id, "other"}


def test_a_journal_cannot_name_a_file_outside_the_folder(tmp_path):
    with start(tmp_path) as folder:
        path = folder.path
    (path / "secret").write_bytes(b"x")
    entry = {
        "id": "a",
        "status": "ok",
        "coords": {},
        "seconds": 0,
        "attempt": 1,
        "arrays": {"file": "../secret", "sha256": "", "bytes": 1},
    }
    (path / "cells.jsonl").write_bytes(encode_line(entry))
    folder = RunFolder.read(path)
    assert folder.done() == set()
    with pytest.raises(IntegrityError, match="missing"):
        folder.arrays("a")


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3},
        {"status": "perhaps"},
        {"coords": None},
        {"arrays": {"file": "x"}},
        {"arrays": {"file": "x", "sha256": "", "bytes": "y"}},
        {"seconds": "x"},
    ],
)
def test_a_line_that_describes_no_cell_counts_as_torn(tmp_path, change):
    with start(tmp_path) as folder:
        folder.record(CELL, {"a": 1})
        path = folder.path
    entry = {"id": "a", "status": "ok", "coords": {}, "seconds": 0, "attempt": 1, **change}
    with (path / "cells.jsonl").open("ab") as file:
        file.write(encode_line(entry))
    folder = RunFolder.read(path)
    assert folder.done() == {CELL.id}
    assert folder.torn_lines == 1


def test_a_torn_tail_is_counted_and_its_cell_runs_again(tmp_path):
    with start(tmp_path) as folder:
        folder.record(Cell("a"), {"x": 1})
        folder.record(Cell("b"), {"x": 2})
        path = folder.path / "cells.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with start(tmp_path) as folder:
        assert (folder.torn_lines, folder.done()) == (1, {"a"})
        folder.record(Cell("b"), {"x": 2})
    with start(tmp_path) as folder:
        assert (folder.torn_lines, folder.done()) == (1, {"a", "b"})


def test_another_identity_in_the_same_folder_is_refused_by_field(tmp_path):
    place = tmp_path / "run"
    start(tmp_path, folder=place).close()
    other = {"models": {"base": "a\x1b[2J", "instruct": "b"}, "grid": {"layers": [2]}, "extra": 1}
    with pytest.raises(StoreError) as caught:
        start(tmp_path, other, folder=place)
    message = str(caught.value)
    assert r'models.base is "a" there and "a\u001b[2J" here' in message
    assert "grid.layers is [2, 3] there and [2] here" in message
    assert "seed is 0 there and null here; and 1 more" in message
    for option in ("--out", "--fresh", "--allow-drift"):
        assert option in message
    assert not list(tmp_path.glob("run.old*"))


def test_the_same_identity_in_another_spelling_is_the_same(tmp_path):
    place = tmp_path / "run"
    start(tmp_path, folder=place).close()
    same = json.loads(json.dumps(IDENTITY, sort_keys=True))
    start(tmp_path, same, folder=place).close()


def test_drift_is_allowed_by_name_and_noted(tmp_path):
    place = tmp_path / "run"
    start(tmp_path, folder=place).close()
    other = {"models": {"base": "A", "instruct": "b"}, "grid": {"layers": [2, 3]}, "seed": 1}
    with pytest.raises(StoreError, match="seed is 0 there"):
        start(tmp_path, other, folder=place, allow_drift=["models", "see"])
    start(tmp_path, other, folder=place, allow_drift=["models", "seed"]).close()
    with start(tmp_path, other, folder=place, allow_drift=["models.base", "seed"]) as folder:
        drift = json.loads((folder.path / "manifest.json").read_text())["drift"]
        assert [(one["field"], one["was"], one["now"]) for one in drift] == [
            ("models.base", "a", "A"),
            ("seed", 0, 1),
        ]
        assert folder.manifest["identity"]["seed"] == 0


def test_another_plan_version_is_another_run(tmp_path, monkeypatch):
    place = tmp_path / "run"
    start(tmp_path, folder=place).close()
    monkeypatch.setattr("mlxroles.store.manifest.PLAN_VERSION", 2)
    with pytest.raises(StoreError, match="plan_version is 1 there and 2 here"):
        start(tmp_path, folder=place)


def test_fresh_keeps_the_old_run_beside_the_new(tmp_path):
    place = tmp_path / "run"
    for number in range(3):
        with start(tmp_path, folder=place, fresh=True) as folder:
            assert folder.done() == set()
            folder.record(Cell(f"c{number}"), {})
    olds = [RunFolder.read(tmp_path / f"run.old-{number}").done() for number in (1, 2)]
    assert olds == [{"c0"}, {"c1"}]
    assert RunFolder.read(place).done() == {"c2"}


def test_fresh_does_not_take_a_run_away_from_its_writer(tmp_path):
    with start(tmp_path) as folder:
        with pytest.raises(LockedError):
            start(tmp_path, fresh=True)
        folder.record(CELL, {})
    assert [path.name for path in folder.path.parent.iterdir()] == [folder.path.name]


def test_fresh_that_cannot_rename_gives_the_lock_back(tmp_path, monkeypatch):
    start(tmp_path).close()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fake_error(errno.EACCES))
        with pytest.raises(StoreError, match="no permission"):
            start(tmp_path, fresh=True)
    start(tmp_path).close()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("keep")
    for fresh in (False, True):
        with pytest.raises(StoreError, match=r"not empty and not a run folder \(it holds thesis"):
            start(tmp_path, folder=tmp_path, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="a part of this path is a file"):
        start(tmp_path, folder=tmp_path / "thesis.tex" / "run")
    with pytest.raises(StoreError, match="cannot be used"):
        start(tmp_path, folder=tmp_path / "thesis.tex")


def test_what_a_killed_start_leaves_is_taken_over(tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    for name in ("run.lock", "mlxroles-0.tmp", ".DS_Store"):
        (place / name).write_text("")
    with start(tmp_path, folder=place) as folder:
        assert folder.done() == set()
    assert not list(place.glob("*.tmp"))


def test_stale_temporary_files_are_swept(tmp_path):
    with start(tmp_path) as folder:
        folder.record(CELL, {}, {"a": np.zeros(1)})
        path = folder.path
    for place in (path, path / "arrays"):
        (place / "mlxroles-1.tmp").write_bytes(b"half")
        (place / "dead.tmp").symlink_to("nowhere")
        (place / "folder.tmp").mkdir()
    start(tmp_path).close()
    left = sorted(found.name for found in path.rglob("*.tmp"))
    assert left == ["folder.tmp", "folder.tmp"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', "\ud800"])
def test_a_damaged_manifest_is_an_integrity_error(tmp_path, text):
    with start(tmp_path) as folder:
        path = folder.path / "manifest.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(IntegrityError, match="damaged"):
        start(tmp_path)
    with pytest.raises(IntegrityError, match="damaged"):
        RunFolder.read(path.parent)
    start(tmp_path, fresh=True).close()


def test_a_future_schema_is_refused_and_nothing_written(tmp_path):
    with start(tmp_path) as folder:
        path = folder.path / "manifest.json"
    path.write_text('{"schema": "mlxroles/run/9"}')
    with pytest.raises(StoreError, match="has schema mlxroles/run/9, this mlxroles reads"):
        start(tmp_path)
    assert path.read_text() == '{"schema": "mlxroles/run/9"}'


def test_a_manifest_keeps_its_own_fields(tmp_path):
    with pytest.raises(ValueError, match="'identity'"):
        start(tmp_path, manifest={"identity": 1})


def test_reading_works_beside_a_writer_and_writes_nothing(tmp_path):
    with start(tmp_path) as folder:
        folder.record(CELL, {"a": 1}, {"x": np.ones(2)})
        before = sorted(path.name for path in folder.path.rglob("*"))
        with RunFolder.read(folder.path) as reader:
            assert reader.done() == {CELL.id}
            assert reader.arrays(CELL.id)["x"].tolist() == [1, 1]
            with pytest.raises(ValueError, match="not open for writing"):
                reader.record(CELL, {})
            with pytest.raises(ValueError, match="not open for writing"):
                reader.record(CELL, {}, {"x": np.ones(2)})
            with pytest.raises(ValueError, match="not open for writing"):
                reader.fail(CELL, "x")
        assert sorted(path.name for path in folder.path.rglob("*")) == before
        folder.record(Cell("b"), {})
        assert reader.done() == {CELL.id}
        assert RunFolder.read(folder.path).done() == {CELL.id, "b"}


def test_reading_what_is_no_run_folder(tmp_path):
    with pytest.raises(StoreError, match="is not a run folder"):
        RunFolder.read(tmp_path)
    with pytest.raises(StoreError, match="is not a run folder"):
        RunFolder.read(tmp_path / "nowhere")


def fake_error(number):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "read-only"), (errno.EACCES, "no pe")])
def test_a_read_only_folder_says_so_and_can_be_read(tmp_path, monkeypatch, number, words):
    with start(tmp_path) as folder:
        folder.record(CELL, {"a": 1})
    real = os.open

    def read_only(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(Path, "mkdir", fake_error(number))
    with pytest.raises(StoreError, match=words):
        start(tmp_path)
    with pytest.raises(StoreError, match=words):
        start(tmp_path / "new")
    assert RunFolder.read(folder.path).done() == {CELL.id}


def test_an_unreadable_arrays_file_is_not_done_and_says_why(tmp_path, monkeypatch):
    with start(tmp_path) as folder:
        folder.record(CELL, {}, {"x": np.ones(2)})
    folder = RunFolder.read(folder.path)
    monkeypatch.setattr(Path, "read_bytes", fake_error(errno.EIO))
    assert folder.done() == set()
    with pytest.raises(StoreError, match="cannot be read: Input/output error"):
        folder.arrays(CELL.id)


def test_a_folder_deleted_while_running_is_noticed(tmp_path):
    with start(tmp_path) as folder:
        folder.record(Cell("a"), {})
        shutil.rmtree(folder.path)
        with pytest.raises(StoreError, match="deleted or moved"):
            folder.record(CELL, {})
        with pytest.raises(StoreError, match="deleted or moved"):
            folder.record(CELL, {}, {"x": np.ones(2)})
        with pytest.raises(StoreError, match="deleted or moved"):
            folder.write_json("summary.json", {})
    assert not folder.path.exists()


def test_a_run_folder_below_results_may_not_be_a_link(tmp_path):
    with start(tmp_path / "other") as folder:
        pass
    link = tmp_path / "results" / "patch" / folder.run_id
    link.parent.mkdir(parents=True)
    link.symlink_to(folder.path)
    with pytest.raises(StoreError, match="symbolic link that leads to") as caught:
        start(tmp_path / "results")
    assert str(folder.path) in str(caught.value)
    # As the user's own choice it is fine, and so is a link above.
    with start(tmp_path, folder=link) as linked:
        assert linked.path == folder.path
    (tmp_path / "big disk").symlink_to(tmp_path / "other")
    with start(tmp_path / "big disk") as linked:
        assert linked.path == folder.path


def test_a_link_that_leads_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreError, match="loop cannot be"):
        start(tmp_path, folder=tmp_path / "loop")


def test_arrays_do_not_leave_the_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with start(tmp_path) as folder:
        (folder.path / "arrays").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="symbolic link"):
            folder.record(CELL, {}, {"x": np.ones(2)})
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "", "a\0b", "\ud800", "x" * 300])
def test_names_cannot_leave_the_root(tmp_path, name):
    with start(tmp_path, experiment=name, run_id=name) as folder:
        assert folder.path.is_relative_to(tmp_path)
        assert len(folder.path.relative_to(tmp_path).parts) == 2
        cells = [Cell(name), Cell(name + "/"), Cell(name.upper() + "=")]
        for cell in cells:
            folder.record(cell, {}, {"x": np.ones(1)})
        assert len(list((folder.path / "arrays").iterdir())) == 3
    assert start(tmp_path, experiment=name, run_id=name).done() == {cell.id for cell in cells}


def test_derived_documents(tmp_path):
    with start(tmp_path) as folder:
        path = folder.write_json("summary.json", {"x": float("nan")})
        assert json.loads(path.read_text()) == {"x": None}
        for name in ("manifest.json", "cells.jsonl", "../x.json", "", "arrays"):
            with pytest.raises(ValueError, match="derived document"):
                folder.write_json(name, {})


def test_closing_twice_is_harmless_and_frees_the_lock(tmp_path):
    folder = start(tmp_path)
    folder.record(CELL, {})
    folder.close()
    folder.close()
    with pytest.raises(ValueError, match="not open for writing"):
        folder.record(CELL, {})
    start(tmp_path).close()
