"""Reads captures and packed runs: plain arrays out, nothing that points to another file.

A file from elsewhere may hold links to, or sizes of, what it does not contain. Such things are
refused, not followed. Open only files whose origin you trust all the same: HDF5 itself is a large
C library.
"""

from pathlib import Path

import h5py
import numpy as np

from mlxroles.errors import StoreError
from mlxroles.store.files import MIB, shown
from mlxroles.store.hdf5 import Index, from_bf16, plain_hdf5_errors, selected_shape
from mlxroles.text import safe_text

# A deflate stream shrinks at most about 1032 times; above this a file claims more than it holds.
_LARGEST_RATIO, _SMALL_READ = 1100, 256 * MIB


def read(path: Path, name: str, index: Index = ()) -> np.ndarray:
    """Part of a variable or of an axis of a capture; bfloat16 comes as float32, text as str.

    Args:
        path: a capture file or a packed run.
        name: the variable.
        index: one integer or slice per leading axis; nothing takes all.

    Raises:
        StoreError: no such variable, a damaged file, or one that points to other files, which
            a file from elsewhere could use to show what is not its own.
    """
    with plain_hdf5_errors(path, verb="read"), h5py.File(path, "r", locking=False) as file:
        dataset = _own_dataset(file, path, name)
        full = (*index, *(slice(None),) * (dataset.ndim - len(index)))
        n_bytes = int(np.prod(selected_shape(full, dataset.shape), dtype=np.int64))
        n_bytes *= dataset.dtype.itemsize
        if n_bytes > _SMALL_READ + _LARGEST_RATIO * dataset.id.get_storage_size():
            raise StoreError(
                f"{shown(path)}: {safe_text(name)} claims far more than the file holds: it is"
                " damaged or not to be trusted"
            )
        if h5py.check_string_dtype(dataset.dtype) is not None:
            return np.asarray(dataset.asstr()[full], dtype=object)
        data = np.asarray(dataset[full])
        return from_bf16(data) if dataset.attrs.get("dtype") == "bfloat16" else data


def axes(path: Path) -> dict[str, tuple[str, ...]]:
    """The variables of a capture or packed run with the names of their axes.

    Raises:
        StoreError: the file cannot be read or points to other files.
    """
    found = {}
    with plain_hdf5_errors(path, verb="read"), h5py.File(path, "r", locking=False) as file:
        for name in file:
            dataset = _own_dataset(file, path, name)
            if not dataset.is_scale:
                # A scale lies in the root group under the axis name: "/layer".
                found[name] = tuple(_axis(dim) for dim in dataset.dims)
    return found


def _axis(dim: h5py.Dataset) -> str:
    """The name of an axis; a damaged file may have a scale without one."""
    return (dim[0].name or "").lstrip("/") if dim else ""


def _own_dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    names = list(file)
    if name not in names:
        raise StoreError(
            f"{shown(path)} has no variable {safe_text(name)}: it holds"
            f" {', '.join(safe_text(key) for key in names)}"
        )
    is_own = isinstance(file.get(name, getlink=True), h5py.HardLink)
    dataset = file[name] if is_own else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise StoreError(
            f"{shown(path)}: {safe_text(name)} is no plain array but a link, a group or data in"
            " another file, which is not followed"
        )
    return dataset
