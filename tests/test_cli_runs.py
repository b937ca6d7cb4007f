"""status, show, resume, verify, diff and export on real runs of every kind: whole, cut, damaged."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import stored_runs
from safetensors.numpy import load_file
from stored_runs import COMMANDS, change_line, change_manifest, copied, cut
from zygote import go, noted, wait_for, watched

from mlxroles import cli
from mlxroles.runs.find import NOTHING
from mlxroles.store.folder import RunFolder
from mlxroles.store.lock import RunLock

pytestmark = pytest.mark.slow
KINDS = list(COMMANDS)
HEAVY = ("mlx", "mlx_lm", "transformers", "matplotlib", "scipy", "torch", "huggingface_hub")
PATHS = {"PYTHONPATH": str(Path(cli.__file__).parents[2])}


@pytest.fixture(scope="module")
def made(zygote, tmp_path_factory):
    return stored_runs.make(zygote, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def home_of_all(made):
    return made["patch"].parents[2]


@pytest.fixture
def home(home_of_all, monkeypatch):
    """A folder with a run of every kind, which no test changes."""
    monkeypatch.chdir(home_of_all)
    return home_of_all


@pytest.fixture
def own(made, tmp_path, monkeypatch):
    """Copies a run into a folder that a test may change."""
    monkeypatch.chdir(tmp_path)
    return lambda kind: copied(made[kind], tmp_path)


def document(result, status=0):
    found, out, err = result
    assert found == status, err
    assert len(out.splitlines()) == 1
    return json.loads(out)


def refused(result, status=1):
    found, out, err = result
    assert (found, out) == (status, ""), err
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- status ---------------------------------------------------------------------------------------


def test_status_lists_every_run_newest_first(home, made, call):
    runs = document(call("status", "--json"))["runs"]
    assert {run["kind"] for run in runs} == set(KINDS)
    assert all(run["state"] == "finished" for run in runs)
    assert all(run["cells"]["done"] == run["cells"]["total"] > 0 for run in runs)
    times = [run["last_written"] for run in runs]
    assert times == sorted(times, reverse=True)
    status, out, _ = call("status")
    assert status == 0
    assert len(out.splitlines()) == 1 + len(KINDS)


def test_a_list_of_runs_says_what_they_are_about(own, call, tmp_path):
    run = own("patch")
    shutil.copytree(run, run.with_name("0123456789ab"))
    change_manifest(run.with_name("0123456789ab"), lambda doc: doc["identity"].update(seed=7))
    status, out, _ = call("status")
    assert status == 0
    first, second = sorted(line.split("\t")[0] for line in out.splitlines()[1:])
    assert second.removeprefix(first) == ", seed 7"
    assert first != run.parent.name


def test_status_of_a_cut_run_says_how_to_go_on(own, call):
    run = own("patch")
    missing = cut(run, 5)
    doc = document(call("status", run.name[:6], "--json"))
    assert doc["state"] == "stopped"
    assert doc["cells"] == {"done": 5, "failed": 0, "total": 5 + len(missing)}
    assert doc["total_from"] == "history"
    assert doc["resume"] == f"mlxroles resume {Path('results', run.parent.name, run.name)}"
    status, out, _ = call("status", run)
    assert status == 0
    assert "go on" in out
    assert f"5 of {5 + len(missing)}" in out


def test_status_tells_failures_with_their_causes(own, call):
    run = own("probe")

    def fail(entry):
        entry |= {"status": "failed", "error": "FloatingPointError: \x1b[31mno number"}
        del entry["values"]

    cell = change_line(run, 0, fail)
    doc = document(call("status", run, "--json"))
    assert doc["cells"]["failed"] == 1
    assert doc["failures"] == [
        {"error": "FloatingPointError: \x1b[31mno number", "count": 1, "cells": [cell]}
    ]
    assert "\x1b" not in call("status", run)[1]


def test_status_and_show_of_a_run_that_another_process_writes(zygote, tmp_path, call):
    log = tmp_path / "log"
    child = zygote.start(*COMMANDS["patch"], "--plain", cwd=tmp_path, code=watched(log, pause=2))
    try:
        while len(noted(log)[0]) < 2:
            pass
        [run] = (tmp_path / "results").glob("*/*")
        doc = document(call("status", run, "--json"))
        assert doc["state"] == "running"
        assert doc["owner"]["pid"] > 0
        assert document(call("show", run, "--json"))["show"]["from"] == "journal"
        assert call("verify", run)[0] == 0
        assert call("export", run, "--out", tmp_path / "part.csv")[0] == 0
        assert "is being written by process" in refused(call("resume", run), status=4)
    finally:
        go(log)
        child.wait()
    assert document(call("status", run, "--json"))["state"] == "finished"


def test_lists_without_runs_and_with_broken_ones(own, call):
    assert call("status") == (0, "", f"{NOTHING}\n")
    run = own("probe")
    (run / "manifest.json").write_text("{")
    status, out, err = call("status", "--json")
    assert status == 0
    assert json.loads(out)["runs"] == []
    assert "damaged" in err


# --- show -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_show_prints_what_the_run_found(home, made, call, kind):
    status, out, _ = call("show", made[kind].name)
    assert status == 0
    assert out.strip()
    doc = document(call("show", made[kind], "--json"))
    assert doc["show"]["state"] == "finished"
    if kind != "capture":
        stored = json.loads((made[kind] / "summary.json").read_text())
        assert {name: doc[name] for name in stored} == stored


@pytest.mark.parametrize("kind", ["patch", "attribution", "probe"])
def test_a_document_from_the_cells_is_the_stored_one(own, call, kind):
    run = own(kind)
    stored = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    doc = document(call("show", run, "--json"))
    assert doc["show"]["from"] == "journal"
    parts = {
        "patch": ("instruct_to_base", "base_to_instruct", "controls", "baselines", "prompts"),
        "attribution": ("sites", "positions", "metric", "verified_cells", "n_layers"),
        "probe": (),
    }
    for name in parts[kind]:
        assert without_categories(doc[name]) == without_categories(stored[name]), name
    if kind == "attribution":
        for direction in ("instruct_to_base", "base_to_instruct"):
            assert doc[direction]["gap"] == stored[direction]["gap"]
            assert doc[direction]["verify"].keys() == stored[direction]["verify"].keys()
    if kind == "probe":
        rows = [{**row, "category": None} for row in doc["rows"]]
        assert rows == [{**row, "category": None} for row in stored["rows"]]


def without_categories(doc):
    return (
        [{**one, "category": None} for one in doc]
        if isinstance(doc, list) and (doc and isinstance(doc[0], dict))
        else doc
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_show_of_a_run_that_was_killed(own, call, kind, keep):
    run = own(kind)
    cut(run, keep)
    status, _, err = call("show", run)
    assert status == 0
    assert "stopped" in err
    assert document(call("show", run, "--json"))["show"]["cells"]["done"] <= keep


def test_show_takes_a_sweep_folder(own, tmp_path, call):
    run = own("probe")
    sweep = tmp_path / "results" / "sweep_night" / "abcdef123456"
    sweep.mkdir(parents=True)
    entry = {"number": 0, "name": "p", "kind": "probe", "argv": COMMANDS["probe"], "run": str(run)}
    entry |= {"status": "stopped", "cells": 4, "done": 2, "failed": 0, "sentence": "Said \x1b[2J."}
    state = {"schema": "mlxroles/sweep/1", "name": "night", "id": sweep.name, "entries": [entry]}
    (sweep / "state.json").write_text(json.dumps(state))
    (sweep / "queue.json").write_text(json.dumps({"argv": ["sweep", "x.toml"]}))
    status, out, _ = call("show", "abcdef")
    assert status == 0
    assert "p           stopped    2/4" in out
    assert "p: Said" in out
    assert len(document(call("verify", sweep, run, "--json"))["runs"]) == 1
    assert call("show", sweep.parent)[1].splitlines()[0] == out.splitlines()[0]
    assert "\x1b" not in out
    assert document(call("status", "--json"))["runs"][0]["kind"] == "sweep"
    assert call("resume", sweep, "--dry-run")[1] == "mlxroles sweep x.toml\n"
    (sweep / "state.json").write_text("[")
    assert call("status", sweep)[0] == 0
    (sweep / "queue.json").write_text("{}")
    assert "missing or damaged" in refused(call("status", sweep))
    assert call("status", "--json")[0] == 0


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["show", "status", "verify", "export", "resume", "report"])
@pytest.mark.parametrize(
    "name", ["nonexist", "", ".", "a\0b", "x" * 5000, "results", "\x1b[2J", "=1+1", "~/nothing"]
)
def test_what_is_no_run_is_refused_in_one_line(home, call, verb, name):
    words = ["--to", "csv"] if verb == "export" else []
    line = refused(call(verb, name, *words))
    assert "\x1b" not in line
    assert len(line) < 2000


def test_an_ambiguous_name_lists_the_runs(own, call, made):
    run = own("probe")
    shutil.copytree(run, run.with_name(f"{run.name[:8]}zzzz"))
    line = refused(call("show", run.name[:8]))
    assert run.name in line
    assert "stands for 2 runs" in line
    assert call("show", run.name)[0] == 0


def test_a_run_is_found_by_any_file_in_it_and_by_its_experiment(home, made, call):
    run = made["probe"]
    for name in (run / "summary.json", run.parent, f"{run.parent.name}/{run.name[:4]}"):
        assert document(call("status", name, "--json"))["run_id"] == run.name


def test_a_run_that_was_set_aside_is_found_by_its_full_name_alone(own, call):
    run = own("probe")
    run.rename(run.with_name(f"{run.name}.old-1"))
    assert call("status", "--json")[1].count("probe_tiny") == 0
    assert document(call("status", f"{run.name}.old-1", "--json"))["kind"] == "probe"


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run_is_verified(home, made, call, kind):
    doc = document(call("verify", made[kind], "--json"))
    [run] = doc["runs"]
    assert run["ok"]
    assert [one for one in run["findings"] if one["level"] == "damage"] == []
    assert run["counts"]["cells"] > 0
    if kind in ("patch", "attribution", "entropy"):
        assert run["counts"]["packed_numbers"] > 0


def damage_of(result, status=5):
    doc = document(result, status)
    return [one for run in doc["runs"] for one in run["findings"] if one["level"] == "damage"]


def test_a_changed_number_in_the_journal_is_found_in_the_packed_file(own, call):
    run = own("patch")

    def change(entry):
        entry["values"]["log_odds"] += 0.5

    cell = change_line(run, 4, change)
    [found] = damage_of(call("verify", run, "--json"))
    assert found["cells"] == [cell]
    assert "run.h5 holds other numbers" in found["what"]


def test_a_flipped_bit_in_the_journal_names_the_cell(own, call):
    run = own("patch")
    cut(run, 6)
    data = bytearray((run / "cells.jsonl").read_bytes())
    data[data.index(b'"seconds":') + 11] ^= 1
    (run / "cells.jsonl").write_bytes(data)
    [found] = damage_of(call("verify", run, "--json"))
    assert found["cells"] == ["baseline/base/p000"]
    assert "resume" in found["cure"]


def test_a_torn_line_is_no_damage(own, call):
    run = own("patch")
    cut(run, 6)
    with (run / "cells.jsonl").open("ab") as file:
        file.write(b'00000000 {"v":1,"id":"x","sta\n0011')
    assert call("verify", run)[0] == 0


def test_damaged_and_missing_arrays_name_their_cells(own, call):
    run = own("entropy")
    first, second, *_ = sorted((run / "arrays").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.unlink()
    found = damage_of(call("verify", run, "--json"))
    assert len([cell for one in found for cell in one["cells"]]) >= 2
    status, out, _ = call("verify", run)
    assert status == 5
    assert "DAMAGED" in out
    assert refused(call("export", run, "--to", "npz"), status=5)


def test_a_truncated_packed_file_a_wrong_manifest_and_strays(own, call):
    run = own("patch")
    packed = run / "run.h5"
    packed.write_bytes(packed.read_bytes()[:1000])
    (run / "mlxroles-x.tmp").write_bytes(b"")
    doc = document(call("verify", run, "--json"), status=5)
    assert any("unfinished files" in one["what"] for one in doc["runs"][0]["findings"])
    packed.unlink()
    assert call("verify", run)[0] == 0
    change_manifest(run, lambda doc: doc["identity"].update(seed=1))
    [found] = damage_of(call("verify", run, "--json"))
    assert "identity has the id" in found["what"]
    (run / "manifest.json").write_bytes(b"\xff{")
    assert damage_of(call("verify", run, "--json"))


def test_a_packed_file_with_a_number_of_its_own_is_found(own, call):
    run = own("patch")
    cells = cut_only_journal(run, 5)
    [found] = damage_of(call("verify", run, "--json"))
    assert "no stored cell has" in found["what"]
    assert cells


def cut_only_journal(run, keep):
    lines = (run / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (run / "cells.jsonl").write_bytes(b"".join(lines[:keep]))
    return lines[keep:]


def test_a_truncated_capture_is_found(own, call):
    run = own("capture")
    file = run / "capture.h5"
    file.write_bytes(file.read_bytes()[:2000])
    assert damage_of(call("verify", run, "--json"))
    assert refused(call("show", run))


# --- diff -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_does_not_differ_from_itself(home, made, call, kind):
    doc = document(call("diff", made[kind], made[kind].name, "--json"))
    assert doc["spec"] == []
    assert doc["differing"] == 0
    assert doc["numbers"] > 0
    assert doc["cells"]["only_first"] == doc["cells"]["only_second"] == 0


def test_diff_names_fields_cells_and_the_largest_difference(own, tmp_path, call):
    first = own("patch")
    second = tmp_path / "other"
    shutil.copytree(first, second)

    def change(entry):
        entry["values"]["log_odds"] += 0.25

    cell = change_line(second, 4, change)
    cut_only_journal(second, 20)
    change_manifest(second, lambda doc: doc["identity"].update(seed=7))
    doc = document(call("diff", first, second, "--json"))
    assert doc["spec"] == [{"field": "seed", "first": 0, "second": 7}]
    assert doc["cells"]["only_first"] > 0
    assert doc["cells"]["only_second"] == 0
    [measure] = [one for one in doc["measures"] if one["differing"]]
    assert (measure["name"], measure["where"]) == ("log_odds", cell)
    assert measure["largest"] == pytest.approx(0.25)
    status, out, _ = call("diff", first, second)
    assert status == 0
    assert "seed" in out
    assert cell in out


def test_diff_of_runs_over_other_prompts_compares_the_shared_ones(zygote, made, tmp_path, call):
    words = [word if word != "1,2,3" else "1,2,4" for word in COMMANDS["attribution"]]
    words += ["--layers", "1-3"]
    status, _, err = zygote.run(
        *words, "--plain", "--out", "other", cwd=tmp_path, code=stored_runs.NO_FIGURES
    )
    assert status == 0, err
    doc = document(call("diff", made["attribution"], tmp_path / "other", "--json"))
    assert {"layers", "prompts"} <= {one["field"] for one in doc["spec"]}
    assert doc["prompts_with_other_tokens"]
    stream = next(one for one in doc["measures"] if one["name"] == "resid_post [array]")
    assert stream["numbers"] > 0
    assert stream["one_side"] > 0
    same = next(one for one in doc["measures"] if one["name"] == "recipient")
    assert same["differing"] < same["numbers"]


def test_diff_of_two_kinds_shares_nothing(home, made, call):
    doc = document(call("diff", made["patch"], made["probe"], "--json"))
    assert doc["cells"]["shared"] == 0
    assert "runs of two kinds, patch and probe" in call("diff", made["patch"], made["probe"])[1]
    assert call("diff", made["patch"], made["entropy"])[0] == 0


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["csv", "json", "npz", "safetensors"])
def test_every_run_is_exported_in_every_form(made, tmp_path, monkeypatch, call, kind, form):
    monkeypatch.chdir(tmp_path)
    doc = document(call("export", made[kind], "--to", form, "--json"))
    path = tmp_path / doc["file"]
    assert path.stat().st_size == doc["bytes"] > 0
    assert call("export", made[kind], "--to", form)[0] == 0  # its own file is replaced
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    if form == "csv":
        assert len(rows_of(path)) == doc["rows"]
    if form == "json":
        assert len(json.loads(path.read_text())["rows"]) == doc["rows"]
    if form == "npz":
        assert len(np.load(path, allow_pickle=False).files) == doc["arrays"] + 1
        assert zipfile.ZipFile(path).testzip() is None
    if form == "safetensors":
        assert load_file(path)


def test_numbers_of_a_table_are_those_of_the_cells(made, tmp_path, call):
    out = tmp_path / "t.csv"
    assert call("export", made["patch"], "--out", out)[0] == 0
    records = RunFolder.read(made["patch"]).records()
    found = [row for row in rows_of(out) if row["measure"] == "log_odds"]
    assert len(found) == len(records)
    for row in found:
        assert float(row["value"]) == records[row["cell"]].values["log_odds"]
    assert {row["prompt"] for row in found} == {"p000", "p001"}
    assert {row["layer"] for row in found} == {"", "0", "1"}


def test_arrays_of_an_export_are_those_of_the_cells(made, tmp_path, call):
    folder = RunFolder.read(made["attribution"])
    cell = next(record.id for record in folder.records().values() if record.arrays)
    stored = folder.arrays(cell)
    for form in ("npz", "safetensors"):
        out = tmp_path / f"a.{form}"
        assert call("export", made["attribution"], "--out", out)[0] == 0
        found = np.load(out) if form == "npz" else load_file(out)
        for name, array in stored.items():
            assert np.array_equal(found[f"arrays/{cell}/{name}"], array, equal_nan=True)
    table = tmp_path / "a.csv"
    assert call("export", made["attribution"], "--out", table)[0] == 0
    [row] = [
        row
        for row in rows_of(table)
        if (row["cell"], row["measure"], row["layer"], row["position"]) == (cell, "z", "1", "2")
        and row["head"] == "3"
    ]
    assert np.float32(row["value"]) == stored["z"][1, 3, 2]


def test_a_capture_is_exported_without_padding_in_a_table(made, tmp_path, call):
    run = made["capture"]
    table = tmp_path / "c.csv"
    assert call("export", run / "capture.h5", "--out", table)[0] == 0
    rows = rows_of(table)
    positions = {row["position"] for row in rows if row["prompt"] == "p000" and row["position"]}
    assert positions == {"0", "1", "2"}
    assert {row["layer"] for row in rows if row["measure"] == "resid_post"} == {"0", "2"}
    parts = tmp_path / "parts" / run.name
    shutil.copytree(run, parts)
    file = tmp_path / "alone.h5"
    (parts / "capture.h5").rename(file)
    assert document(call("show", file, "--json"))["variables"]
    assert document(call("diff", run, file, "--json"))["differing"] == 0
    assert "capture by itself" in refused(call("verify", file))


def test_export_leaves_other_files_alone(own, tmp_path, call):
    run = own("probe")
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n1,2\n")
    assert "--force" in refused(call("export", run, "--out", mine))
    assert mine.read_text() == "a,b\n1,2\n"
    assert call("export", run, "--out", mine, "--force")[0] == 0
    line = refused(call("export", run, "--to", "json", "--out", run / "summary.json", "--force"))
    assert "part of the run" in line
    link = tmp_path / "link.csv"
    link.symlink_to(mine)
    assert "no plain file" in refused(call("export", run, "--out", link, "--force"))
    assert "create it first" in refused(call("export", run, "--out", tmp_path / "no" / "x.csv"))
    assert "--to" in refused(call("export", run))
    assert "which form" in refused(call("export", run, "--out", tmp_path / "x.xlsx"))


def test_texts_of_a_table_cannot_become_formulas(own, tmp_path, call):
    run = own("probe")

    def change(entry):
        entry["values"]["top5"][0]["token"] = "=1+1"
        entry["values"]["log_odds"] = -3.5

    change_line(run, 0, change)
    out = tmp_path / "t.csv"
    assert call("export", run, "--out", out)[0] == 0
    rows = rows_of(out)
    assert [row["text"] for row in rows if "1+1" in row["text"]] == ["'=1+1"]
    assert "-3.5" in {row["value"] for row in rows if row["measure"] == "log_odds"}


@pytest.mark.parametrize("kind", ["patch", "attribution"])
def test_parquet_holds_the_rows_of_the_csv(made, tmp_path, call, kind):
    parquet = pytest.importorskip("pyarrow.parquet", reason="platform: no pyarrow here")
    for form in ("csv", "parquet"):
        assert call("export", made[kind], "--out", tmp_path / f"t.{form}")[0] == 0
    table = parquet.read_table(tmp_path / "t.parquet").to_pydict()
    rows = rows_of(tmp_path / "t.csv")
    assert len(rows) == len(table["value"]) > 0
    for name in rows[0]:
        for row, value in zip(rows, table[name], strict=True):
            if isinstance(value, float):
                assert float(row[name] or "nan") == pytest.approx(value, nan_ok=True, abs=0)
            else:
                assert row[name] == ("" if value is None else str(value))


def test_parquet_without_its_package_says_what_to_install(made, tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = refused(call("export", made["probe"], "--out", tmp_path / "t.parquet"))
    assert "pip install" in line
    assert list(tmp_path.iterdir()) == []


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_in_its_own_folder(zygote, own, call, tmp_path, kind):
    run = own(kind)
    missing = cut(run, 1 if kind == "capture" else 3)
    if kind == "capture":
        (run / "arrays").mkdir(exist_ok=True)
    # from elsewhere, as a process of its own
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    status, _, err = zygote.run("resume", run, cwd=elsewhere, code=stored_runs.NO_FIGURES)
    assert status == 0, err
    done = RunFolder.read(run).records()
    assert set(missing) <= done.keys()
    assert call("verify", run)[0] == 0
    assert list(elsewhere.glob("*/")) == []
    assert "is complete" in refused(call("resume", run))


def test_resume_takes_the_newest_unfinished_run(own, call, tmp_path):
    assert call("resume") == (0, "", f"{NOTHING}\n")
    own("patch")
    assert call("resume") == (0, "", "no unfinished run below results/\n")
    run = own("probe")
    cut(run, 2)
    status, out, _ = call("resume", "--dry-run")
    assert status == 0
    assert out == f"mlxroles {' '.join(COMMANDS['probe'])} --plain --out {run}\n"
    assert document(call("resume", "--dry-run", "--json"))["run"] == str(run)


def test_resume_refuses_where_a_model_changed(zygote, own, tmp_path):
    run = own("probe")
    cut(run, 2)
    sha = "0" * 64
    change_manifest(run, lambda doc: doc["identity"]["models"]["base"].update(sha256=sha))
    status, out, err = zygote.run("resume", run, cwd=tmp_path)
    assert (status, out) == (1, "")
    assert "holds another run: models.base.sha256" in err
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_resume_does_not_start_afresh(own, call):
    run = own("probe")
    cut(run, 2)
    change_manifest(run, lambda doc: doc["argv"].insert(1, "--fresh"))
    assert "--fresh" not in call("resume", run, "--dry-run")[1]
    change_manifest(run, lambda doc: doc.update(argv=["probe", "--pair", "tiny", "--", "--fresh"]))
    out = call("resume", run, "--dry-run")[1]
    assert out == f"mlxroles probe --pair tiny --out {run} -- --fresh\n"
    change_manifest(run, lambda doc: doc.update(argv="probe"))
    assert "by which command" in refused(call("resume", run))


# --- where and how they run -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_to_a_read_only_run(own, call, kind, tmp_path):
    run = own(kind)
    cut(run, 2)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for path in [run, *run.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for words in (["status"], ["show"], ["export", "--out", tmp_path / "x.json"]):
            verb, *rest = words
            status = call(verb, run, *rest)[0]
            assert status == 0 or (kind == "capture" and verb == "export")
        assert call("verify", run)[0] in (0, 5)
        assert call("diff", run, run)[0] in (0, 5)
    finally:
        for path in [run, *run.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_lock_of_this_process_counts_as_running(own, call):
    run = own("probe")
    lock = RunLock(run / "run.lock")
    try:
        assert document(call("status", run, "--json"))["state"] == "running"
    finally:
        lock.release()


def test_no_model_library_is_loaded(made, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "results").symlink_to(made["patch"].parents[1])
    patch = str(made["patch"])
    calls = [["status"], ["status", patch], *(["show", str(run)] for run in made.values())]
    calls += [["verify", patch], ["diff", patch, patch], ["export", patch, "--to", "csv"]]
    calls += [["resume", "--dry-run"]]
    code = f"""
import sys
from mlxroles.cli import run
for arguments in {calls!r}:
    assert run(arguments) == 0
    assert not set({HEAVY!r}) & set(sys.modules), arguments
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=home,
        env=os.environ | PATHS,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_an_interrupted_run_shows_its_end(zygote, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    child = zygote.start(*COMMANDS["patch"], "--plain", cwd=tmp_path, code=watched(log, pause=2))
    while len(noted(log)[0]) < 2:
        pass
    [run] = (tmp_path / "results").glob("*/*")
    wait_for(run / "cells.jsonl", '"status":"ok"')
    child.send(signal.SIGKILL)
    child.wait()
    [doc] = document(call("status", "--json"))["runs"]
    assert doc["state"] == "stopped"
    assert 0 < doc["cells"]["done"] < doc["cells"]["total"]
    out = call("status", doc["run"])[1]
    assert "ended without a word" in out
