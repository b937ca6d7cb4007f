"""Compares ``run.h5`` with the cells that it was packed from, number by number."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlxroles.runs.cells import named
from mlxroles.store.folder import RunFolder
from mlxroles.store.reader import axes, read
from mlxroles.store.record import Record
from mlxroles.studies.ablate.axes import placed

_RUN_FILE = "run.h5"
_ABOUT_PROMPTS = ("length", "has_bos", "category", "tokens")
"""Variables of an entropy run that come from the manifest, not from cells."""
_LOOKS = ("attention_without", "attention_with")
"""Variables of an injection run that are looked at when all cells are there."""


@dataclass
class Compared:
    """How a packed file and the cells agree."""

    numbers: int = 0
    """Numbers that agree."""
    differing: dict[str, int] = field(default_factory=dict)
    """Cell -> numbers that the file has otherwise."""
    missing: dict[str, int] = field(default_factory=dict)
    """Cell -> numbers that the file lacks."""
    first: str = ""
    """The first difference in words."""
    strange: int = 0
    """Numbers in the file that no cell has."""


class _Column:
    """A variable of the file, and which of its places the cells account for."""

    def __init__(self, name: str, along: tuple[str, ...], data: np.ndarray) -> None:
        self.name, self.along, self.data = name, along, data
        self.seen = np.zeros(data.shape, dtype=bool)


def compare_packed(folder: RunFolder, kind: str, skipped: Collection[str]) -> Compared:
    """How the run's packed file agrees with its cells.

    Args:
        folder: The run.
        kind: Of the run.
        skipped: Cells whose arrays cannot be read.

    Raises:
        StoreError: the file cannot be read.
    """
    path = folder.path / _RUN_FILE
    named_axes = axes(path)
    columns = {
        name: _Column(name, along, np.asarray(read(path, name)))
        for name, along in named_axes.items()
        if name not in (*_ABOUT_PROMPTS, *_LOOKS)
    }
    used = {axis for along in named_axes.values() for axis in along}
    places = {
        axis: {str(value): n for n, value in enumerate(read(path, axis))} for axis in sorted(used)
    }
    result = Compared()
    for record in folder.records().values():
        if record.status == "ok" and record.id not in skipped:
            _cell(folder, kind, record, (columns, places), result)
    for column in columns.values():
        if column.data.dtype.kind == "f":
            result.strange += int(np.sum(~np.isnan(column.data) & ~column.seen))
    return result


def _cell(
    folder: RunFolder,
    kind: str,
    record: Record,
    file: tuple[Mapping[str, _Column], Mapping[str, Mapping[str, int]]],
    result: Compared,
) -> None:
    columns, places = file
    if kind == "ablate":
        identity: Any = folder.manifest["identity"]
        record = placed(identity, record)
        coords = {axis: str(value) for axis, value in record.coords.items()}
    else:
        coords = _coords(folder, kind, record)
    known, number = places.get("prompt", {}), str(record.coords.get("prompt"))
    if coords.get("prompt") not in known and number in known:
        coords["prompt"] = number  # a file that counts its prompts
    for name, value in _values(folder, record, coords):
        column = columns.get(name)
        if column is None or column.data.dtype.kind != "f":
            continue
        index = _index(column.along, coords, places)
        if index is None:
            result.missing[record.id] = result.missing.get(record.id, 0) + 1
            continue
        target = column.data[index]
        with np.errstate(over="ignore"):
            expected = np.asarray(value, dtype="f8").astype(column.data.dtype)
        if expected.ndim != target.ndim or np.any(np.array(expected.shape) > target.shape):
            _differ(result, record, f"{name} of {record.id} has another shape there")
            continue
        part = (*(slice(size) for size in expected.shape), ...)
        there = target[part]
        column.seen[index][part] = True
        same = (there == expected) | (np.isnan(there) & np.isnan(expected))
        result.numbers += int(np.sum(same))
        if np.all(same):
            continue
        if np.all(np.isnan(there)):
            result.missing[record.id] = result.missing.get(record.id, 0) + int(np.sum(~same))
            continue
        at = np.unravel_index(int(np.argmin(same)), same.shape)
        words = f"{name} of {record.id} is {there[at]!s} there and {expected[at]!s} in the journal"
        _differ(result, record, words, int(np.sum(~same)))


def _differ(result: Compared, record: Record, words: str, count: int = 1) -> None:
    result.differing[record.id] = result.differing.get(record.id, 0) + count
    result.first = result.first or words


def _coords(folder: RunFolder, kind: str, record: Record) -> dict[str, str]:
    """Coordinates as the packed file names them."""
    found = {axis: str(value) for axis, value in named(folder, record).items()}
    if kind == "patch":
        if "baseline" in found:
            return {"prompt": found["prompt"], "model": found["baseline"]}
        place = found.get("head", found.get("heads", found.get("position", "")))
        return {**found, "place": place, "control": found.get("control", "none")}
    return found


def _values(
    folder: RunFolder, record: Record, coords: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """What of a cell may stand in a packed file: plain numbers, arrays."""
    prefix = "baseline_" if "baseline" in record.coords else ""
    for name, value in record.values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
    if record.arrays is not None and coords.get("step") in (None, "estimate", "edges"):
        yield from folder.arrays(record.id).items()


def _index(
    along: tuple[str, ...], coords: Mapping[str, str], places: Mapping[str, Mapping[str, int]]
) -> tuple[Any, ...] | None:
    """Where a cell stands in a variable: a number where it has the coordinate, else a whole axis.

    None where the file lacks one of its coordinates.
    """
    index: list[int | slice] = []
    for axis in along:
        if axis not in coords:
            index.append(slice(None))
            continue
        place = places[axis].get(coords[axis])
        if place is None:
            return None
        index.append(place)
    return (*index, ...)
