"""Component files: V and U of every map with the parameters of their causal importance.

A file ends in .safetensors or .h5 and holds ``L3.q/V`` [d_in, component], ``L3.q/U``
[component, d_out] and ``importance/NAME``, float32, with what they belong to as JSON. Written
whole or not at all. A training run folder stands for the ``components.safetensors`` in it.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlxroles.components.decomposition import Components, Decomposition
from mlxroles.components.maps import Map, decomposable
from mlxroles.errors import ModelError, SpecError, StoreError, VectorError
from mlxroles.models import integrity
from mlxroles.models.model import Model
from mlxroles.store.files import plain, plain_errors, require_space, shown, write_atomic
from mlxroles.store.hdf5 import plain_hdf5_errors
from mlxroles.text import safe_text
from mlxroles.vectors.tensors import LARGEST_HEADER, open_tensors

SCHEMA = "mlxroles/components/1"
SUFFIXES = (".safetensors", ".h5")
IN_RUN = "components.safetensors"
"""Name of the file in the folder of a run that made components."""
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_IMPORTANCE = "importance/"
_DAMAGE = (ValueError, TypeError, KeyError, RecursionError, struct.error)


def identity(model: Model) -> dict[str, Any]:
    """What a component file says of its model: name, sizes, and the hash of its files."""
    files = None if model.path is None else integrity.hashes(model.path)
    return {
        "name": Path(model.name).name if Path(model.name).is_absolute() else model.name,
        "architecture": model.architecture,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "sha256": files and integrity.combined(f"{n} {h}" for n, h in files.items()),
    }


def write(path: Path | str, components: Components) -> Path:
    """Writes a component file; returns its path.

    Raises:
        SpecError: an ending other than .safetensors and .h5, or no components.
        StoreError: it cannot be written; what was there before is still there.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise SpecError(f"{shown(path)} cannot be written; a component file ends in .safetensors")
    if not components.maps:
        raise SpecError(f"{shown(path)} would hold no components; name maps to decompose")
    arrays = {
        f"{key}/{name}": getattr(d, name) for key, d in components.maps.items() for name in "VU"
    }
    for name, array in components.importance.items():
        arrays[_IMPORTANCE + name] = np.asarray(array, dtype=np.float32)
        if not arrays[_IMPORTANCE + name].ndim:
            raise ValueError(f"{name} of the importance function needs an axis")
    about = json.dumps(plain(_about(components)))
    n_bytes = sum(a.nbytes for a in arrays.values()) + len(about)
    require_space(path.parent, n_bytes)
    image = _safetensors if path.suffix.lower() == ".safetensors" else _hdf5
    write_atomic(path, image(path, arrays, about))
    return path


def read(ref: str | Path, model: Model | None = None) -> Components:
    """The components of a file, or of a run folder that made one; checked against a model if given.

    Raises:
        SpecError: no such file, one of another kind, or components of maps that the model lacks.
        StoreError: the file is damaged or cannot be read.
    """
    path = _found(ref)
    try:
        is_own = path.suffix.lower() == ".safetensors"
        text, arrays = _read_safetensors(path) if is_own else _read_hdf5(path)
        found = _of_arrays(json.loads(text), arrays)
    except (*_DAMAGE, VectorError) as error:
        why = safe_text(str(error), limit=160)
        raise StoreError(f"{shown(path)} is damaged or was changed by hand: {why}") from None
    if model is not None:
        fitted(found, model)
    return found


def fitted(components: Components, model: Model) -> dict[str, Map]:
    """The model's maps that the components decompose, by key.

    Raises:
        SpecError: a map that the model does not have, or in another shape.
    """
    kinds = {d.kind for d in components.maps.values()}
    layers = components.layers
    if layers and layers[-1] >= model.n_layers:
        raise SpecError(
            f"the components are of layers up to {layers[-1]}; {model.name} has layers "
            f"0..{model.n_layers - 1}: they belong to another model"
        )
    try:
        found = decomposable(model, sorted(kinds), layers=layers)
    except ModelError as error:
        raise SpecError(f"the components do not fit {model.name}: {error}") from None
    for key, d in components.maps.items():
        m = found.get(key)
        if m is None:
            raise SpecError(f"{model.name} has no map {safe_text(key, limit=60)}")
        given = (d.d_in, d.d_out, d.n_heads, d.d_head)
        if given != (m.d_in, m.d_out, m.n_heads, m.d_head):
            raise SpecError(
                f"{key} of the components maps {_sizes(*given)}, that of {model.name} "
                f"{_sizes(m.d_in, m.d_out, m.n_heads, m.d_head)}: they belong to another model"
            )
    return {key: found[key] for key in components.maps}


