"""The packed file of an ablation run against its cells."""

import json

import numpy as np
import pytest

from mlxroles.store.folder import RunFolder
from mlxroles.store.reader import axes, read

TEXT = "The dog sees the cat."
RUNS = {
    "effects": ("--heads", "L1H4,L3H2", "--method", "scale", "--factors", ".5,0"),
    "redundancy": ("--heads", "L1H4", "--prompt", TEXT, "--positions", "3,4"),
    "compare": ("--heads", "L1H4", "--prompt", TEXT, "--positions", "3"),
}


@pytest.mark.parametrize("test", RUNS)
def test_every_number_of_a_cell_stands_in_the_packed_file(call, tmp_path, monkeypatch, test):
    monkeypatch.chdir(tmp_path)
    given = ("--model", "tiny/instruct", "--test", test, *RUNS[test], "--random", "2")
    assert call("ablate", *given, "--out", "run", "--plain")[0] == 0
    status, out, _ = call("verify", "run", "--json")
    counted = json.loads(out)["runs"][0]["counts"]
    assert (status, counted["packed_numbers"] > 20) == (0, True)
    folder, along = RunFolder.read(tmp_path / "run"), axes(tmp_path / "run" / "run.h5")
    assert all(not axis.startswith("axis_") for of in along.values() for axis in of)
    for record in folder.records().values():
        if test != "effects" or "random" in record.coords:
            continue
        what = [str(n) for n in read(folder.path / "run.h5", "what")]
        factors = [str(n) for n in read(folder.path / "run.h5", "factor")]
        at = factors.index(str(record.coords.get("factor", "1")))
        gain = np.asarray(read(folder.path / "run.h5", "gain"))
        there = gain[0, what.index(str(record.coords["what"])), at]
        np.testing.assert_array_equal(there, folder.arrays(record.id)["gain"])


def test_a_packed_file_that_was_changed_is_found(call, tmp_path, monkeypatch):
    import h5py

    monkeypatch.chdir(tmp_path)
    given = ("--heads", "L1H4", "--random", "2", "--out", "run", "--plain")
    assert call("ablate", "--model", "tiny/instruct", *given)[0] == 0
    with h5py.File(tmp_path / "run" / "run.h5", "r+") as file:
        file["random_kl"][...] = np.asarray(file["random_kl"]) + 1
    status, out, _ = call("verify", "run")
    assert status == 5
    assert "random_kl of model/random=0/what=l1h4" in out
