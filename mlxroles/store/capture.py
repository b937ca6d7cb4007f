"""Capture files: what happened inside a model, one HDF5 file, written whole.

``CaptureFile`` writes beside the final place and renames at the end, so that a file under its
final name is complete. Prompts of different lengths are padded: NaN for numbers, -1 for token
ids. HDF5 has no bfloat16: such arrays are kept as their 16 bits with the attribute
``dtype="bfloat16"``, which ``read`` undoes.
"""

import fcntl
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import h5py
import numpy as np

from mlxroles.errors import StoreError
from mlxroles.store.files import (
    MIB,
    plain,
    plain_errors,
    require_space,
    shown,
    sync,
    sync_folder,
    temporary,
    write_all,
)
from mlxroles.store.hdf5 import (
    BF16_NAN,
    TEXT,
    Index,
    attach_axes,
    from_bf16,
    hdf5_text,
    plain_hdf5_errors,
    selected_shape,
    to_bf16,
    write_axes,
)
from mlxroles.store.reader import axes, read
from mlxroles.store.schema import Coordinates, Variable

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["CaptureFile", "Store", "axes", "read"]

SCHEMA = "mlxroles/capture/1"
Store = Literal["f32", "f16", "bf16"]

_PREFIX = "mlxroles-capture"
PADDING_ID = -1
"""Stands after the last token of a prompt in integer variables."""

_KINDS = {"f32": "f4", "f16": "f2", "bf16": "u2"}
_ONE_PER_CHUNK = ("prompt", "layer")
_CHUNK_CAPS = {"position": 128, "query": 128}
_CHUNK_BYTES = 4 * MIB
_LARGEST_ATTRIBUTE = 60_000
_COMPRESSED_AXES = ("query",)


