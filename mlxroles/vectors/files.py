"""Vectors in files: HDF5 of our own, and what other programs write.

A reference is ``FILE`` or ``FILE#NAME``; a run folder stands for the ``vectors.h5`` in it.
"""

import json
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from mlxroles.errors import StoreError, VectorError
from mlxroles.store.files import plain, require_space, shown, write_atomic
from mlxroles.store.hdf5 import TEXT, attach_axes, hdf5_text, plain_hdf5_errors, write_axes
from mlxroles.store.reader import axes
from mlxroles.store.reader import read as read_array
from mlxroles.store.schema import Variable
from mlxroles.text import did_you_mean, safe_text
from mlxroles.vectors.layouts import Fit, vectors_of
from mlxroles.vectors.tensors import SUFFIXES, open_tensors
from mlxroles.vectors.vectors import SITES, Vectors, is_name

SCHEMA = "mlxroles/vectors/1"
OWN = (".h5", ".hdf5")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
"""Endings of files that would run code when they are opened."""
IN_RUN = "vectors.h5"
"""Name of the file in the folder of a run that made vectors."""

_AXES = ("name", "layer", "d_model")
_VARIABLES = (
    Variable("vector", _AXES, long_name="vector of the residual stream; NaN at other layers"),
    Variable("how", ("name",), "str", long_name="how the vector was made, as JSON"),
)


def read(ref: str | Path, *, n_layers: int, d_model: int, layer: int | None = None) -> Vectors:
    """The vectors of a file, checked against a model.

    Formats: .h5 of ``write``; .npy [d_model] or [layer, d_model]; .npz and .safetensors with such
    tensors by name, or one per layer (``NAME.layer.5``, ``layers.5``, ``5``); GGUF control
    vectors; one row of a dictionary, such as a sparse autoencoder's, as ``FILE#W_dec[123]``.

    Args:
        ref: ``FILE``, or ``FILE#NAME`` for one of its vectors.
        n_layers: Number of layers of the model.
        d_model: Width of its residual stream.
        layer: Layer of vectors that do not say theirs; of others only this one is read.

    Raises:
        VectorError: no such file, name or layer, a format that is not known, or vectors of
            another model.
        StoreError: the file cannot be read.
    """
    path, name = split_ref(str(ref))
    fit = Fit(shown(path), _stem(path), n_layers, d_model, layer)
    if layer is not None:
        fit.check_layer(layer)
    if path.suffix.lower() not in OWN:
        return vectors_of(open_tensors(path), name, fit)
    found = _read_own(path, fit)
    try:
        found = found if name is None else found.subset([name])
        return found if layer is None else found.at_layers([layer])
    except VectorError as error:
        raise VectorError(f"{fit.shown}: {error}") from None


def write(path: Path | str, vectors: Vectors) -> Path:
    """Writes vectors whole, with the layers that they belong to; returns the path.

    The file opens in xarray: ``vector`` [name, layer, d_model] with coordinates.

    Raises:
        VectorError: a name that ``read`` would not take for such a file.
        StoreError: it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in OWN:
        raise VectorError(f"{shown(path)} cannot be written; a file of vectors ends in {OWN[0]}")
    coords = {"name": vectors.names, "layer": vectors.layers, "d_model": vectors.d_model}
    hows = [json.dumps(plain(vectors.meta.get(name, {}))) for name in vectors.names]
    data = {"vector": vectors.array, "how": np.array([hdf5_text(how) for how in hows], object)}
    with (
        plain_hdf5_errors(path),
        h5py.File(str(path), "w", driver="core", backing_store=False) as file,
    ):
        write_axes(file, coords)
        for variable in _VARIABLES:
            kind = TEXT if variable.dtype == "str" else variable.dtype
            dataset = file.create_dataset(variable.name, data=data[variable.name], dtype=kind)
            attach_axes(file, dataset, variable)
        file.attrs["schema"] = SCHEMA
        file.attrs["site"] = vectors.site
        file.attrs["model"] = json.dumps(plain(vectors.model))
        file.flush()
        image = file.id.get_file_image()
    require_space(path.parent, len(image))
    write_atomic(path, image)
    return path


def split_ref(ref: str) -> tuple[Path, str | None]:
    """The file and the name of a reference; a ``#`` may be part of either.

    Raises:
        VectorError: there is no such file, or it has an ending that is not known.
    """
    path, name = _found(ref)
    if path.is_dir():
        inside = path / IN_RUN
        if not inside.is_file():
            raise VectorError(f"{shown(path)} is a folder without {IN_RUN}; name a file of vectors")
        path = inside
    kind = path.suffix.lower()
    if kind in PICKLES:
        raise VectorError(
            f"{shown(path)} may hold a pickle, which runs code when it is opened; save the vector "
            "as .safetensors or .npy"
        )
    if kind not in (*OWN, *SUFFIXES):
        known = ", ".join((*OWN[:1], *SUFFIXES))
        raise VectorError(f"{shown(path)} is of an unknown format; vectors come as {known}")
    if name is not None and not name.strip():
        raise VectorError(f"{safe_text(ref, limit=200)} has no name after #; leave the # out")
    return path, name


def _found(ref: str) -> tuple[Path, str | None]:
    cuts = [n for n, char in enumerate(ref) if char == "#"]
    options = [(ref, None), *((ref[:n], ref[n + 1 :]) for n in cuts)]
    for text, name in options:
        try:
            path = Path(text).expanduser()
            is_there = bool(text) and path.exists()
        except (OSError, ValueError, RuntimeError):
            continue
        if is_there:
            return path, name
    whole = safe_text(ref.partition("#")[0] or ref, limit=200)
    near = ""
    with suppress(OSError, ValueError, RuntimeError):
        path = Path(ref.partition("#")[0]).expanduser()
        near = did_you_mean(path.name, (other.name for other in path.parent.iterdir()))
    raise VectorError(f"there is no file {whole}{near}")


def _stem(path: Path) -> str:
    return path.stem if is_name(path.stem) else "vector"


def _read_own(path: Path, fit: Fit) -> Vectors:
    """A file of ``write``, checked as one from anywhere."""
    with plain_hdf5_errors(path, verb="read"), h5py.File(path, "r", locking=False) as file:
        about = {key: file.attrs.get(key) for key in ("schema", "site", "model")}
    if about["schema"] != SCHEMA:
        schema = safe_text(str(about["schema"]), limit=60)
        raise VectorError(f"{fit.shown} holds no vectors: its schema is {schema}, not {SCHEMA}")
    try:
        if axes(path).get("vector") != _AXES or about["site"] not in SITES:
            raise ValueError("other axes or another site")
        names = [str(name) for name in read_array(path, "name")]
        layers = [int(n) for n in read_array(path, "layer")]
        hows = [json.loads(how) for how in read_array(path, "how")]
        found = Vectors(
            tuple(names),
            read_array(path, "vector"),
            tuple(layers),
            str(about["site"]),
            json.loads(str(about["model"])),
            {name: how for name, how in zip(names, hows, strict=True) if how},
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        why = safe_text(str(error), limit=160)
        raise StoreError(f"{fit.shown} is damaged or was changed by hand: {why}") from None
    for place in found.layers:
        fit.check_layer(place)
    fit.check_width(found.names[0], found.d_model)
    return found
