"""run.h5: every axis a dimension scale, missing cells NaN, built whole."""

import errno
import json
import math
import os

import h5py
import numpy as np
import pytest

from mlxroles.errors import StoreError
from mlxroles.events import Cell
from mlxroles.store import RunFolder, Variable
from mlxroles.store.hdf5 import MISSING_INT, axis_values, hdf5_text
from mlxroles.store.pack import pack

COORDS = {
    "direction": ["base_to_instruct", "instruct_to_base"],
    "layer": [2, 3, 4],
    "string": ["<tool_call>", "a\0b\ud800é"],
    "query": 4,
    "scale": [0.5, 1],
    "control": ["none", "random"],
}
EFFECT = Variable("effect", ("direction", "layer"), "f4", "1", "change of probability")


@pytest.fixture
def folder(tmp_path):
    with RunFolder.open(
        tmp_path, experiment="e\0", identity={}, manifest={"versions": {"mlx": "0.32"}}
    ) as opened:
        yield opened


def cell(direction=0, layer=2, **more):
    coords = {"direction": COORDS["direction"][direction], "layer": layer, **more}
    return Cell("/".join(map(str, coords.values())), coords)


def test_every_axis_is_a_scale_with_its_values(folder):
    folder.record(cell(), {"effect": 0.5})
    variables = [
        EFFECT,
        Variable("p", ("string", "direction", "layer"), "f8"),
        Variable("scaled", ("scale", "query")),
        Variable("total", (), "i4", "token"),
    ]
    path = pack(folder, variables, COORDS)
    assert path == folder.path / "run.h5"
    with h5py.File(path) as file:
        for variable in variables:
            dataset = file[variable.name]
            assert [dim.keys() for dim in dataset.dims] == [[axis] for axis in variable.axes]
            assert dataset.attrs["units"] == variable.unit
        assert file["effect"].attrs["long_name"] == "change of probability"
        assert all(file[axis].is_scale for axis in COORDS)
        assert file["layer"].dtype == "i4"
        assert file["layer"][:].tolist() == [2, 3, 4]
        assert file["query"][:].tolist() == [0, 1, 2, 3]
        assert file["scale"][:].tolist() == [0.5, 1.0]
        assert file["string"].asstr()[:].tolist() == ["<tool_call>", r"a\x00b\ud800é"]
        assert h5py.check_string_dtype(file["string"].dtype).encoding == "utf-8"
        assert file.attrs["run_id"] == folder.run_id
        assert file.attrs["schema"] == "mlxroles/run-h5/1"
        assert file.attrs["experiment"] == r"e\x00"
        assert json.loads(file.attrs["versions"]) == {"mlx": "0.32"}
        kinds = {file[name].dtype.kind for name in file}
        assert kinds <= {"f", "i", "O"}
    assert not list(folder.path.glob("*.tmp"))


def test_cells_land_at_their_coordinates_and_the_others_stay_missing(folder):
    for layer in (2, 4):
        values = {"effect": layer / 2, "rank": layer, "best": "é\0", "note": None}
        folder.record(cell(0, layer, site="resid_post"), values)
    folder.record(cell(1, 3), {"effect": math.nan, "rank": None, "best": None, "note": 1.5})
    folder.fail(cell(1, 2), "boom")
    axes = ("layer", "direction")
    path = pack(
        folder,
        [
            Variable("effect", axes),
            Variable("rank", axes, "i4"),
            Variable("best", axes, "str"),
            Variable("note", axes, "f8"),
        ],
        COORDS,
    )
    nan = np.nan
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["effect"][:], [[1, nan], [nan, nan], [2, nan]])
        missing = MISSING_INT
        assert file["rank"][:].tolist() == [[2, missing], [missing, missing], [4, missing]]
        assert file["rank"].attrs["_FillValue"] == missing
        assert file["best"].asstr()[:].tolist() == [[r"é\x00", ""], ["", ""], [r"é\x00", ""]]
        np.testing.assert_array_equal(file["note"][:], [[nan, nan], [nan, 1.5], [nan, nan]])


def test_inner_axes_take_lists_mappings_and_arrays(folder):
    folder.record(
        cell(),
        {
            "p": {"a\0b\ud800é": 0.25},
            "by_layer": {"3": [1, None, 3]},
            "short": [[1.0, 2.0]],
        },
        {"entropy": np.arange(8, dtype="f4").reshape(4, 2), "one": np.array(7)},
    )
    variables = [
        Variable("p", ("direction", "string")),
        Variable("short", ("string", "direction", "query")),
        Variable("entropy", ("query", "direction", "scale"), "f8", "nat"),
        Variable("one", ("direction",), "i4"),
    ]
    coords = {axis: COORDS[axis] for axis in ("direction", "string", "query", "scale")}
    with h5py.File(pack(folder, variables, coords)) as file:
        np.testing.assert_array_equal(file["p"][0], [np.nan, 0.25])
        np.testing.assert_array_equal(file["short"][:, 0], [[1, 2, *[np.nan] * 2], [np.nan] * 4])
        np.testing.assert_array_equal(file["entropy"][:, 0], np.arange(8).reshape(4, 2))
        assert np.isnan(file["entropy"][:, 1]).all()
        assert file["one"][:].tolist() == [7, MISSING_INT]