def foreign(components: Components, model: Model) -> str | None:
    """A note where the components were made from a model with other weights; else None."""
    made = components.meta.get("model")
    made = made if isinstance(made, dict) else {}
    told = made.get("sha256")
    own = identity(model)["sha256"]
    if not told or not own or told == own:
        return None
    name = safe_text(str(made.get("name")), limit=60)
    return f"the components were made from {name}, whose weights are others than this model's"


def _sizes(d_in: int, d_out: int, heads: int, width: int) -> str:
    return f"{d_in} to {d_out}" + (f" ({heads} heads of {width})" if heads else "")


def _found(ref: str | Path) -> Path:
    try:
        path = Path(ref).expanduser()
        path = path / IN_RUN if path.is_dir() else path
        is_there = path.is_file()
    except (OSError, ValueError, RuntimeError):
        is_there = False
    if not is_there:
        raise SpecError(
            f"there is no component file {safe_text(str(ref), limit=200)}; "
            "make one with mlxroles components svd"
        )
    kind = path.suffix.lower()
    if kind in PICKLES:
        raise SpecError(
            f"{shown(path)} may hold a pickle, which runs code when it is opened; save its state "
            "dict as .safetensors and give that to mlxroles components import"
        )
    if kind not in SUFFIXES:
        raise SpecError(f"{shown(path)} is no component file; they end in {' or '.join(SUFFIXES)}")
    return path


def _about(components: Components) -> dict[str, Any]:
    fields = ("layer", "kind", "n_heads", "d_head")
    maps = {key: {f: getattr(d, f) for f in fields} for key, d in components.maps.items()}
    return {"schema": SCHEMA, "maps": maps, "meta": dict(components.meta)}


def _of_arrays(about: Any, arrays: Mapping[str, np.ndarray]) -> Components:
    """Components of a file's parts, which may hold anything."""
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    maps = {}
    for key, facts in about["maps"].items():
        sizes = {f: int(facts[f]) for f in ("layer", "n_heads", "d_head")}
        v, u = arrays[f"{key}/V"], arrays[f"{key}/U"]
        maps[key] = Decomposition(key, kind=str(facts["kind"]), V=v, U=u, **sizes)
    rest = {n.removeprefix(_IMPORTANCE): a for n, a in arrays.items() if n.startswith(_IMPORTANCE)}
    meta = about["meta"]
    if not isinstance(meta, dict):
        raise TypeError("what belongs to it is no table")
    return Components(maps, rest, meta)


# --- formats ------------------------------------------------------------------------------------


def _safetensors(path: Path, arrays: Mapping[str, np.ndarray], about: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"mlxroles": about}}
    at = 0
    for name, array in arrays.items():
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts = (np.ascontiguousarray(a, dtype="<f4").tobytes() for a in arrays.values())
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def _read_safetensors(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    with plain_errors(path, verb="read"), path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(path.stat().st_size - 8, LARGEST_HEADER):
            raise ValueError("a header longer than the file")
        header = json.loads(file.read(length))
    about = header.get("__metadata__") if isinstance(header, dict) else None
    own = about.get("mlxroles") if isinstance(about, dict) else None
    if own is None:
        raise SpecError(
            f"{shown(path)} is no component file of mlxroles; a state dict of another program "
            "goes through mlxroles components import"
        )
    return own, {name: tensor.read(...) for name, tensor in open_tensors(path).items()}


def _hdf5(path: Path, arrays: Mapping[str, np.ndarray], about: str) -> bytes:
    with (
        plain_hdf5_errors(path),
        h5py.File(str(path), "w", driver="core", backing_store=False) as file,
    ):
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        # an attribute could not hold the facts of many maps
        file.create_dataset("about", data=about, dtype=h5py.string_dtype("utf-8"))
        file.attrs["schema"] = SCHEMA
        file.flush()
        return file.id.get_file_image()


def _read_hdf5(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    arrays: dict[str, np.ndarray] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            arrays[name] = np.asarray(item[...], dtype=np.float32)

    with plain_hdf5_errors(path, verb="read"), h5py.File(path, "r", locking=False) as file:
        if file.attrs.get("schema") != SCHEMA:
            raise SpecError(f"{shown(path)} is no component file: it has another schema")
        about = file["about"].asstr()[()]
        file.visititems(keep)
    return about, arrays
