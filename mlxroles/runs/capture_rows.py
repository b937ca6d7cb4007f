"""The prompts of a capture as rows: from its file where it is whole, else from its parts."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.runs.captures import as_damage, file_of
from mlxroles.runs.cells import Array, Row
from mlxroles.store.folder import RunFolder
from mlxroles.store.reader import axes, read
from mlxroles.store.record import Record
from mlxroles.store.schema import CAPTURE_VARIABLES

_ALONG_TOKENS = ("position", "query", "key")
_ABOUT = ("tokens", "length")


def rows(path: Path, folder: RunFolder | None) -> Iterator[Row]:
    """A row for every captured prompt.

    Args:
        path: The run folder, or the file.
        folder: The run folder, open, where it is there.

    Raises:
        StoreError: something cannot be read.
    """
    file = file_of(path)
    if file is not None:
        yield from _of_file(file)
    elif folder is not None:
        yield from _of_parts(folder)


def _of_file(file: Path) -> Iterator[Row]:
    with as_damage(file):
        lengths = [int(length) for length in read(file, "length")]
        named = list(zip(read(file, "prompt"), lengths, strict=True))
    for n, (name, length) in enumerate(named):
        coords: dict[str, str | int] = {"prompt": str(name)}
        yield Row(f"prompt={name}", coords, (), partial(_from_file, file, n, length))


def _from_file(file: Path, prompt: int, length: int) -> Iterator[Array]:
    with as_damage(file):
        found = axes(file)
        by_layer = any("layer" in along for along in found.values())
        layers = [int(layer) for layer in read(file, "layer")] if by_layer else []
        for name, along in found.items():
            if name in _ABOUT:
                continue
            inner = tuple(axis for axis in along if axis not in ("prompt", "layer"))
            cut = tuple(slice(0, length) if a in _ALONG_TOKENS else slice(None) for a in inner)
            for n, layer in enumerate(layers) if "layer" in along else [(None, None)]:
                index = (prompt, *(() if n is None else (n,)), *cut)
                data = read(file, name, index)
                if layer is not None and data.size and np.isnan(data).all():
                    continue  # a layer without this site
                yield _labelled(name, layer, inner, data)


def _of_parts(folder: RunFolder) -> Iterator[Row]:
    identity: Any = folder.manifest["identity"]
    for record in folder.records().values():
        batch: Any = record.coords.get("prompts", [])
        for row, n in enumerate(batch if record.status == "ok" else ()):
            with as_damage(folder.path):
                name = str(identity["prompts"][n][0])
            arrays = partial(_from_part, folder, record, row)
            yield Row(f"prompt={name}", {"prompt": name}, (), arrays)


def _from_part(folder: RunFolder, record: Record, row: int) -> Iterator[Array]:
    with as_damage(folder.path):
        found = folder.arrays(record.id)
        for full in sorted(found, key=_in_order):
            name, _, layer = full.partition(".")
            inner = tuple(a for a in CAPTURE_VARIABLES[name].axes if a not in ("prompt", "layer"))
            yield _labelled(name, int(layer) if layer else None, inner, found.pop(full)[row])


def _in_order(full: str) -> tuple[str, int]:
    name, _, layer = full.partition(".")
    return name, int(layer or 0)


def _labelled(name: str, layer: int | None, inner: tuple[str, ...], data: np.ndarray) -> Array:
    along = tuple(range(size) for size in data.shape)
    if layer is None:
        return Array(name, inner, along, data)
    return Array(name, ("layer", *inner), ([layer], *along), data[np.newaxis])
