"""A run as a long table: a line per number with every coordinate in a column of its own."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any

from mlxroles.errors import SpecError
from mlxroles.runs.cells import Array, Row, Source
from mlxroles.text import guarded

if TYPE_CHECKING:
    import numpy as np

_PART = 50_000
"""Lines that are in memory at once."""

Line = tuple[str, Mapping[str, str | int], str, float | int | str]
"""Cell, coordinates, measure, value."""


def columns(source: Source) -> list[str]:
    """The names of the axes of a run, in the order in which they are met.

    Raises:
        StoreError: the cells of the run cannot be read.
    """
    found: dict[str, None] = {}
    arrays_of: set[tuple[str, ...]] = set()
    for row in source.rows():
        found |= dict.fromkeys(row.coords)
        for number in row.numbers:
            found |= dict.fromkeys(number.at)
        # cells with the same axes of their own have the same arrays
        shape = (*row.coords, str(row.coords.get("step", "")), str(row.coords.get("site", "")))
        if shape not in arrays_of:
            arrays_of.add(shape)
            for array in row.arrays():
                found |= dict.fromkeys(array.axes)
    return list(found)


def lines(source: Source) -> Iterator[Line]:
    """Every number and text of a run, arrays number by number.

    Raises:
        StoreError: the cells or arrays of the run cannot be read.
    """
    for row in source.rows():
        for number in row.numbers:
            yield row.id, {**row.coords, **number.at}, number.measure, number.value
        for array in row.arrays():
            yield from _of_array(row, array)


def _of_array(row: Row, array: Array) -> Iterator[Line]:
    import numpy as np

    for index in np.ndindex(*array.data.shape):
        place = {
            axis: labels[n] for axis, labels, n in zip(array.axes, array.labels, index, strict=True)
        }
        yield row.id, {**row.coords, **place}, array.name, _number(array.data, index)


def _number(data: "np.ndarray", index: tuple[int, ...]) -> float | int:
    value = data[index].item()
    # The shortest decimal that is this 32-bit number, not the 64-bit one nearest to it.
    return float(str(data[index])) if data.dtype.kind == "f" and data.itemsize < 8 else value


def write_csv(source: Source, file: IO[bytes], _: str) -> dict[str, Any]:
    """Writes the table as CSV in UTF-8; NaN is an empty field, texts cannot become formulas."""
    axes = columns(source)
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "cell", *map(guarded, axes), "measure", "value", "text"])
    count = 0
    for cell, coords, measure, value in lines(source):
        is_text = isinstance(value, str)
        places = [_field(coords.get(axis, "")) for axis in axes]
        number = "" if is_text or _is_nan(value) else value
        words = guarded(value) if isinstance(value, str) else ""
        named = [guarded(source.run_id), guarded(cell)]
        table.writerow([*named, *places, guarded(measure), number, words])
        count += 1
    text.flush()
    text.detach()
    return {"rows": count, "columns": ["run", "cell", *axes, "measure", "value", "text"]}


def write_json(source: Source, file: IO[bytes], mark: str) -> dict[str, Any]:
    """Writes one JSON document with a list of objects; what is not finite becomes null."""
    schema, _, run = mark.partition(" ")
    head = {"schema": schema, "run": run, "export": mark, "kind": source.kind}
    file.write(json.dumps(head).encode("ascii").removesuffix(b"}") + b', "rows": [')
    count = 0
    for cell, coords, measure, value in lines(source):
        is_infinite = isinstance(value, float) and not math.isfinite(value)
        doc = {"cell": cell, **coords, "measure": measure, "value": None if is_infinite else value}
        file.write((b",\n" if count else b"\n") + json.dumps(doc).encode("ascii"))
        count += 1
    file.write(b"\n]}\n")
    return {"rows": count}


def write_parquet(source: Source, file: IO[bytes], mark: str) -> dict[str, Any]:
    """Writes the table as Parquet, in row groups.

    Raises:
        SpecError: pyarrow is not installed.
    """
    try:
        # by name: it is no dependency, and no type checker need find it
        pa, pq = (import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise SpecError(
            "--to parquet needs pyarrow: pip install 'mlxroles[export]' (or use --to csv)"
        ) from error
    axes = columns(source)
    kinds = _kinds(source, axes)
    names = ["run", "cell", *axes, "measure", "value", "text"]
    types = [pa.string(), pa.string(), *(pa.int64() if kinds[a] else pa.string() for a in axes)]
    fields = list(zip(names, [*types, pa.string(), pa.float64(), pa.string()], strict=True))
    schema = pa.schema(fields, metadata={"export": mark})
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        for part in _parts(lines(source)):
            rows = [_record(source, axes, kinds, line) for line in part]
            by_name = {name: [row[n] for row in rows] for n, name in enumerate(names)}
            writer.write_table(pa.table(by_name, schema=schema))
            count += len(rows)
    return {"rows": count, "columns": names}


def _kinds(source: Source, axes: Sequence[str]) -> dict[str, bool]:
    """Whether an axis has integers alone."""
    found = dict.fromkeys(axes, True)
    for row in source.rows():
        for place in (row.coords, *(number.at for number in row.numbers)):
            for axis, value in place.items():
                found[axis] &= isinstance(value, int)
    return found | dict.fromkeys({"source", "target"} & found.keys(), False)


def _record(
    source: Source, axes: Sequence[str], kinds: Mapping[str, bool], line: Line
) -> list[Any]:
    cell, coords, measure, value = line
    is_text = isinstance(value, str)
    places = [coords.get(axis) for axis in axes]
    typed = [
        place if place is None or kinds[axis] else _clean(str(place))
        for axis, place in zip(axes, places, strict=True)
    ]
    number = None if is_text else float(value)
    words = _clean(value) if isinstance(value, str) else None
    return [source.run_id, _clean(cell), *typed, _clean(measure), number, words]


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _parts(found: Iterator[Line]) -> Iterator[list[Line]]:
    part: list[Line] = []
    for line in found:
        part.append(line)
        if len(part) == _PART:
            yield part
            part = []
    if part:
        yield part


def _field(value: str | int) -> str | int:
    return guarded(value) if isinstance(value, str) else value


def _is_nan(value: float | int | str) -> bool:
    return isinstance(value, float) and math.isnan(value)
