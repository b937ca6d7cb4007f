"""Tensors by name in the files that vectors come in from elsewhere; read when asked for.

.npy and .npz without pickles, .safetensors and GGUF mapped into memory by their own headers, so
that one row of a dictionary of gigabytes costs one row, and a damaged file an error in one line.
"""

import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.errors import VectorError
from mlxroles.store.files import plain_errors, shown
from mlxroles.store.hdf5 import from_bf16
from mlxroles.text import safe_text

SAFETENSORS = {
    "F64": ("<f8", False),
    "F32": ("<f4", False),
    "F16": ("<f2", False),
    "BF16": ("<u2", True),
}
"""Name of a type -> numpy's, and whether it is bfloat16."""
GGUF = {0: ("<f4", False), 1: ("<f2", False), 28: ("<f8", False), 30: ("<u2", True)}
"""Number of a type in GGUF, likewise; the others are quantised or integers."""
LARGEST_HEADER = 100 * 2**20
"""Bytes of a header, as safetensors itself limits it."""
MOST_DIMENSIONS = 4
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RecursionError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)
"""What reading something else than the file's ending promises may end in."""
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """One array of a file."""

    shape: tuple[int, ...]
    read: Callable[[Any], np.ndarray]
    """The part at an index in float32; ``...`` stands for all of it."""


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The floating-point tensors of a file by name; a .npy file's has the file's own name.

    Raises:
        VectorError: a file that is damaged, or holds something else than such tensors.
        StoreError: it cannot be read.
    """
    kind = path.suffix.lower()
    with plain_errors(path, verb="read"):
        try:
            found = _READERS[kind](path)
        except _DAMAGE:
            raise _damaged(path) from None
    if not found:
        raise VectorError(f"{shown(path)} holds no tensor of floating-point numbers")
    return found


def _damaged(path: Path) -> VectorError:
    kind = path.suffix.lower()
    return VectorError(
        f"{shown(path)} is no whole {kind} file of plain numbers: make or copy it again"
    )


def _npy(path: Path) -> dict[str, Tensor]:
    array = np.lib.format.open_memmap(path, mode="r")
    return {path.stem: _plain(array)} if array.dtype.kind in "fiu" else {}


def _npz(path: Path) -> dict[str, Tensor]:
    found = {}
    with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                header = _HEADERS[np.lib.format.read_magic(file)]
                shape, _, dtype = header(file)
            if dtype.kind in "fiu":
                found[member.removesuffix(".npy")] = Tensor(shape, partial(_member, path, member))
    return found


def _member(path: Path, member: str, index: Any) -> np.ndarray:
    with plain_errors(path, verb="read"), path.open("rb") as opened:
        try:
            with zipfile.ZipFile(opened) as archive, archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except _DAMAGE:
            raise _damaged(path) from None
    return np.array(array[index], dtype=np.float32)


def _plain(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, lambda index: np.array(array[index], dtype=np.float32))


def _safetensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, LARGEST_HEADER):
            raise ValueError("a header longer than the file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("a header that is no table")
    found = {}
    for name, about in header.items():
        if name == "__metadata__" or about["dtype"] not in SAFETENSORS:
            continue
        shape = tuple(int(n) for n in about["shape"])
        if not shape or 0 in shape:
            continue
        start, end = about["data_offsets"]
        tensor = _Mapped(path, 8 + length + start, shape, *SAFETENSORS[about["dtype"]])
        if start < 0 or end - start != tensor.n_bytes:
            raise ValueError("a tensor of another size than its header says")
        found[name] = tensor.checked(size)
    return found


@dataclass(frozen=True)
class _Mapped:
    """A tensor that lies in a file as it is."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    is_bf16: bool

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def checked(self, size: int) -> Tensor:
        """The tensor, which lies inside the file."""
        outside = self.offset < 0 or self.offset + self.n_bytes > size
        if outside or any(n < 1 for n in self.shape):
            raise ValueError("a tensor outside the file")
        return Tensor(self.shape, self.read)

    def read(self, index: Any) -> np.ndarray:
        """The part at an index in float32."""
        with plain_errors(self.path, verb="read"):
            whole = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        part = np.array(whole[index])
        return from_bf16(part) if self.is_bf16 else part.astype(np.float32)


def _gguf(path: Path) -> dict[str, Tensor]:
    reader = _Bytes(path)
    if reader.take(4) != b"GGUF" or reader.number("<I") not in (2, 3):
        raise ValueError("no GGUF file of version 2 or 3")
    n_tensors, n_pairs = reader.number("<Q"), reader.number("<Q")
    about = {}
    for _ in range(n_pairs):
        key = reader.text()
        about[key] = reader.value(reader.number("<I"))
    infos = []
    for _ in range(n_tensors):
        name, n_dims = reader.text(), reader.number("<I")
        if n_dims > MOST_DIMENSIONS:
            raise ValueError("a tensor of too many axes")
        shape = tuple(reader.number("<Q") for _ in range(n_dims))[::-1]
        infos.append((name, shape, reader.number("<I"), reader.number("<Q")))
    step = about.get("general.alignment", 32)
    if not isinstance(step, int) or step < 1:
        raise ValueError("an alignment that is none")
    begin = -(-reader.at // step) * step
    if not any(name.startswith("direction.") for name, *_ in infos):
        kind = safe_text(str(about.get("general.architecture")), limit=40)
        raise VectorError(
            f"{shown(path)} has no tensor direction.N: it is no control vector, but of the kind "
            f"{kind}"
        )
    return {
        name: _Mapped(path, begin + offset, shape, *GGUF[kind]).checked(reader.size)
        for name, shape, kind, offset in infos
        if kind in GGUF
    }


class _Bytes:
    """The header of a GGUF file, read from its start; numbers are little-endian."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.data = file.read(LARGEST_HEADER)
        self.size, self.at = path.stat().st_size, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        part = self.data[self.at : self.at + count]
        if len(part) < count:
            raise ValueError("the header ends too early")
        self.at += count
        return part

    def number(self, form: str) -> int:
        """The next number."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def text(self) -> str:
        """The next string."""
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """The next value of metadata; None for a kind that nothing here depends on."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _SCALARS:
                self.take(_SCALARS[inner] * count)
                return None
            if depth > 2 or count > len(self.data):
                raise ValueError("an array that cannot be")
            for _ in range(count):
                self.value(inner, depth + 1)
            return None
        part = self.take(_SCALARS[kind])
        return int.from_bytes(part, "little") if kind not in (6, 7, 12) else None


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".gguf": _gguf,
}
SUFFIXES = tuple(_READERS)
"""Endings of the files that are read here."""


def listed_tensors(tensors: dict[str, Tensor], most: int = 4) -> str:
    """Names and shapes for a message."""
    parts = [
        f"{safe_text(name, limit=60)} {list(tensor.shape)}"
        for name, tensor in list(tensors.items())[:most]
    ]
    return ", ".join(parts) + (", ..." if len(tensors) > most else "")
