"""Captures of a small real model against its own layers, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest
import stories
from stories import TEXT, Plain

from mlxroles.errors import SpecError, StoreError
from mlxroles.prompts import Prompt
from mlxroles.store import RunFolder
from mlxroles.store import capture as capture_file
from mlxroles.store.capture import CaptureFile
from mlxroles.studies.capture import Capture, parse_keep
from mlxroles.studies.capture_file import Filling
from mlxroles.studies.inputs import encoded
from mlxroles.studies.place import RunPlace
from mlxroles.studies.subject import Subject

ALL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z")
RAGGED = [(1, 403, 407, 261, 410), (1, 5), (1, 9, 300, 301, 7), (1, 2, 3)]


@pytest.fixture(scope="module")
def models(shared):
    return shared / "models"


def study(folder, rows=RAGGED, keep=("resid_post",), **options):
    subject = Subject.of_model(str(folder))
    prompts = [Prompt(f"p{n:03d}", ids=row) for n, row in enumerate(rows)]
    return Capture(subject, encoded(subject, prompts), keep, **options)


def run(one, out, events=None, **place):
    seen = [] if events is None else events
    doc, finished = one.run(seen.append, RunPlace(out.parent, out=out, **place))
    return doc, finished


def test_every_array_is_that_of_the_models_own_layers(models, tmp_path):
    keep = (*ALL, "pattern", "entropy", "logits")
    out = tmp_path / "all.h5"
    doc, finished = run(study(models / "stories260K", keep=keep), out)
    assert (finished.done, finished.failed, doc["bytes"]) == (3, 0, out.stat().st_size)
    assert not (tmp_path / "all.h5.parts").exists()
    plain = Plain(models / "stories260K")
    with h5py.File(out) as file:
        assert set(keep) <= set(file)
        assert file["length"][:].tolist() == [5, 2, 5, 3]
        for n, row in enumerate(RAGGED):
            size = len(row)
            assert file["tokens"][n].tolist() == [*row, *[-1] * (5 - size)]
            streams = plain.stream(row)
            near = {"rtol": 1e-4, "atol": 1e-4}
            np.testing.assert_allclose(file["logits"][n, :size], plain.logits(row), **near)
            for layer in range(5):
                attn_out, z, mlp_out = (np.array(a)[0] for a in plain.parts(layer, streams[layer]))
                h = np.array(streams[layer])[0]
                own = {"resid_pre": h, "resid_mid": h + attn_out, "attn_out": attn_out, "z": z}
                own |= {"mlp_out": mlp_out, "resid_post": np.array(streams[layer + 1])[0]}
                for name, array in own.items():
                    np.testing.assert_allclose(file[name][n, layer, :size], array, **near)
                pattern = file["pattern"][n, layer][:, :size, :size]
                np.testing.assert_allclose(pattern.sum(-1), 1.0, atol=1e-5)
                v = np.repeat(file["v"][n, layer, :size], 2, axis=1)
                np.testing.assert_allclose(np.einsum("hqk,khd->qhd", pattern, v), z, **near)
                logs = np.log(pattern, out=np.zeros_like(pattern), where=pattern > 0)
                entropy = file["entropy"][n, layer][:, :size]
                np.testing.assert_allclose(entropy, -(pattern * logs).sum(-1), atol=1e-5)
            for name in ALL:
                assert np.isnan(file[name][n, :, size:]).all()
            assert np.isnan(file["pattern"][n, :, :, size:]).all()
            assert np.isnan(file["logits"][n, size:]).all()


def test_every_axis_is_a_dimension_scale(models, tmp_path):
    run(study(models / "stories260K", keep=("z", "pattern"), layers="1,3"), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        axes = {n: [d.keys()[0] for d in file[n].dims] for n in ("z", "pattern", "tokens")}
        assert axes["z"] == ["prompt", "layer", "position", "head", "d_head"]
        assert axes["pattern"] == ["prompt", "layer", "head", "query", "key"]
        assert axes["tokens"] == ["prompt", "position"]
        assert file["layer"][:].tolist() == [1, 3]
        assert [p.decode() for p in file["prompt"][:]] == ["p000", "p001", "p002", "p003"]
        assert file.attrs["schema"] == "mlxroles/capture/1"


def test_the_same_file_again_is_taken_as_it_is_and_another_is_refused(models, tmp_path):
    out = tmp_path / "a.h5"
    run(study(models / "stories260K"), out)
    before = out.stat().st_mtime_ns
    events = []
    doc, finished = run(study(models / "stories260K"), out, events)
    assert (finished.done, out.stat().st_mtime_ns) == (3, before)
    assert doc["file"] == str(out)
    assert any("already" in getattr(e, "text", "") for e in events)
    with pytest.raises(StoreError, match="--fresh"):
        run(study(models / "stories260K", keep=("z",)), out)
    run(study(models / "stories260K", keep=("z",)), out, fresh=True)
    with h5py.File(out) as file:
        assert "z" in file


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_killed_capture_goes_on_where_it_was(models, tmp_path, monkeypatch, kept):
    whole, cut = tmp_path / "whole.h5", tmp_path / "cut.h5"
    run(study(models / "stories260K"), whole)
    with monkeypatch.context() as patch:
        patch.setattr(Filling, "finish", lambda *a: (_ for _ in ()).throw(StoreError("gone")))
        with pytest.raises(StoreError, match="gone"):
            run(study(models / "stories260K"), cut)
    journal = tmp_path / "cut.h5.parts" / "cells.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    torn = lines[kept][:40] if kept < len(lines) else b""
    journal.write_bytes(b"".join(lines[:kept]) + torn)
    events = []
    run(study(models / "stories260K"), cut, events)
    assert sum(getattr(e, "restored", False) for e in events) == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.h5", "whole.h5"]
    with h5py.File(whole) as a, h5py.File(cut) as b:
        assert np.array_equal(a["resid_post"][:], b["resid_post"][:], equal_nan=True)


def test_the_file_is_filled_while_the_next_batch_computes(models, tmp_path, monkeypatch):
    computing, waited = threading.Event(), []
    compute, put = Capture.compute, CaptureFile.put

    def begun(self, batch):
        if batch.cells[0] == self.cells[1]:
            computing.set()
        return compute(self, batch)

    def waiting(self, *part):
        if not waited:
            waited.append(computing.wait(20))  # for ever, if the batch came after this file
        put(self, *part)

    monkeypatch.setattr(Capture, "compute", begun)
    monkeypatch.setattr(CaptureFile, "put", waiting)
    run(study(models / "stories260K"), tmp_path / "a.h5")
    assert waited == [True]
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_a_file_that_cannot_be_filled_stops_the_capture_with_its_parts_stored(
    models, tmp_path, monkeypatch
):
    out, put, calls = tmp_path / "a.h5", CaptureFile.put, []

    def full(self, name, index, array):
        calls.append(name)
        if len(calls) > 8:  # in the second batch
            raise StoreError("the disk is full")
        put(self, name, index, array)

    with monkeypatch.context() as patch:
        patch.setattr(CaptureFile, "put", full)
        with pytest.raises(StoreError, match="the disk is full"):
            run(study(models / "stories260K"), out)
    assert len(calls) == 9
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5.parts"]
    events = []
    run(study(models / "stories260K"), out, events)
    assert sum(getattr(e, "restored", False) for e in events) == 2
    assert capture_file.read(out, "length").tolist() == [5, 2, 5, 3]


KILLED = """
import os, sys
from pathlib import Path
from mlxroles.store.capture import CaptureFile
from test_capture_study import run, study

