"""Capture files: padding, number formats, all or nothing, and files that are not to be trusted."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from mlxroles.errors import StoreError
from mlxroles.store import capture
from mlxroles.store.capture import CaptureFile, axes, read
from mlxroles.store.hdf5 import from_bf16, to_bf16
from mlxroles.store.schema import CAPTURE_VARIABLES, Variable

COORDS = {
    "prompt": ["notepad", "é"],
    "layer": [0, 7],
    "position": 5,
    "d_model": 8,
    "head": 4,
    "kv_head": 2,
    "d_head": 2,
    "query": 5,
    "key": 5,
    "vocab": 11,
}
ALL = list(CAPTURE_VARIABLES.values())
RESID = CAPTURE_VARIABLES["resid_post"]
AT = (0, 1, slice(0, 3))


@pytest.fixture(autouse=True)
def plain_fsync(monkeypatch):
    """As on Linux: the faults below are put into ``os.fsync``."""
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("f4")


def test_every_site_can_be_kept_and_prompts_are_padded(tmp_path):
    path = tmp_path / "with space.h5"
    resid, pattern = numbers(3, 8), numbers(4, 3, 3)
    with CaptureFile(path, ALL, coords=COORDS, attrs={"model": "org/name"}) as file:
        file.put("resid_post", AT, resid)
        file.put("pattern", (0, 1, slice(None), slice(0, 3), slice(0, 3)), pattern)
        file.put("tokens", (0, slice(0, 3)), [5, 6, 7])
        file.put("length", (0,), np.int64(3))
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(read(path, "resid_post", (0, 1, slice(0, 3))), resid)
    assert np.isnan(read(path, "resid_post", (0, 1, slice(3, 5)))).all()
    assert np.isnan(read(path, "resid_post", (1,))).all()
    np.testing.assert_array_equal(read(path, "pattern", (0, 1))[:, :3, :3], pattern)
    assert read(path, "tokens").tolist() == [[5, 6, 7, -1, -1], [-1] * 5]
    assert read(path, "length").tolist() == [3, -1]
    assert read(path, "prompt").tolist() == ["notepad", "é"]
    assert read(path, "layer").tolist() == [0, 7]
    assert axes(path) == {variable.name: variable.axes for variable in ALL}


def test_the_file_is_laid_out_for_reading(tmp_path):
    path = tmp_path / "c.h5"
    coords = COORDS | {"position": 300, "query": 300, "key": 300, "d_model": 16, "vocab": 2**20 + 1}
    attrs = {"model": "m\0", "n": 1, "x": 0.5, "grid": [1, float("nan")], "flag": True, "no": None}
    variables = [*ALL, Variable("note", ("prompt",), "str"), Variable("total", (), "f8", "s")]
    with CaptureFile(path, variables, coords=coords, attrs=attrs) as file:
        file.put("note", (), ["a\0", "\ud800"])
        file.put("total", (), 1.5)
    with h5py.File(path) as file:
        assert file["resid_post"].chunks == (1, 1, 128, 16)
        assert file["resid_post"].compression is None
        assert file["logits"].chunks == (1, 1, 2**20)
        for name in ("pattern", "entropy"):
            dataset = file[name]
            assert (dataset.compression, dataset.compression_opts) == ("gzip", 1)
            assert dataset.shuffle
        assert file["entropy"].attrs["units"] == "nat"
        assert dict(file.attrs) == {
            "schema": "mlxroles/capture/1",
            "model": r"m\x00",
            "n": 1,
            "x": 0.5,
            "grid": "[1, null]",
            "flag": "true",
            "no": "null",
        }
        for variable in variables:
            dims = [dim.keys() for dim in file[variable.name].dims]
            assert dims == [[axis] for axis in variable.axes]
    assert read(path, "note").tolist() == [r"a\x00", r"\ud800"]
    assert read(path, "total") == 1.5


@pytest.mark.parametrize(("store", "kind"), [("f32", "f4"), ("f16", "f2"), ("bf16", "u2")])
def test_numbers_come_back_in_the_precision_that_was_asked_for(tmp_path, store, kind):
    path = tmp_path / "c.h5"
    values = np.array([0.1, -3.0, np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-3], "f4")
    with CaptureFile(path, [RESID], coords=COORDS, store=store) as file:
        file.put("resid_post", (1, 0, 4), values.astype("f8"))
    with h5py.File(path) as file:
        assert file["resid_post"].dtype == kind
        assert file["resid_post"].attrs.get("dtype") == ("bfloat16" if store == "bf16" else None)
    back = read(path, "resid_post")
    np.testing.assert_allclose(back[1, 0, 4], values, rtol={"f32": 0, "f16": 1e-3}.get(store, 8e-3))
    assert np.signbit(back[1, 0, 4, 6])
    assert np.isnan(back[0]).all()


def test_bfloat16_rounds_to_nearest_even_and_keeps_its_own_numbers(tmp_path):
    path = tmp_path / "c.h5"
    bits = np.random.default_rng(1).integers(0, 2**32, 4096, dtype=np.uint32)
    bits[::2] = bits[::2] & 0xFFFF0000 | 0x8000  # half way between two of them
    values = bits.view("f4")
    values = values[np.isfinite(values) & (np.abs(values) < 3.38e38)]
    variable = Variable("x", ("sample",), "store")
    with CaptureFile(path, [variable], coords={"sample": values.size}, store="bf16") as file:
        file.put("x", (), values)
    below = (values.view(np.uint32) >> 16).astype(np.uint16)
    low, high = from_bf16(below).astype("f8"), from_bf16(below + np.uint16(1)).astype("f8")
    to_low, to_high = np.abs(values - low), np.abs(high - values)
    is_low = (to_low < to_high) | ((to_low == to_high) & (below % 2 == 0))
    np.testing.assert_array_equal(read(path, "x"), np.where(is_low, low, high))
    every = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    floats = from_bf16(every)
    kept = ~np.isnan(floats)
    np.testing.assert_array_equal(to_bf16(floats)[kept], every[kept])


@pytest.mark.parametrize(
    ("store", "value", "advice"),
    [
        ("f16", 70_000.0, "up to 7e[+]04 do not fit f16: use --store f32 or bf16"),
        ("bf16", 3.4e38, "use --store f32"),
        ("f32", 1e300, "use --store f32"),
    ],
)
def test_a_number_that_would_become_infinite_is_refused(tmp_path, store, value, advice):
    path = tmp_path / "c.h5"
    with (
        pytest.raises(StoreError, match=f"resid_post: .*{advice}"),
        CaptureFile(path, [RESID], coords=COORDS, store=store) as file,
    ):
        file.put("resid_post", (0, 0, 0), np.array([value, np.nan, np.inf, *[0.0] * 5]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("index", "shape", "words"),
    [
        ((0, 1), (1, 8), "shape"),
        ((0, 1, slice(0, 9)), (9, 8), "shape"),
        ((0, 1, 0, 0, 0), (), "5 indices for 4 axes"),
        ((0, 2), (5, 8), r"index 2 is outside 0\.\.1"),
        ((-1, 0), (5, 8), "index -1 is outside"),
    ],
)
def test_nothing_is_broadcast_or_clipped(tmp_path, index, shape, words):
    with (
        pytest.raises(ValueError, match=words),
        CaptureFile(tmp_path / "c.h5", [RESID], coords=COORDS) as file,
    ):
        file.put("resid_post", index, np.ones(shape))
    assert not list(tmp_path.iterdir())


def test_token_ids_are_whole_numbers(tmp_path):
    variable = CAPTURE_VARIABLES["tokens"]
    with (
        pytest.raises(TypeError, match="cast"),
        CaptureFile(tmp_path / "c.h5", [variable], coords=COORDS) as file,
    ):
        file.put("tokens", (0,), np.ones(5))


def test_an_exception_leaves_nothing_and_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "c.h5"
    path.write_bytes(b"mine")
    with pytest.raises(StoreError, match="exists: choose another name"):
        CaptureFile(path, [RESID], coords=COORDS)
    with (
        pytest.raises(KeyboardInterrupt),
        CaptureFile(path, [RESID], coords=COORDS, overwrite=True),
    ):
        raise KeyboardInterrupt
    assert path.read_bytes() == b"mine"
    with CaptureFile(path, [RESID], coords=COORDS, overwrite=True) as file:
        assert file.close() == path
        assert file.close() == path
    assert read(path, "resid_post").shape == (2, 2, 5, 8)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "c.h5"
    file = CaptureFile(path, [RESID], coords=COORDS)
    path.write_bytes(b"mine")
    with pytest.raises(StoreError, match="exists"):
        file.close()
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="is no folder: create it first"):
        CaptureFile(tmp_path / "no" / "c.h5", [RESID], coords=COORDS)
    with pytest.raises(StoreError, match="exists"):
        CaptureFile(tmp_path, [RESID], coords=COORDS, overwrite=True)
    with pytest.raises(ValueError, match="needs values"):
        CaptureFile(tmp_path / "c.h5", [RESID], coords=COORDS | {"layer": []})
    with pytest.raises(ValueError, match="too long for HDF5"):
        CaptureFile(tmp_path / "c.h5", [RESID], coords=COORDS, attrs={"text": "x" * 70_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(StoreError, match=r"lacks 1\.05 MB \(1\.00 kB left, 1\.05 MB needed\)"):
        CaptureFile(tmp_path / "c.h5", [RESID], coords=COORDS)
    assert not list(tmp_path.iterdir())


def test_a_failing_sync_or_rename_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((os, "fsync"), (Path, "replace"), (os, "write")):
        file = CaptureFile(tmp_path / "c.h5", [RESID], coords=COORDS)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(StoreError, match="the disk is full"):
                file.close()
        assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_ends_the_capture_at_the_next_write(tmp_path, monkeypatch):
    def full(_handle, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    variable = Variable("x", ("layer", "d_model"), "store")
    file = CaptureFile(tmp_path / "c.h5", [variable], coords={"layer": 8, "d_model": 2**20})
    monkeypatch.setattr(os, "write", full)

    def fill():
        for layer in range(8):
            file.put("x", (layer,), np.ones(2**20))

    with pytest.raises(StoreError, match="the disk is full"):
        fill()
    file.discard()
    assert not list(tmp_path.iterdir())


def test_the_first_error_of_a_file_is_kept(tmp_path):
    with capture._Sink(tmp_path / "x") as sink:
        assert sink.write(b"abc") == 3
        assert sink.truncate(2) == 2
        sink.check()
        assert sink.truncate(-1) == -1
        assert sink.truncate(1) == 1
        assert sink.write(b"abcd") == 4
        with pytest.raises(OSError, match="Invalid argument"):
            sink.check()
    assert (tmp_path / "x").read_bytes() == b"ab"


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from mlxroles.errors import StoreError
from mlxroles.store.capture import CaptureFile
from mlxroles.store.hdf5 import from_bf16, to_bf16
from mlxroles.store.schema import Variable

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with CaptureFile(
        Path(sys.argv[1]), [Variable("x", ("a", "b"), "store")], coords={"a": 64, "b": 4096}
    ) as file:
        for number in range(64):
            file.put("x", (number,), np.ones(4096))
except StoreError as error:
    print(error)
    sys.exit(1)
"""