def test_a_mapping_may_be_keyed_by_numbers_as_text(folder):
    folder.record(Cell("a", {"scale": 1}), {"x": {"3": [1, None, 3]}})
    variable = Variable("x", ("scale", "layer", "query"))
    with h5py.File(pack(folder, [variable], COORDS)) as file:
        np.testing.assert_array_equal(file["x"][1, 1], [1, np.nan, 3, np.nan])
        assert np.isnan(file["x"][0]).all()


def test_cells_on_another_axis_are_no_part_of_a_variable(folder):
    folder.record(cell(), {"effect": 1.0})
    folder.record(cell(control="random"), {"effect": 2.0}, {"unused": np.ones(1)})
    folder.record(cell(layer=3, control=None), {"effect": 3.0})
    folder.record(cell(layer=4), {}, {"unused": np.ones(1)})
    folder.record(cell(direction=1), {"unused": 1})
    with h5py.File(pack(folder, [EFFECT], COORDS)) as file:
        np.testing.assert_array_equal(file["effect"][0], [1, 3, np.nan])


def test_two_cells_at_one_place_are_a_programmers_mistake(folder):
    folder.record(cell(site="q"), {"effect": 1.0})
    folder.record(cell(site="k"), {"effect": 2.0})
    with pytest.raises(ValueError, match="have one place"):
        pack(folder, [EFFECT], COORDS)


@pytest.mark.parametrize(
    ("layer", "value", "words"),
    [
        (9, 1.0, "has layer=9, which that axis lacks"),
        (2, [1.0], r"value of effect does not fit \(a single value\)"),
        (2, "word", "does not fit"),
        (2, {"a": 1}, "does not fit"),
    ],
)
def test_a_value_that_does_not_fit_is_named(folder, layer, value, words):
    folder.record(cell(layer=layer), {"effect": value})
    with pytest.raises(StoreError, match=words):
        pack(folder, [EFFECT], COORDS)


@pytest.mark.parametrize("value", [1.0, [1] * 5, [[1]], {"7": 1}, [[1], [1, 2]]])
def test_inner_values_that_do_not_fit_are_named(folder, value):
    folder.record(cell(), {"x": value})
    with pytest.raises(StoreError, match=r"does not fit \(query\)|axis lacks"):
        pack(folder, [Variable("x", ("direction", "layer", "query"))], COORDS)


def test_large_variables_are_compressed_and_read_only_runs_packed_elsewhere(folder, tmp_path):
    data = np.random.default_rng(0).normal(size=600_000).astype("f4")
    folder.record(Cell("a"), {}, {"x": data})
    reader = RunFolder.read(folder.path)
    out = tmp_path / "packed here.h5"
    assert pack(reader, [Variable("x", ("sample",))], {"sample": data.size}, out=out) == out
    with h5py.File(out) as file:
        assert file["x"].compression == "gzip"
        np.testing.assert_array_equal(file["x"][:], data)
    assert not (folder.path / "run.h5").exists()


def test_a_full_disk_leaves_the_previous_file(folder, monkeypatch):
    folder.record(cell(), {"effect": 1.0})
    path = pack(folder, [EFFECT], COORDS)
    before = path.read_bytes()

    def full(_handle, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match=r"the disk is full \(\d"):
        pack(folder, [EFFECT], COORDS)
    assert path.read_bytes() == before
    assert not list(folder.path.glob("*.tmp"))


def test_numbers_beyond_the_stored_type_become_infinite(folder):
    folder.record(cell(), {"effect": 1e300})
    with h5py.File(pack(folder, [EFFECT], COORDS)) as file:
        assert file["effect"][0, 0] == np.inf


@pytest.mark.parametrize(
    "variable",
    [
        Variable("x", ("nowhere",)),
        Variable("x", ("layer",), "store"),
    ],
)
def test_unknown_axes_are_a_programmers_mistake(folder, variable):
    with pytest.raises(ValueError, match="unknown dtype or axis"):
        pack(folder, [variable], COORDS)


@pytest.mark.parametrize("values", [[], 0, [1, 1], ["a", "a"]])
def test_an_axis_needs_values(folder, values):
    with pytest.raises(ValueError, match="each of them once"):
        pack(folder, [], {"layer": values})


@pytest.mark.parametrize(
    "arguments",
    [
        ("a/b", ()),
        ("", ()),
        ("a", ("b c",)),
        ("a", (), "f2"),
        ("a", ("b", "b")),
        ("a", ("a",)),
    ],
)
def test_a_variable_has_a_plain_name_known_type_and_distinct_axes(arguments):
    with pytest.raises(ValueError, match=r"no name|none of|occurs twice"):
        Variable(*arguments)


def test_axis_values_have_one_type():
    assert axis_values([1, 2.0]) == [1.0, 2.0]
    assert axis_values([1, "a"]) == ["1", "a"]
    assert axis_values([True]) == ["True"]
    assert axis_values(2) == [0, 1]
    assert hdf5_text("a\0\ud800") == r"a\x00\ud800"
