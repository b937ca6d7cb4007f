"""Files of a run that are damaged, missing, too many or from the future: only that is run again."""

import json
import shutil

import h5py
import numpy as np
import pytest
from run_contents import assert_same, assert_sound, cells
from safetensors.numpy import load_file, save_file
from toy_study import Toy, run
from zygote import NO_FIGURES, PATCH

from mlxroles import plan
from mlxroles.errors import IntegrityError, StoreError
from mlxroles.events import Note
from mlxroles.store import RunFolder, manifest
from mlxroles.store.journal import encode_line
from mlxroles.store.summary import read_summary

COUNT = 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, never changed."""
    path = tmp_path_factory.mktemp("toy") / "whole"
    run(path, COUNT)
    return path


@pytest.fixture
def path(whole, tmp_path):
    """A finished run to damage."""
    return shutil.copytree(whole, tmp_path / "run")


def again(path, **how):
    """The numbers of the cells that are computed when the run goes on, and what it has to say."""
    study, told = Toy(), []
    assert run(path, COUNT, study, told.append, **how).done == COUNT
    return sorted(study.computed), [event.text for event in told if isinstance(event, Note)]


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


# --- the journal ----------------------------------------------------------------------------------


def cut_line(lines):
    return [*lines[:2], lines[2][: len(lines[2]) // 2], *lines[3:]]


LINES = {
    "a bit in the middle": (lambda x: [*x[:2], flipped(x[2], 40), *x[3:]], [2]),
    "a bit of the last": (lambda x: [*x[:5], flipped(x[5], 40)], [5]),
    "a bit of a checksum": (lambda x: [flipped(x[0], 3), *x[1:]], [0]),
    "a line without its end": (cut_line, [2]),
    "the tail cut off": (lambda x: [*x[:5], x[5][:30]], [5]),
    "a line of zeros": (lambda x: [*x[:3], bytes(len(x[3])), *x[4:]], [3]),
    "a tail of zeros": (lambda x: [*x[:4], bytes(5000)], [4, 5]),
    "lines joined": (lambda x: [*x[:1], x[1] + x[2], *x[3:]], [1, 2]),
    "a line of text": (lambda x: [b"not a line", *x], []),
    "no text at all": (lambda x: [*x, b"\xff\xfe\x00\x80"], []),
    "a line twice": (lambda x: [*x, x[0]], []),
    "lines in another order": (lambda x: x[::-1], []),
    "empty lines": (lambda x: [b"", *x[:2], b"", b"", *x[2:]], []),
    "windows line ends": (lambda x: [line + b"\r" for line in x], list(range(COUNT))),
    "nothing": (lambda x: [], list(range(COUNT))),
}
SILENT = ("a line twice", "lines in another order", "empty lines", "nothing")


@pytest.mark.parametrize("damage", LINES)
def test_a_damaged_line_costs_its_own_cell_and_is_counted(path, whole, damage):
    change, lost = LINES[damage]
    journal = path / "cells.jsonl"
    changed = change(journal.read_bytes().splitlines())
    journal.write_bytes(b"\n".join(changed) + (b"\n" if "cut off" not in damage else b""))
    reader = RunFolder.read(path)
    assert reader.done() == {f"c{n:05d}" for n in range(COUNT) if n not in lost}
    assert (reader.torn_lines > 0) == (damage not in SILENT)
    computed, notes = again(path)
    assert computed == lost
    told = [text for text in notes if "damaged journal lines are passed over" in text]
    assert bool(told) == (damage not in SILENT)
    assert_same(path, whole)
    assert again(path)[0] == []


def test_a_journal_that_is_gone_is_a_run_without_cells(path, whole):
    (path / "cells.jsonl").unlink()
    assert again(path)[0] == list(range(COUNT))
    assert_same(path, whole)


def test_every_bit_of_a_journal_matters(path):
    """A flipped bit anywhere costs the line it is in, at most the one after, and no other."""
    journal = path / "cells.jsonl"
    data = journal.read_bytes()
    expected = cells(path)
    for at in range(0, len(data), 7):
        journal.write_bytes(flipped(data, at))
        reader = RunFolder.read(path)
        assert len(reader.done()) >= COUNT - 2
        assert reader.torn_lines >= 1
        assert all(expected[cell] == line for cell, line in cells(path).items())


def test_lines_of_a_later_version_are_refused_and_nothing_is_written(path):
    journal = path / "cells.jsonl"
    with journal.open("ab") as file:
        file.write(encode_line({"v": 2, "id": "c00000", "status": "perhaps"}))
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "run.lock"}
    for use in (lambda: RunFolder.read(path), lambda: run(path, COUNT)):
        with pytest.raises(StoreError, match="schema 2, this mlxroles reads schema 1: use the"):
            use()
    assert {p: p.read_bytes() for p in before} == before


def test_a_line_of_a_stranger_cell_is_kept_and_ignored(path, whole):
    entry = {"id": "c99999", "status": "ok", "coords": {"n": 3}, "seconds": 1, "attempt": 1}
    with (path / "cells.jsonl").open("ab") as file:
        file.write(encode_line(entry | {"values": {"x": 5.0}}))
    assert "c99999" in RunFolder.read(path).records()
    study = Toy()
    with RunFolder.open(
        path.parent, folder=path, experiment="toy", identity={"kind": "toy"}, manifest={}
    ) as folder:
        assert folder.done() == cells(whole).keys() | {"c99999"}
    assert study.computed == []


def test_a_damaged_journal_of_a_sweep_is_told_and_mended(zygote, tiny_run, tmp_path):
    path = shutil.copytree(tiny_run, tmp_path / "run")
    journal = path / "cells.jsonl"
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(
        b"\n".join([*lines[:9], flipped(lines[9], 99), *lines[10:37], lines[37][:50]])
    )
    status, _, err = zygote.run("verify", path, cwd=tmp_path)
    assert status == 5, err
    status, _, err = zygote.run(*PATCH, "--out", path, cwd=tmp_path, code=NO_FIGURES)
    assert status == 0, err
    assert "2 damaged journal lines are passed over and run again" in err
    assert "36 stored earlier" in err
    assert_same(path, tiny_run)


# --- arrays ---------------------------------------------------------------------------------------


def arrays_of(path, n):
    return path / "arrays" / RunFolder.read(path).records()[f"c{n:05d}"].arrays.file


def whole_but_other(file):
    save_file({name: array + 1 for name, array in load_file(file).items()}, file)


ARRAYS = {
    "gone": lambda f: f.unlink(),
    "empty": lambda f: f.write_bytes(b""),
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "longer": lambda f: f.write_bytes(f.read_bytes() + b"\0"),
    "zeros": lambda f: f.write_bytes(bytes(len(f.read_bytes()))),
    "a bit of a number": lambda f: f.write_bytes(flipped(f.read_bytes(), -3)),
    "a bit of the header": lambda f: f.write_bytes(flipped(f.read_bytes(), 9)),
    "whole but other numbers": whole_but_other,
    "a folder": lambda f: (f.unlink(), f.mkdir()),
    "a link": lambda f: (f.rename(f.with_name("aside")), f.symlink_to("aside")),
}


@pytest.mark.parametrize("damage", ARRAYS)
def test_damaged_arrays_cost_their_own_cell(path, whole, damage):
    file = arrays_of(path, 3)
    ARRAYS[damage](file)
    reader = RunFolder.read(path)
    assert reader.done() == {f"c{n:05d}" for n in range(COUNT) if n != 3}
    with pytest.raises(IntegrityError, match="c00003 must be run again") as found:
        reader.arrays("c00003")
    assert str(file) in str(found.value)
    if damage == "a folder":
        with pytest.raises(StoreError, match="cannot be written"):
            again(path)
        file.rmdir()
    assert again(path)[0] == [3]
    (path / "arrays" / "aside").unlink(missing_ok=True)
    assert_same(path, whole)


def test_arrays_of_two_cells_that_were_exchanged_are_noticed(path, whole):
    one, two = arrays_of(path, 1), arrays_of(path, 4)
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    assert again(path)[0] == [1, 4]
    assert_same(path, whole)


def test_files_that_belong_to_no_cell_are_left_alone(path, whole):
    (path / "arrays" / "mine.safetensors").write_bytes(b"x")
    (path / "arrays" / "mlxroles-123.tmp").write_bytes(b"half")
    (path / "notes.txt").write_text("mine")
    assert again(path)[0] == []
    assert (path / "arrays" / "mine.safetensors").read_bytes() == b"x"
    assert (path / "notes.txt").read_text() == "mine"
    assert_same(path, whole)


def test_the_folder_of_arrays_may_be_gone(path, whole):
    shutil.rmtree(path / "arrays")
    assert RunFolder.read(path).done() == set()
    assert again(path)[0] == list(range(COUNT))
    assert_same(path, whole)


# --- what is derived ------------------------------------------------------------------------------

DERIVED = {
    "gone": lambda f: f.unlink(),
    "empty": lambda f: f.write_bytes(b""),
    "cut": lambda f: f.write_bytes(f.read_bytes()[: len(f.read_bytes()) // 2]),
    "zeros": lambda f: f.write_bytes(bytes(len(f.read_bytes()))),
    "a bit": lambda f: f.write_bytes(flipped(f.read_bytes(), 1)),
    "another file": lambda f: f.write_bytes(b"[" * 200_000),
}


@pytest.mark.parametrize("name", ["run.h5", "summary.json", "events.jsonl"])
@pytest.mark.parametrize("damage", DERIVED)
def test_derived_files_are_made_again_from_the_cells(path, whole, name, damage):
    (path / name).touch()
    DERIVED[damage](path / name)
    assert read_summary(path) == {} or name != "summary.json" or damage == "a bit"
    assert RunFolder.read(path).done() == cells(whole).keys()
    assert again(path)[0] == []
    assert_same(path, whole)


def test_everything_derived_may_be_deleted_at_once(path, whole):
    for file in list(path.iterdir()):
        if file.name not in ("manifest.json", "cells.jsonl", "arrays"):
            file.unlink()
    assert again(path)[0] == []
    assert_same(path, whole)


# --- the manifest ---------------------------------------------------------------------------------

MANIFESTS = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-20],
    "zeros": lambda data: bytes(len(data)),
    "a bit of the schema's name": lambda data: flipped(data, data.index(b'"schema"') + 2),
    "a list": lambda data: b"[]",
    "nested": lambda data: b"[" * 200_000,
    "no text": lambda data: b"\xff\xfe{}",
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_damaged_manifest_is_an_integrity_error_and_fresh_keeps_the_cells_aside(path, damage):
    expected = cells(path)
    file = path / "manifest.json"
    good = file.read_bytes()
    file.write_bytes(MANIFESTS[damage](good))
    for use in (lambda: RunFolder.read(path), lambda: run(path, COUNT)):
        with pytest.raises(IntegrityError, match="damaged: put it back from a copy") as found:
            use()
        assert found.value.exit_code == 5
    assert run(path, COUNT, fresh=True).done == COUNT
    aside = path.with_name("run.old-1")
    (aside / "manifest.json").write_bytes(good)
    assert cells(aside) == expected


@pytest.mark.parametrize("schema", ["mlxroles/run/2", "mlxroles/run/9.1", "other/run/1", "\u202e"])
def test_a_manifest_of_a_later_version_is_refused_and_nothing_is_written(path, schema):
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": schema}))
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "run.lock"}
    for use in (lambda: RunFolder.read(path), lambda: run(path, COUNT)):
        with pytest.raises(StoreError, match="this mlxroles reads mlxroles/run/1: use the") as e:
            use()
        assert "\u202e" not in str(e.value)
    assert {p: p.read_bytes() for p in before} == before


def test_a_manifest_that_is_gone_leaves_the_cells_alone(path, tmp_path):
    (path / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"not empty and not a run folder .* no manifest.json"):
        run(path, COUNT)
    assert (path / "cells.jsonl").exists()


# --- upgrades -------------------------------------------------------------------------------------


def identity(**by):
    computed_by = {"mlx": "0.32.4", "mlx-lm": "0.32.2", "device": "cpu"} | by
    models = {"base": {"sha256": "a"}, "instruct": {"sha256": "b"}}
    return {"kind": "toy", "models": models, "computed_by": computed_by}


def test_another_version_of_mlx_goes_on_in_the_same_folder_and_says_so(tmp_path):
    path = tmp_path / "run"
    run(path, 3, identity=identity())
    computed, notes = again(path, identity=identity(mlx="0.33.0"))
    assert computed == [3, 4, 5]
    (note,) = [text for text in notes if "0.33.0" in text]
    assert 'begun with mlx "0.32.4"' in note
    for _ in range(2):
        assert again(path, identity=identity(**{"mlx": "0.33.0", "mlx-lm": "0.40"}))[0] == []
    drift = json.loads((path / "manifest.json").read_text())["drift"]
    assert [(one["field"], one["was"], one["now"]) for one in drift] == [
        ("computed_by.mlx", "0.32.4", "0.33.0"),
        ("computed_by.mlx-lm", "0.32.2", "0.40"),
    ]
    assert plan.run_id(identity()) == plan.run_id(identity(mlx="0.33.0"))
    # without --out too: the run id is the same
    assert len({plan.run_id(identity(**{"mlx-lm": version})) for version in "123"}) == 1


def test_another_device_or_model_is_another_run(tmp_path):
    path = tmp_path / "run"
    run(path, 3, identity=identity())
    other = identity() | {"models": {"base": {"sha256": "a"}, "instruct": {"sha256": "c"}}}
    for wanted, field in (
        (identity(device="gpu"), 'computed_by.device is "cpu" there and "gpu" here'),
        (other, 'models.instruct.sha256 is "b" there and "c" here'),
    ):
        before = (path / "cells.jsonl").read_bytes()
        with pytest.raises(StoreError, match=field):
            run(path, COUNT, identity=wanted)
        assert (path / "cells.jsonl").read_bytes() == before
        assert plan.run_id(wanted) != plan.run_id(identity())
    run(path, COUNT, identity=other, allow_drift=["models.instruct"])
    (drift,) = json.loads((path / "manifest.json").read_text())["drift"]
    assert (drift["field"], drift["was"], drift["now"]) == ("models.instruct.sha256", "b", "c")


def test_another_plan_version_is_another_run(tmp_path, monkeypatch):
    path = tmp_path / "run"
    run(path, 3)
    monkeypatch.setattr(manifest, "PLAN_VERSION", 9)
    with pytest.raises(StoreError, match="plan_version is 1 there and 9 here"):
        run(path, 3)


# --- numbers --------------------------------------------------------------------------------------


def test_the_packed_file_is_plain_numbers_with_axes(path):
    with h5py.File(path / "run.h5") as file:
        assert file["x"].dtype == np.float64
        assert {file[name].dtype.kind for name in file} <= {"f", "i", "O"}
        assert [dim.keys() for dim in file["row"].dims] == [["n"], ["column"]]
    assert_sound(path)
