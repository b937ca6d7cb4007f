"""HDF5 files that open in xarray: every axis of every variable is a dimension scale.

Not here: what is put into them. Only types that each netCDF reader knows are used, and text is
UTF-8 without the characters that HDF5 cannot hold.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from mlxroles.errors import StoreError
from mlxroles.store.files import explain

if TYPE_CHECKING:
    from mlxroles.store.schema import Coordinates, Variable

TEXT = h5py.string_dtype("utf-8")
Index = tuple[int | slice, ...]
BF16_NAN = 0x7FC0
MISSING_INT = -(2**31)
"""Stands for a missing value in an ``i4`` variable of a packed run (attribute ``_FillValue``)."""


def hdf5_text(text: str) -> str:
    r"""The text as HDF5 can hold it: NUL and lone surrogates as ``\x00`` and ``\ud800``."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def axis_values(values: Sequence[str | int | float] | int) -> list[str] | list[int] | list[float]:
    """The values along an axis in one type: all integers, all floats, or else all text."""
    given = list(range(values)) if isinstance(values, int) else list(values)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in given):
        return [int(value) for value in given]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        return [float(value) for value in given]
    return [str(value) for value in given]


def write_axes(file: h5py.File, coords: "Coordinates") -> dict[str, int]:
    """Writes one dimension scale per axis; returns the length of each axis.

    Raises:
        ValueError: an axis has no values or names one twice.
    """
    sizes = {}
    for axis, given in coords.items():
        values = axis_values(given)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"axis {axis!r} needs values, each of them once")
        if isinstance(values[0], str):
            data = np.array([hdf5_text(str(value)) for value in values], dtype=object)
            scale = file.create_dataset(axis, data=data, dtype=TEXT)
        else:
            kind = "i4" if isinstance(values[0], int) else "f8"
            scale = file.create_dataset(axis, data=np.array(values, dtype=kind))
        scale.make_scale(axis)
        scale.attrs["long_name"] = axis
        sizes[axis] = len(values)
    return sizes


def attach_axes(file: h5py.File, dataset: h5py.Dataset, variable: "Variable") -> None:
    """Binds each axis of a dataset to its scale and writes unit and description."""
    for number, axis in enumerate(variable.axes):
        dataset.dims[number].attach_scale(file[axis])
    dataset.attrs["units"] = hdf5_text(variable.unit)
    dataset.attrs["long_name"] = hdf5_text(variable.long_name or variable.name)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers that 16 bits of bfloat16 each stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The 16 bits of bfloat16 nearest to each float32 number, ties to even as in MLX."""
    bits = np.asarray(values, order="C").view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(BF16_NAN), rounded).astype(np.uint16)


@contextmanager
def plain_hdf5_errors(path: Path, *, verb: str = "written") -> Generator[None]:
    """Turns an error of HDF5 into a StoreError of one line that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise StoreError(explain(error, path, verb=verb)) from error


def selected_shape(index: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a part of an array.

    Raises:
        ValueError: an index is out of range, or there are too many or too few.
    """
    if len(index) != len(shape):
        raise ValueError(f"{len(index)} indices for {len(shape)} axes")
    selected = []
    for part, size in zip(index, shape, strict=True):
        if isinstance(part, slice):
            selected.append(len(range(size)[part]))
        elif not 0 <= part < size:
            raise ValueError(f"index {part} is outside 0..{size - 1}")
    return tuple(selected)