put, left = CaptureFile.put, 8  # within the second batch
def dying(self, *part):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    put(self, *part)
CaptureFile.put = dying
run(study(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_a_capture_killed_while_its_file_is_filled_loses_nothing(models, tmp_path):
    whole, cut = tmp_path / "whole.h5", tmp_path / "cut.h5"
    run(study(models / "stories260K"), whole)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(models / "stories260K"), str(cut)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not cut.exists()
    assert len(RunFolder.read(tmp_path / "cut.h5.parts").done()) == 2
    events = []
    run(study(models / "stories260K"), cut, events)
    assert sum(getattr(e, "restored", False) for e in events) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.h5", "whole.h5"]
    with h5py.File(whole) as a, h5py.File(cut) as b:
        # two processes may run BLAS with other numbers of threads
        assert np.allclose(a["resid_post"][:], b["resid_post"][:], atol=1e-5, equal_nan=True)


def test_parts_left_by_a_kill_after_the_file_was_whole_are_removed(models, tmp_path, monkeypatch):
    out = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        patch.setattr(Capture, "_clear", lambda self, place: None)
        run(study(models / "stories260K"), out)
    assert (tmp_path / "a.h5.parts").is_dir()
    run(study(models / "stories260K"), out)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_numbers_beyond_f16_are_refused_at_once_and_the_parts_serve_another_type(
    models, tmp_path, monkeypatch
):
    from mlxroles.studies import capture as capture_study

    real = capture_study._numpy
    monkeypatch.setattr(capture_study, "_numpy", lambda a: real(a) * (1e6 if a.shape[1] > 2 else 1))
    out = tmp_path / "a.h5"
    with pytest.raises(StoreError, match="--store f32 or bf16"):
        run(study(models / "stories260K", store="f16"), out)
    assert not out.exists()
    events = []
    run(study(models / "stories260K", store="bf16"), out, events)
    assert sum(getattr(e, "restored", False) for e in events) == 1  # the prompt of two tokens
    stored = capture_file.read(out, "resid_post")
    assert np.nanmax(np.abs(stored)) > 65504


def test_activations_that_are_no_numbers_are_not_written(models, tmp_path, monkeypatch):
    from mlxroles.studies import capture as capture_study

    real = capture_study._numpy
    monkeypatch.setattr(capture_study, "_numpy", lambda a: real(a) / (a.shape[1] - 3.0))
    monkeypatch.setattr(np, "errstate", np.errstate)
    with np.errstate(divide="ignore", invalid="ignore"):
        doc, finished = run(study(models / "stories260K"), tmp_path / "a.h5")
    assert (finished.done, finished.failed, doc["bytes"]) == (2, 1, None)


def test_text_and_ids_together_and_layers_by_name(models, tmp_path):
    subject = Subject.of_model(str(models / "stories260K"))
    prompts = [Prompt("t", text=TEXT), Prompt("i", ids=(1, 2))]
    one = Capture(subject, encoded(subject, prompts), ("resid_post",), layers="4")
    run(one, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["resid_post"].shape == (2, 1, 28, 64)


def test_a_folder_with_weights_and_config_only_will_do(models, tmp_path):
    folder = stories.copied(models / "stories260K", tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink()
    doc, finished = run(study(folder, keep=("resid_post", "entropy")), tmp_path / "a.h5")
    assert finished.failed == 0
    assert json.dumps(doc)


def test_ids_need_no_readable_tokenizer(models, tmp_path):
    folder = stories.copied(models / "stories260K", tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    assert run(study(folder), tmp_path / "a.h5")[1].failed == 0


def test_sites_that_are_none_are_refused_with_the_nearest():
    assert parse_keep("z, pattern,z") == ("z", "pattern")
    with pytest.raises(SpecError, match="did you mean 'pattern'"):
        parse_keep("patern")
    with pytest.raises(SpecError, match="sites are"):
        parse_keep("")