class _Sink(io.FileIO):
    """What HDF5 writes into: it keeps the first error and passes over all that follows.

    HDF5 itself would try again to write its caches at every later call and at every object that
    goes out of scope, and report each failure on its own.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+")
        with suppress(OSError):
            fcntl.flock(self.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.error: OSError | None = None

    def write(self, data: "Buffer", /) -> int:
        """Writes all of the data."""
        if self.error is None:
            try:
                write_all(self.fileno(), data)
            except OSError as error:
                self.error = error
        return len(memoryview(data))

    def truncate(self, size: int | None = None, /) -> int:
        """Sets the length of the file."""
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0

    def check(self) -> None:
        """Raises the first error."""
        if self.error is not None:
            raise self.error


def _remove_dead(folder: Path) -> None:
    """Removes what killed captures left: files of gigabytes that nobody would look for."""
    for temp in sorted(folder.glob(f"{_PREFIX}-*.tmp")):
        # A living writer holds the lock; where there are no locks nothing is removed.
        with suppress(OSError), io.FileIO(temp, "r+") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            temp.unlink()


class CaptureFile:
    """Writes a capture; as a context manager it is kept on success and removed on an exception.

    Args:
        path: the file; it appears there when ``close`` returns.
        variables: the arrays, see ``schema.CAPTURE_VARIABLES``.
        coords: the values along each axis, or its length.
        attrs: what else the file says about itself; no numbers or text is stored as JSON.
        store: type of the variables whose dtype is ``store``.
        overwrite: replace a file that is there already.

    Raises:
        StoreError: the file exists or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        variables: Sequence[Variable],
        *,
        coords: Coordinates,
        attrs: Mapping[str, object] | None = None,
        store: Store = "f32",
        overwrite: bool = False,
    ) -> None:
        """Creates the temporary file with every dataset in its full size."""
        self.path = path
        self._store: Store = store
        self._overwrite = overwrite
        self._is_closed = False
        self._variables = {variable.name: variable for variable in variables}
        self._refuse_existing()
        with ExitStack() as stack:
            stack.enter_context(plain_hdf5_errors(self.path))
            _remove_dead(self.path.parent)
            self._temp = stack.enter_context(temporary(self.path, prefix=_PREFIX))
            self._sink = stack.enter_context(_Sink(self._temp))
            self._file = stack.enter_context(h5py.File(self._sink, "w", rdcc_nbytes=32 * MIB))
            sizes = write_axes(self._file, coords)
            self._check_space(sizes)
            for variable in variables:
                self._create(variable, sizes)
            self._file.attrs["schema"] = SCHEMA
            for name, value in (attrs or {}).items():
                self._file.attrs[hdf5_text(name)] = _attribute(name, value)
            self._stack = stack.pop_all()

    def _refuse_existing(self) -> None:
        with plain_errors(self.path):
            if self.path.is_dir() or (self.path.exists() and not self._overwrite):
                raise StoreError(
                    f"{shown(self.path)} exists: choose another name with --out, or remove it"
                )
            if not self.path.parent.is_dir():
                raise StoreError(f"{shown(self.path.parent)} is no folder: create it first")

    def _kind(self, variable: Variable) -> str:
        return _KINDS[self._store] if variable.dtype == "store" else variable.dtype

    def _check_space(self, sizes: Mapping[str, int]) -> None:
        needed = 0
        for variable in self._variables.values():
            if variable.dtype != "str":
                n_values = int(np.prod([sizes[axis] for axis in variable.axes], dtype=np.int64))
                n_bytes = n_values * np.dtype(self._kind(variable)).itemsize
                # Half of a causal pattern is zeros, the rest shrinks too.
                needed += n_bytes // 4 if _is_compressed(variable) else n_bytes
        require_space(self.path.parent, needed)

    def _create(self, variable: Variable, sizes: Mapping[str, int]) -> None:
        kind = self._kind(variable)
        is_bf16 = variable.dtype == "store" and self._store == "bf16"
        fill = {"i4": PADDING_ID, "u2": BF16_NAN, "str": ""}.get(kind, np.nan)
        options: dict[str, object] = {}
        if variable.axes and kind != "str":
            itemsize = np.dtype(kind).itemsize
            options["chunks"] = _chunks(variable, sizes, itemsize)
        if _is_compressed(variable):
            options |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        dataset = self._file.create_dataset(
            variable.name,
            shape=tuple(sizes[axis] for axis in variable.axes),
            dtype=TEXT if kind == "str" else kind,
            fillvalue=fill,
            **options,
        )
        attach_axes(self._file, dataset, variable)
        if is_bf16:
            dataset.attrs["dtype"] = "bfloat16"

    def put(self, name: str, index: Index, array: object) -> None:
        """Writes a part of a variable, e.g. ``put("resid_post", (0, 3, slice(0, 17)), array)``.

        Args:
            name: the variable.
            index: one integer or slice per leading axis; the axes that follow are taken whole.
            array: exactly the part's shape, nothing is broadcast; numbers in any float type.

        Raises:
            StoreError: a finite number does not fit the stored type, or the disk is full.
        """
        variable = self._variables[name]
        dataset = self._file[name]
        full = (*index, *(slice(None),) * (dataset.ndim - len(index)))
        expected = selected_shape(full, dataset.shape)
        data = self._convert(variable, array)
        if data.shape != expected:
            raise ValueError(f"{name}: shape {data.shape} for a part of shape {expected}")
        with plain_hdf5_errors(self.path):
            dataset[full] = data
            self._sink.check()

    def _convert(self, variable: Variable, array: object) -> np.ndarray:
        if variable.dtype == "str":
            texts = np.asarray(array, dtype=object)
            safe = np.array([hdf5_text(str(text)) for text in texts.ravel()], dtype=object)
            return safe.reshape(texts.shape)
        if variable.dtype == "i4":
            return np.asarray(array).astype("i4", casting="same_kind")
        data = np.asarray(array)
        with np.errstate(over="ignore"):
            if variable.dtype == "store" and self._store == "bf16":
                stored = to_bf16(data.astype("f4"))
                back = from_bf16(stored)
            else:
                stored = back = data.astype(self._kind(variable), copy=False)
        lost = np.isinf(back) & np.isfinite(data)
        if np.any(lost):
            others = "f32 or bf16" if self._store == "f16" else "f32"
            raise StoreError(
                f"{variable.name}: values up to {np.max(np.abs(data[lost])):.3g} do not fit"
                f" {self._store}: use --store {others}"
            )
        return stored

    def close(self) -> Path:
        """Brings the file onto the medium and to its final name, which it returns.

        Raises:
            StoreError: that failed; nothing is left behind.
        """
        if self._is_closed:
            return self.path
        with plain_hdf5_errors(self.path), self._stack:
            self._file.close()
            self._sink.check()
            sync(self._sink.fileno())
            self._refuse_existing()
            self._temp.replace(self.path)
            sync_folder(self.path.parent)
        self._is_closed = True
        return self.path

    def discard(self) -> None:
        """Removes what was written so far; does nothing after ``close``."""
        with plain_hdf5_errors(self.path):
            self._stack.close()

    def __enter__(self) -> Self:
        """Returns the writer; the block's end closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keeps the file if the block succeeded, else removes it."""
        if kind is None:
            self.close()
        else:
            self.discard()


def _is_compressed(variable: Variable) -> bool:
    return any(axis in _COMPRESSED_AXES for axis in variable.axes)


def _chunks(variable: Variable, sizes: Mapping[str, int], itemsize: int) -> tuple[int, ...]:
    chunk: list[int] = []
    n_bytes = itemsize
    for axis in reversed(variable.axes):
        room = max(1, _CHUNK_BYTES // n_bytes)
        size = min(sizes[axis], room, _CHUNK_CAPS.get(axis, sizes[axis]))
        chunk.append(1 if axis in _ONE_PER_CHUNK and len(variable.axes) > 1 else size)
        n_bytes *= chunk[-1]
    return tuple(reversed(chunk))


def _attribute(name: str, value: object) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        value = json.dumps(plain(value), allow_nan=False)
    if isinstance(value, str):
        value = hdf5_text(value)
        if len(value.encode("utf-8")) > _LARGEST_ATTRIBUTE:
            raise ValueError(f"attribute {name!r} is too long for HDF5")
    return value
