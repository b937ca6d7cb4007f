"""Packs the results of a run into ``run.h5``, the one file that people read.

It is derived: built from the journal and the arrays of the cells, whole and in memory, and
renamed into place. A cell that is missing or failed leaves NaN.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from mlxroles.errors import StoreError
from mlxroles.plan import canonical_json
from mlxroles.store.files import MIB, require_space, write_atomic
from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.hdf5 import (
    MISSING_INT,
    TEXT,
    attach_axes,
    axis_values,
    hdf5_text,
    write_axes,
)
from mlxroles.store.schema import Coordinates, Variable

SCHEMA = "mlxroles/run-h5/1"
_FILL = {"f4": np.nan, "f8": np.nan, "i4": MISSING_INT, "str": ""}


def pack(
    folder: RunFolder,
    variables: Sequence[Variable],
    coords: Coordinates,
    *,
    records: Iterable[Record] | None = None,
    out: Path | None = None,
) -> Path:
    """Builds ``run.h5`` from what the run has stored so far; returns its path.

    A variable takes its numbers from the value of that name in each cell's journal line, else from
    the array of that name. Axes of the variable that the cell has as coordinates place the cell;
    the others, in their order, are the axes of the value, which may be a number, a nested list or
    a mapping from the values of an axis; a list shorter than its axis leaves the rest NaN. A cell
    with a coordinate on one of ``coords`` that the variable does not have is no part of it.

    Args:
        folder: the run.
        variables: what the file holds.
        coords: the values along each axis.
        records: the cells, if their names or coordinates differ from those of the journal.
        out: where the file goes, if not into the run folder.

    Raises:
        StoreError: a value does not fit its variable, or the file cannot be written.
    """
    axes = {name: _Axis(name, values) for name, values in coords.items()}
    columns = [_Column(variable, axes) for variable in variables]
    for record in folder.records().values() if records is None else records:
        if record.status == "ok":
            _add(record, columns, folder)
    image = _image(folder, columns, coords)
    path = out if out is not None else folder.path / "run.h5"
    require_space(path.parent, len(image))
    write_atomic(path, image)
    return path


class _Axis:
    """The values along an axis and where each stands."""

    def __init__(self, name: str, values: Sequence[str | int | float] | int) -> None:
        self.name = name
        typed = axis_values(values)
        self.index: dict[object, int] = {value: number for number, value in enumerate(typed)}
        # The keys of a JSON object are text, also those that stand for layers.
        self.by_text = {str(value): number for number, value in enumerate(typed)}

    def find(self, value: object, owner: str) -> int:
        """Where a value stands."""
        number = self.index.get(value, self.by_text.get(str(value)))
        if number is None:
            raise StoreError(f"{owner} has {self.name}={value!r}, which that axis lacks")
        return number


class _Column:
    """A variable while it is filled."""

    def __init__(self, variable: Variable, axes: Mapping[str, _Axis]) -> None:
        if variable.dtype not in _FILL or not set(variable.axes) <= axes.keys():
            raise ValueError(f"{variable.name}: unknown dtype or axis in {variable}")
        self.variable = variable
        self.declared = axes.keys()
        self.axes = [axes[name] for name in variable.axes]
        shape = [len(axis.index) for axis in self.axes]
        kind = object if variable.dtype == "str" else variable.dtype
        self.data = np.full(shape, _FILL[variable.dtype], dtype=kind)
        self.owners: dict[tuple[object, ...], str] = {}

    def takes(self, coords: Mapping[str, object]) -> bool:
        """Whether a cell at these coordinates is part of the variable."""
        return not (coords.keys() & self.declared) - set(self.variable.axes)

    def put(self, record: Record, coords: Mapping[str, object], value: object) -> None:
        """Places a cell's value."""
        owner = f"cell {record.id}"
        at = tuple(
            axis.find(coords[axis.name], owner) if axis.name in coords else slice(None)
            for axis in self.axes
        )
        key = tuple(index if isinstance(index, int) else None for index in at)
        if self.owners.setdefault(key, record.id) != record.id:
            raise ValueError(
                f"{self.variable.name}: {owner} and cell {self.owners[key]} have one place"
            )
        inner = [axis for axis in self.axes if axis.name not in coords]
        self._fill(self.data[(*at, ...)], value, inner, owner)

    def _fill(self, place: np.ndarray, value: object, inner: list[_Axis], owner: str) -> None:
        if isinstance(value, Mapping) and inner:
            for key, item in value.items():
                self._fill(place[inner[0].find(key, owner), ...], item, inner[1:], owner)
            return
        try:
            array = _typed(value, self.variable.dtype)
        except (TypeError, ValueError):
            array = None
        if array is None or array.ndim != place.ndim or np.any(array.shape > np.array(place.shape)):
            axes = ", ".join(axis.name for axis in inner) or "a single value"
            raise StoreError(f"{owner}: the value of {self.variable.name} does not fit ({axes})")
        place[(*(slice(size) for size in array.shape), ...)] = array


def _typed(value: object, dtype: str) -> np.ndarray:
    if dtype == "str":
        flat = np.asarray(value, dtype=object)
        texts = ["" if item is None else hdf5_text(str(item)) for item in flat.ravel()]
        typed = np.empty(flat.shape, dtype=object)
        typed.ravel()[:] = texts
        return typed
    numbers = np.asarray(value, dtype="f8")
    if dtype == "i4":
        return np.where(np.isfinite(numbers), numbers, MISSING_INT).astype("i4")
    with np.errstate(over="ignore"):
        return numbers.astype(dtype)


def _add(record: Record, columns: Sequence[_Column], folder: RunFolder) -> None:
    coords = {axis: value for axis, value in record.coords.items() if value is not None}
    arrays: dict[str, np.ndarray] | None = None
    for column in columns:
        name = column.variable.name
        if not column.takes(coords):
            continue
        if name in record.values:
            column.put(record, coords, record.values[name])
        elif record.arrays is not None:
            if arrays is None:
                arrays = folder.arrays(record.id)
            if name in arrays:
                column.put(record, coords, arrays[name])


def _image(folder: RunFolder, columns: Sequence[_Column], coords: Coordinates) -> bytes:
    with h5py.File(str(folder.path / "run.h5"), "w", driver="core", backing_store=False) as file:
        write_axes(file, coords)
        for column in columns:
            variable, data = column.variable, column.data
            large = data.nbytes > MIB and data.ndim > 0
            packing = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            kind = TEXT if variable.dtype == "str" else variable.dtype
            dataset = file.create_dataset(
                variable.name, data=data, dtype=kind, **(packing if large else {})
            )
            attach_axes(file, dataset, variable)
            if variable.dtype == "i4":
                dataset.attrs["_FillValue"] = np.int32(MISSING_INT)
        file.attrs["schema"] = SCHEMA
        file.attrs["run_id"] = folder.run_id
        file.attrs["experiment"] = hdf5_text(str(folder.manifest.get("experiment", "")))
        file.attrs["versions"] = canonical_json(folder.manifest.get("versions", {}))
        file.attrs["torn_lines"] = folder.torn_lines
        file.flush()
        return file.id.get_file_image()
