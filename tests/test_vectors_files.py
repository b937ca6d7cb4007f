"""Vectors in files: ours, and those of other programs, each written by another library."""

import json
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxroles import vectors
from mlxroles.backend import mx
from mlxroles.errors import MlxrolesError, StoreError, VectorError
from mlxroles.store.reader import axes
from mlxroles.vectors import Vectors

LAYERS, WIDTH = 6, 16
RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((LAYERS, WIDTH), dtype=np.float32)
ROW = TABLE[2]
DICTIONARY = RNG.standard_normal((40, WIDTH), dtype=np.float32)


def read(path: Path, name: str | None = None, layer: int | None = None, **sizes) -> Vectors:
    ref = str(path) if name is None else f"{path}#{name}"
    return vectors.read(ref, **({"n_layers": LAYERS, "d_model": WIDTH} | sizes), layer=layer)


def made() -> Vectors:
    array = RNG.standard_normal((3, 4, WIDTH), dtype=np.float32)
    array[1, :2] = np.nan
    how = {"ocean": {"how": "concept", "baseline": 12}, "päivä": {"word": "päivä"}}
    layers = (0, 2, 3, 5)
    return Vectors(("ocean", "a#b", "päivä"), array, layers, model={"sha256": "f00"}, meta=how)


# --- our own --------------------------------------------------------------------------------------


def test_vectors_come_back_as_they_were(tmp_path):
    first = made()
    path = vectors.write(tmp_path / "steer.h5", first)
    back = read(path)
    assert (back.names, back.layers, back.site) == (first.names, first.layers, first.site)
    assert np.array_equal(back.array, first.array, equal_nan=True)
    assert back.model == first.model
    assert back.meta == first.meta
    assert [p.name for p in tmp_path.iterdir()] == ["steer.h5"]


def test_a_path_may_be_text_and_ends_as_readers_expect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = vectors.write("steer.h5", made())
    assert path == Path("steer.h5")
    assert vectors.read(path, n_layers=LAYERS, d_model=WIDTH).names == made().names
    with pytest.raises(VectorError, match=r"steer.npy cannot be written; .* ends in .h5"):
        vectors.write("steer.npy", made())


def test_the_file_opens_with_coordinates_in_other_programs(tmp_path):
    path = vectors.write(tmp_path / "steer.h5", made())
    assert axes(path) == {"vector": ("name", "layer", "d_model"), "how": ("name",)}
    with h5py.File(path) as file:
        assert file["vector"].dims[1][0][:].tolist() == [0, 2, 3, 5]
        assert file["name"].asstr()[:].tolist() == ["ocean", "a#b", "päivä"]


def test_one_of_several_is_named_after_the_file(tmp_path):
    path = vectors.write(tmp_path / "odd#name.h5", made())
    assert read(path, "ocean").names == ("ocean",)
    assert read(path, "a#b").layers == (3, 5)
    assert read(path, "a#b", layer=5).layers == (5,)
    assert read(path, layer=2).names == ("ocean", "päivä")


def test_a_run_folder_stands_for_its_vectors(tmp_path):
    vectors.write(tmp_path / "vectors.h5", made())
    assert read(tmp_path, "päivä").names == ("päivä",)


