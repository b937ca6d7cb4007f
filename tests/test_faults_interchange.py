"""What other programs make of a run: the same numbers, and no crash."""

import csv
import importlib.util
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import toy_study
from safetensors.numpy import load_file
from zygote import NO_FIGURES

from mlxroles.store import RunFolder
from mlxroles.store.capture import CaptureFile
from mlxroles.store.schema import CAPTURE_VARIABLES

ENGINES = {"h5netcdf": "h5netcdf", "netcdf4": "netCDF4"}
XARRAY = """
import json, sys
import numpy as np
import xarray as xr

with xr.open_dataset(sys.argv[1], engine=sys.argv[2]) as data:
    found = {
        name: [list(data[name].dims), np.asarray(data[name].values, "f8").ravel().tolist()]
        for name in data.variables
        if data[name].dtype.kind in "fiu"
    }
    texts = {n: data[n].values.astype(str).tolist() for n in data.variables if n not in found}
print(json.dumps([found, texts], allow_nan=True))
"""


def by_xarray(path, engine):
    """Numbers and texts of a file as xarray reads them, in a process that it may take along."""
    for name in ("xarray", ENGINES[engine]):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"platform: {name} is not installed here")
    command = [sys.executable, "-W", "error::UserWarning", "-c", XARRAY, str(path), engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return json.loads(done.stdout)


def by_h5py(path):
    numbers, texts = {}, {}
    with h5py.File(path) as file:
        for name, data in file.items():
            dims = [dim.keys()[0] for dim in data.dims if dim.keys()] or [name] * data.ndim
            if data.dtype.kind == "O":
                texts[name] = data.asstr()[()].tolist()
            else:
                values = np.asarray(data[()], "f8")
                missing = data.attrs.get("_FillValue")
                if missing is not None:
                    values[values == missing] = np.nan
                numbers[name] = [dims, values.ravel().tolist()]
    return numbers, texts


def assert_read(path, engine):
    numbers, texts = by_xarray(path, engine)
    expected, words = by_h5py(path)
    assert texts == words
    assert numbers.keys() == expected.keys()
    for name, (dims, values) in expected.items():
        assert numbers[name][0] == dims
        np.testing.assert_array_equal(np.array(numbers[name][1], "f8"), np.array(values, "f8"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_packed_sweep_opens_in_xarray(tiny_run, engine):
    assert_read(tiny_run / "run.h5", engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_packed_run_with_texts_and_gaps_opens_in_xarray(tmp_path, engine):
    study = toy_study.Toy(before=lambda n: 1 / (n - 3))
    assert toy_study.run(tmp_path / "run", study=study).failed == 1
    assert_read(tmp_path / "run" / "run.h5", engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("store", ["f32", "bf16"])
def test_a_capture_opens_in_xarray(tmp_path, engine, store):
    """float16 is left out on purpose: netCDF4 has no such type and ends the process."""
    names = ("resid_post", "entropy", "tokens", "length")
    coords = {"prompt": ["a", "é"], "layer": [0, 7], "position": 3, "d_model": 4}
    coords |= {"head": 2, "query": 3}
    path = tmp_path / "c.h5"
    with CaptureFile(path, [CAPTURE_VARIABLES[n] for n in names], coords=coords, store=store) as f:
        f.put("resid_post", (0,), np.arange(24).reshape(2, 3, 4))
        f.put("tokens", (0,), np.array([5, 6, 7], "i4"))
    numbers, _ = by_xarray(path, engine)
    assert numbers["resid_post"][0] == ["prompt", "layer", "position", "d_model"]
    assert numbers["tokens"][1][:3] == [5, 6, 7]


def test_no_packed_file_holds_what_netcdf_cannot_read(tiny_run, tmp_path):
    toy_study.run(tmp_path / "run")
    for path in (tiny_run / "run.h5", tmp_path / "run" / "run.h5"):
        with h5py.File(path) as file:
            for data in file.values():
                assert data.dtype.str[1:] in ("f4", "f8", "i4", "O")
                if data.dtype.kind == "O":
                    assert h5py.check_string_dtype(data.dtype).encoding == "utf-8"
                # all axes of a variable have names, or it is an axis itself
                assert data.is_scale or all(len(dim) == 1 for dim in data.dims)


def test_arrays_of_cells_are_plain_safetensors(tmp_path):
    toy_study.run(tmp_path / "run")
    records = RunFolder.read(tmp_path / "run").records()
    for n, record in enumerate(records.values()):
        found = load_file(tmp_path / "run" / "arrays" / record.arrays.file)
        np.testing.assert_array_equal(found["row"], toy_study.row(n))


def test_tables_are_plain_csv_and_no_cell_is_a_formula(zygote, tmp_path):
    sets = {
        name: [{"id": f"=cmd|'{name}{n}'", "text": f"@SUM({n})"} for n in range(2)]
        for name in ("=1+1", "-neutral", "+x")
    }
    (tmp_path / "set.json").write_text(json.dumps(sets))
    command = ["entropy", "--family", "tiny", "--prompts", "set.json", "--plain", "--out", "run"]
    how = {"cwd": tmp_path, "code": NO_FIGURES}
    status, _, err = zygote.run(*command, "--contrast", "=1+1/-neutral/+x", **how)
    assert status == 0, err
    tables = list((tmp_path / "run").glob("*.csv"))
    assert tables
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, strict=True))
        assert len({len(row) for row in rows}) == 1
        for cell in (cell for row in rows for cell in row):
            assert not cell.startswith(("=", "+", "@", "\t", "\r"))
            if cell.startswith("-"):
                float(cell)