def test_a_write_that_hdf5_cannot_do_is_one_line_and_leaves_nothing(tmp_path):
    root = Path(capture.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(tmp_path / "c.h5")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "c.h5 cannot be written: " in done.stdout
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_capture_leaves_only_a_temporary_file(tmp_path):
    root = Path(capture.__file__).parents[2]
    code = FULL.replace("200_000", "2**40").replace(
        "        for", "        __import__('os').kill(__import__('os').getpid(), 9)\n        for"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c.h5")], cwd=root, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"
    # The next capture there removes it, but not what a living process writes.
    with CaptureFile(tmp_path / "a.h5", [RESID], coords=COORDS) as first:
        assert not left.exists()
        with CaptureFile(tmp_path / "b.h5", [RESID], coords=COORDS):
            pass
        first.put("resid_post", (0, 0, 0), np.ones(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_files_that_point_elsewhere_are_not_followed(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\1" * 64)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(3)
    path = tmp_path / "evil.h5"
    layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(3,))
    with h5py.File(path, "w") as file:
        file["outside"] = h5py.ExternalLink("other.h5", "x")
        file["soft"] = h5py.SoftLink("/outside")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (8,), "f8", external=[(str(secret), 0, 64)])
        file.create_group("group")["x"] = h5py.ExternalLink("other.h5", "x")
        file["good"] = np.arange(3)
    for name in ("outside", "soft", "virtual", "raw", "group"):
        with pytest.raises(StoreError, match="no plain array"):
            read(path, name)
    for name in ("group/x", "/good", "nothing\x1b", "."):
        with pytest.raises(StoreError, match="has no variable"):
            read(path, name)
    assert read(path, "good").tolist() == [0, 1, 2]
    with pytest.raises(StoreError, match="no plain array"):
        axes(path)


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", shape=(2**20, 2**20), dtype="f4", chunks=(1, 1024))
    with pytest.raises(StoreError, match="claims far more"):
        read(path, "x")
    assert read(path, "x", (0, slice(0, 3))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("content", [b"", b"no hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 100])
def test_what_is_no_hdf5_file_is_said_so(tmp_path, content):
    path = tmp_path / "c.h5"
    with pytest.raises(StoreError, match="no such file"):
        read(path, "x")
    path.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read"):
        read(path, "x")


def test_axes_without_scales_have_no_name(tmp_path):
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = np.ones((2, 3))
    assert axes(tmp_path / "c.h5") == {"x": ("", "")}