@pytest.mark.parametrize(
    ("name", "layer", "sizes", "said"),
    [
        ("ocen", None, {}, "no vector 'ocen'; did you mean 'ocean'"),
        ("a#b", 0, {}, "no vector was taken from layer 0"),
        (None, 7, {}, r"layer 7 is outside 0\.\.5"),
        (None, None, {"n_layers": 4}, r"layer 5 is outside 0\.\.3 of this model"),
        (None, None, {"d_model": 24}, "'ocean' has 16 numbers, the model's stream has 24"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path, name, layer, sizes, said):
    path = vectors.write(tmp_path / "steer.h5", made())
    with pytest.raises(VectorError, match=said) as caught:
        read(path, name, layer, **sizes)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_told(tmp_path):
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "mlxroles/capture/1"
    with pytest.raises(VectorError, match="holds no vectors: its schema is mlxroles/capture/1"):
        read(path)
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(StoreError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("damage", ["name", "layer", "site", "model", "nan", "link"])
def test_a_changed_file_is_refused_in_one_line(tmp_path, damage):
    path = vectors.write(tmp_path / "steer.h5", made())
    with h5py.File(path, "r+") as file:
        if damage == "nan":
            file["vector"][0, 0, 3] = np.nan
        elif damage == "link":
            del file["vector"]
            file["vector"] = h5py.ExternalLink("/etc/passwd", "x")
        elif damage in ("name", "layer"):
            file[damage][0] = file[damage][1]
        else:
            file.attrs[damage] = "nonsense"
    with pytest.raises(StoreError, match=r"damaged or was changed|not followed"):
        read(path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        vectors.write(tmp_path / "nowhere" / "steer.h5", made())


# --- other programs -------------------------------------------------------------------------------


def test_numpy_tables_and_single_vectors(tmp_path):
    table, single = tmp_path / "table.npy", tmp_path / "single.npy"
    np.save(table, TABLE.astype(np.float64))
    np.save(single, ROW.astype(np.float16))
    found = read(table)
    assert (found.names, found.layers) == (("table",), tuple(range(LAYERS)))
    assert np.array_equal(found.array[0], TABLE)
    assert np.array_equal(read(table, layer=4).at("table", 4), TABLE[4])
    found = read(single, layer=3)
    assert found.layers == (3,)
    assert np.array_equal(found.at("single", 3), ROW.astype(np.float16).astype(np.float32))


def test_layers_of_a_table_may_be_left_out(tmp_path):
    holed = TABLE.copy()
    holed[1] = np.nan
    np.save(tmp_path / "t.npy", holed)
    assert read(tmp_path / "t.npy").layers == (0, 2, 3, 4, 5)


def test_safetensors_by_name_and_by_layer(tmp_path):
    path = tmp_path / "s.safetensors"
    given = {"happy": TABLE, "sad.layer.2": TABLE[2], "sad.layer.4": TABLE[4], "ids": np.arange(3)}
    safetensors.numpy.save_file(given, path)
    found = read(path)
    assert {*found.names} == {"happy", "sad"}
    assert found.layers_of("sad") == (2, 4)
    assert np.array_equal(found.at("sad", 4), TABLE[4])
    assert np.array_equal(read(path, "happy").array[0], TABLE)
    assert read(path, "sad", layer=2).layers == (2,)
    with pytest.raises(VectorError, match="'sad' has no layer 3, but 2, 4"):
        read(path, "sad", layer=3)


@pytest.mark.parametrize(
    "key", ["{}", "layers.{}", "layer_{}", "direction.{}", "blocks.{}.hook_resid_post"]
)
def test_keys_that_are_layers(tmp_path, key):
    path = tmp_path / "mine.safetensors"
    safetensors.numpy.save_file({key.format(n): TABLE[n] for n in (1, 5)}, path)
    found = read(path)
    assert (found.names, found.layers) == (("mine",), (1, 5))
    assert np.array_equal(found.at("mine", 5), TABLE[5])


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_safetensors_of_every_float_type(tmp_path, dtype):
    path = tmp_path / "s.safetensors"
    given = mx.array(TABLE).astype(dtype)
    mx.save_safetensors(str(path), {"v": given})
    assert np.array_equal(read(path).array[0], np.array(given.astype(mx.float32)))


def test_direction_n_of_a_control_vector_is_layer_n(tmp_path):
    """As llama.cpp applies it: what ``direction.3`` holds is added to the output of block 3."""
    path = tmp_path / "happy.gguf"
    given = {f"direction.{n}": mx.array(TABLE[n]) for n in range(1, LAYERS)}
    about = {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": mx.array(LAYERS - 1, dtype=mx.uint32),
        "tags": ["a", "b"],
    }
    mx.save_gguf(str(path), given, about)
    found = read(path)
    assert (found.names, found.layers) == (("happy",), (1, 2, 3, 4, 5))
    for n in range(1, LAYERS):
        assert np.array_equal(found.at("happy", n), TABLE[n])
    mx.save_gguf(
        str(path), {"token_embd.weight": mx.array(TABLE)}, {"general.architecture": "llama"}
    )
    with pytest.raises(VectorError, match="no control vector, but of the kind llama"):
        read(path)


def test_a_control_vector_written_by_hand(tmp_path):
    """The bytes of the format's description, version 3, with an alignment of its own."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = text("general.alignment") + struct.pack("<II", 4, 64)
    pairs += text("names") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("yy")
    pairs += text("f") + struct.pack("<If", 6, 1.5)
    infos = text("direction.4") + struct.pack("<IQIQ", 1, WIDTH, 0, 0)
    infos += text("direction.2") + struct.pack("<IQIQ", 1, WIDTH, 1, 64)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 3) + pairs + infos
    data = ROW.tobytes() + TABLE[5].astype("<f2").tobytes()
    path = tmp_path / "v.gguf"
    path.write_bytes(head + bytes(-len(head) % 64) + data)
    found = read(path)
    assert found.layers == (2, 4)
    assert np.array_equal(found.at("v", 4), ROW)
    assert np.array_equal(found.at("v", 2), TABLE[5].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
def test_a_row_of_a_dictionary(tmp_path, kind, turned):
    path = tmp_path / f"sae.{kind}"
    weights = np.ascontiguousarray(DICTIONARY.T) if turned else DICTIONARY
    others = {"b_dec": ROW, "W_enc": np.ones((3, 5), np.float32)}
    if kind == "npy":
        np.save(path, weights)
    elif kind == "npz":
        np.savez(path, W_dec=weights, **others)
    else:
        safetensors.numpy.save_file({"W_dec": weights, **others}, path)
    name = "[37]" if kind == "npy" else "W_dec[37]"
    found = read(path, name, layer=3)
    assert (found.names, found.layers) == ((name,), (3,))
    assert np.array_equal(found.at(name, 3), DICTIONARY[37])
    with pytest.raises(VectorError, match=r"feature 40 of '.*' is outside 0\.\.39"):
        read(path, name.replace("37", "40"), layer=3)
    with pytest.raises(VectorError, match="does not say its layer"):
        read(path, name)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "layer", "said"),
    [
        (np.zeros((LAYERS + 1, WIDTH)), None, "begins with the embedding; leave the first row out"),
        (np.zeros((LAYERS + 3, WIDTH)), None, r"one row of a dictionary is named v\[ROW\]"),
        (np.zeros(WIDTH), None, "does not say its layer"),
        (np.zeros(WIDTH), 6, r"layer 6 is outside 0\.\.5"),
        (np.zeros(WIDTH + 1), 2, "has 17 numbers, the model's stream has 16"),
        (np.zeros((2, 3, WIDTH)), 2, r"a vector is \[d_model\] or \[layer, d_model\]"),
        (np.full(WIDTH, np.nan), 2, "not finite"),
        (np.full((LAYERS, WIDTH), np.inf), None, "not finite"),
        (np.full((LAYERS, WIDTH), np.nan), None, "NaN at every layer"),
        (np.array([{"a": 1}], object), 2, "is no whole .npy file of plain numbers"),
        (np.zeros(WIDTH, complex), 2, "no tensor of floating-point numbers"),
        (np.array(["a"] * WIDTH), 2, "no tensor of floating-point numbers"),
        (np.zeros(()), 2, "has shape"),
    ],
)
def test_arrays_that_are_no_vectors_of_the_model(tmp_path, array, layer, said):
    path = tmp_path / "v.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(VectorError, match=said) as caught:
        read(path, layer=layer)
    assert "\n" not in str(caught.value)


def test_a_square_dictionary_is_refused(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((WIDTH, WIDTH)))
    with pytest.raises(VectorError, match="square"):
        read(tmp_path / "v.npy", "v[3]", layer=1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v.pt", "may hold a pickle"),
        ("v.txt", r"unknown format; vectors come as \.h5, \.npy, \.npz, \.safetensors, \.gguf"),
        ("folder", r"is a folder without vectors\.h5"),
        ("v.npy#", "no name after #"),
        ("v.npi", "no file .*; did you mean 'v.npy'"),
        ("v.npi#a", "no file .*; did you mean 'v.npy'"),
        ("\0", "no file"),
        ("x" * 5000, "no file"),
        ("", "no file"),
    ],
)
def test_references_that_name_no_file_of_vectors(tmp_path, name, said):
    for file in ("v.pt", "v.txt", "v.npy"):
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VectorError, match=said) as caught:
        vectors.read(f"{tmp_path}/{name}" if name else "", n_layers=LAYERS, d_model=WIDTH)
    assert "\n" not in str(caught.value)


def test_an_unknown_tensor_is_told_with_the_nearest(tmp_path):
    path = tmp_path / "s.safetensors"
    safetensors.numpy.save_file({"happy": TABLE, "W_dec": DICTIONARY}, path)
    with pytest.raises(VectorError, match="no vector 'hapy'; did you mean 'happy'"):
        read(path, "hapy")
    with pytest.raises(VectorError, match="no vector 'W_dek'; did you mean 'W_dec'"):
        read(path, "W_dek[3]", layer=1)
    with pytest.raises(VectorError, match=r"'W_dec' has shape \[40, 16\]"):
        read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """A good file of each format that is read here and not by a library."""
    folder = tmp_path_factory.mktemp("whole")
    np.save(folder / "v.npy", TABLE)
    np.savez_compressed(folder / "v.npz", a=TABLE)
    safetensors.numpy.save_file({"a": TABLE}, folder / "v.safetensors")
    mx.save_gguf(str(folder / "v.gguf"), {"direction.1": mx.array(ROW)}, {"general.name": "x"})
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_ends_in_one_line(whole, tmp_path_factory, data):
    suffix = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[suffix])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, min(len(content), 600) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(content)
    said, width = "", WIDTH
    try:
        width = read(path).d_model
    except MlxrolesError as error:
        said = str(error)
    assert "\n" not in said
    assert width == WIDTH


def test_a_torn_file_of_ours_ends_in_one_line(tmp_path):
    path = vectors.write(tmp_path / "steer.h5", made())
    content = path.read_bytes()
    for length in range(0, len(content), 499):
        path.write_bytes(content[:length])
        with pytest.raises(MlxrolesError, match=r"^[^\n]+$"):
            read(path)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}},
        {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}},
    ],
)
def test_a_safetensors_header_that_lies(tmp_path, header):
    path = tmp_path / "v.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(VectorError, match=r"is no whole \.safetensors file"):
        read(path)


def test_a_name_that_would_write_to_the_terminal_is_refused(tmp_path):
    path = tmp_path / "v.safetensors"
    safetensors.numpy.save_file({"a\x1b[31m": TABLE}, path)
    with pytest.raises(VectorError, match=r"'a\\x1b\[31m' cannot be the name of a vector"):
        read(path)
