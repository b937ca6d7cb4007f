"""A run as named arrays: a column per measure and the arrays of the cells, streamed to a file."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mlxroles.runs.captures import as_damage, file_of, overview
from mlxroles.runs.cells import Row, Source
from mlxroles.store.files import require_space
from mlxroles.store.reader import axes, read

_SAFETENSORS = {"f4": "F32", "f8": "F64", "i4": "I32", "i8": "I64", "f2": "F16"}


class Tensor(NamedTuple):
    """One array of an export."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[np.ndarray]]
    """Reads it part by part, along the first axis."""

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def tensors(source: Source) -> tuple[list[Tensor], dict[str, list[str]]]:
    """The arrays of an export, and the text columns beside them.

    Raises:
        StoreError: the cells or arrays of the run cannot be read.
    """
    file = file_of(source.path) if source.kind == "capture" else None
    if file is not None:
        with as_damage(file):
            return _of_capture(file)
    rows = list(source.rows())
    texts: dict[str, list[str]] = {"cell": [row.id for row in rows]}
    found = []
    for axis in dict.fromkeys(axis for row in rows for axis in row.coords):
        values = [row.coords.get(axis) for row in rows]
        if all(isinstance(value, int) for value in values):
            found.append(_whole(f"coords/{axis}", np.array(values, dtype="i8")))
        else:
            texts[axis] = ["" if value is None else str(value) for value in values]
    found += _columns(rows)
    for row in rows:
        found += _of_cell(row)
    return found, texts


def _columns(rows: list[Row]) -> list[Tensor]:
    """A column per measure, NaN where a cell does not have it."""
    columns: dict[str, np.ndarray] = {}
    for n, row in enumerate(rows):
        for number in row.numbers:
            if isinstance(number.value, str):
                continue
            place = ",".join(f"{axis}={value}" for axis, value in number.at.items())
            name = f"values/{number.measure}" + (f"[{place}]" if place else "")
            if name not in columns:
                columns[name] = np.full(len(rows), np.nan)
            columns[name][n] = number.value
    return [_whole(name, column) for name, column in columns.items()]


def _whole(name: str, data: np.ndarray) -> Tensor:
    return Tensor(name, data.dtype, data.shape, lambda: iter([data]))


def _of_cell(row: Row) -> Iterator[Tensor]:
    is_capture = row.coords.keys() == {"prompt"}  # whose parts come layer by layer
    for n, array in enumerate(row.arrays()):
        name = f"arrays/{row.id}/{array.name}"
        if is_capture and array.axes[:1] == ("layer",):
            name += f".{array.labels[0][0]}"
        yield Tensor(name, array.data.dtype, array.data.shape, _again(row, n))


def _again(row: Row, number: int) -> Callable[[], Iterator[np.ndarray]]:
    def parts() -> Iterator[np.ndarray]:
        for n, array in enumerate(row.arrays()):
            if n == number:
                yield array.data
                return

    return parts


def _of_capture(file: Path) -> tuple[list[Tensor], dict[str, list[str]]]:
    shapes = {one["name"]: tuple(one["shape"]) for one in overview(file)["variables"]}
    found = []
    layered = any("layer" in along for along in axes(file).values())
    if layered:
        found.append(_whole("coords/layer", np.asarray(read(file, "layer"), dtype="i8")))
    for name in axes(file):
        first = read(file, name, (0,))
        shape = shapes[name]
        found.append(Tensor(name, first.dtype, shape, _slabs(file, name, shape)))
    return found, {"prompt": [str(name) for name in read(file, "prompt")]}


def _slabs(file: Path, name: str, shape: tuple[int, ...]) -> Callable[[], Iterator[np.ndarray]]:
    def parts() -> Iterator[np.ndarray]:
        with as_damage(file):
            for prompt in range(shape[0]):
                if len(shape) < 3:
                    yield read(file, name, (prompt,))
                    continue
                for n in range(shape[1]):
                    yield read(file, name, (prompt, n))

    return parts


def write_npz(source: Source, file: IO[bytes], mark: str) -> dict[str, Any]:
    """Writes an ``.npz`` that loads without pickle; texts are arrays of Unicode."""
    found, texts = tensors(source)
    require_space(Path(str(file.name)).parent, sum(one.n_bytes for one in found))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _member(archive, _whole("export", np.array([mark.encode()])))
        for name, column in texts.items():
            full = name if name == "cell" else f"coords/{name}"
            _member(archive, _whole(full, _unicode(column)))
        for one in found:
            _member(archive, one)
    return {"arrays": len(found) + len(texts)}


def _unicode(column: list[str]) -> np.ndarray:
    safe = [text.replace("\0", "\\x00") for text in column]
    return np.array(safe, dtype=f"U{max([1, *map(len, safe)])}")


def _member(archive: zipfile.ZipFile, one: Tensor) -> None:
    from numpy.lib import format as npy

    info = zipfile.ZipInfo(f"{one.name}.npy")
    header = {"descr": npy.dtype_to_descr(one.dtype), "fortran_order": False, "shape": one.shape}
    with archive.open(info, "w", force_zip64=True) as member:
        npy.write_array_header_2_0(member, header)
        for part in one.parts():
            member.write(np.asarray(part, one.dtype, order="C").tobytes())


def write_safetensors(source: Source, file: IO[bytes], mark: str) -> dict[str, Any]:
    """Writes a safetensors file; the text columns are in its metadata, as JSON."""
    found, texts = tensors(source)
    require_space(Path(str(file.name)).parent, sum(one.n_bytes for one in found))
    metadata = {"export": mark, "kind": source.kind}
    header: dict[str, Any] = {
        "__metadata__": metadata | {name: json.dumps(column) for name, column in texts.items()}
    }
    at = 0
    for one in found:
        kind = _SAFETENSORS[one.dtype.str[1:]]
        header[one.name] = {
            "dtype": kind,
            "shape": list(one.shape),
            "data_offsets": [at, at + one.n_bytes],
        }
        at += one.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for one in found:
        for part in one.parts():
            file.write(np.asarray(part, one.dtype, order="C").tobytes())
    return {"arrays": len(found) + len(texts)}
