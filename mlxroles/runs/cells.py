"""The stored cells of any run as plain rows: named coordinates, numbers, texts, labelled arrays.

The journal counts prompts; here they bear their names. What a cell holds in a nested form comes
out flat: a measure with further coordinates, such as the string or the head that it is about.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlxroles.errors import IntegrityError, SpecError
from mlxroles.runs.find import is_run
from mlxroles.store.files import shown
from mlxroles.store.folder import RunFolder
from mlxroles.store.record import Record
from mlxroles.studies.ablate.axes import LISTED
from mlxroles.studies.ablate.axes import axes_of as ablate_axes
from mlxroles.studies.circuits.axes import axes_of as circuits_axes
from mlxroles.studies.heads.axes import axes_of as heads_axes

if TYPE_CHECKING:
    import numpy as np

_AXES = {
    "entropy": ("layer", "head", "query", "near"),
    "edges": ("source", "target"),
}
_INJECT = {
    "added": ("draw", "layer", "scale", "readout"),
    "projected": ("draw", "direction", "readout"),
    "unedited": ("readout",),
}
_LISTED = (*LISTED, "scale", "direction", "readout")
"""Axes along which the identity says what stands, in the plural."""
_KV = ("k", "v")
_IN_ROWS = ("kind", "estimate", "exact")
"""What a row of an attribution's exact runs says of its place, beside where that is."""


class Number(NamedTuple):
    """One number, or text, of a cell."""

    measure: str
    at: Mapping[str, str | int]
    """Coordinates that come on top of the cell's."""
    value: float | int | str


class Array(NamedTuple):
    """One array of a cell with what stands along its axes."""

    name: str
    axes: tuple[str, ...]
    labels: tuple[Sequence[str | int], ...]
    """One per place along each axis."""
    data: "np.ndarray"


@dataclass(frozen=True)
class Row:
    """A stored cell, or one prompt of a capture."""

    id: str
    coords: Mapping[str, str | int]
    numbers: tuple[Number, ...]
    arrays: Callable[[], Iterator[Array]]
    """Reads the arrays one by one.

    Raises:
        StoreError: they cannot be read, or are not what was written.
    """


class Source(NamedTuple):
    """A run, or a capture file whose run folder is gone, as something to read rows from."""

    path: Path
    run_id: str
    kind: str
    folder: RunFolder | None

    def rows(self) -> Iterator[Row]:
        """Every cell that has numbers, in the order of computing.

        Raises:
            StoreError: the cells of the run cannot be read.
        """
        if self.kind == "capture":
            from mlxroles.runs.capture_rows import rows

            yield from rows(self.path, self.folder)
            return
        assert self.folder is not None
        for record in self.folder.records().values():
            if record.status == "ok":
                yield _row(self.folder, self.kind, record)


def source(path: Path) -> Source:
    """What to read from the run folder or capture file at a path.

    Raises:
        StoreError: it cannot be read.
        SpecError: it is neither.
    """
    if is_run(path):
        folder = RunFolder.read(path)
        identity: Any = folder.manifest.get("identity")
        kind = str(identity.get("kind")) if isinstance(identity, Mapping) else "?"
        return Source(path, str(folder.manifest.get("run_id", path.name)), kind, folder)
    if not path.is_file():
        raise SpecError(f"{shown(path)} is a sweep of several runs: name one of them")
    from mlxroles.runs.captures import run_id_of

    return Source(path, run_id_of(path) or path.stem, "capture", None)


def _row(folder: RunFolder, kind: str, record: Record) -> Row:
    return Row(
        record.id,
        named(folder, record),
        tuple(numbers(record.values)),
        partial(_arrays, folder, kind, record),
    )


def named(folder: RunFolder, record: Record) -> dict[str, str | int]:
    """The coordinates of a cell, its prompt by name; those that are None are left out.

    Raises:
        IntegrityError: the manifest has no such prompt.
    """
    found: dict[str, str | int] = {}
    for axis, value in record.coords.items():
        if value is None:
            continue
        is_plain = isinstance(value, str | int) and not isinstance(value, bool)
        found[axis] = value if is_plain else str(value)
    if isinstance(found.get("prompt"), int):
        try:
            identity: Any = folder.manifest["identity"]
            listed = identity["prompts"]
            listed = listed[found["variant"]] if isinstance(listed, Mapping) else listed
            found["prompt"] = str(listed[found["prompt"]][0])
        except (KeyError, IndexError, TypeError):
            raise IntegrityError(
                f"{shown(folder.path)}: cell {record.id} is about a prompt that the manifest does"
                " not name"
            ) from None
    return found


def numbers(values: Mapping[str, Any]) -> Iterator[Number]:
    """Every number and text of a cell, flat; what has no value is left out."""
    for name, value in values.items():
        yield from _flat(str(name), value, {})


def _flat(name: str, value: Any, at: Mapping[str, str | int]) -> Iterator[Number]:
    if isinstance(value, Mapping):
        if name == "strings":
            for text, inner in value.items():
                for measure, one in inner.items() if isinstance(inner, Mapping) else ():
                    yield from _flat(str(measure), one, {**at, "string": str(text)})
            return
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner, at)
    elif isinstance(value, list | tuple):
        yield from _listed(name, value, at)
    elif isinstance(value, str | int | float):
        yield Number(name, at, int(value) if isinstance(value, bool) else value)


def _listed(name: str, items: Sequence[Any], at: Mapping[str, str | int]) -> Iterator[Number]:
    axis = "top" if name.rpartition(".")[2].startswith("top") else "item"
    for n, item in enumerate(items):
        if isinstance(item, Mapping) and "exact" in item:
            place = {key: _plain(v) for key, v in item.items() if key not in _IN_ROWS}
            for key in _IN_ROWS:
                if item.get(key) is not None:
                    yield Number(key, {**at, **place}, item[key])
        elif isinstance(item, Mapping):
            for key, inner in item.items():
                yield from _flat(f"{name}.{key}", inner, {**at, axis: n})
        elif isinstance(item, list | tuple):
            yield Number(name, {**at, axis: n}, str(_plain(item)))
        else:
            yield from _flat(name, item, {**at, axis: n})


def _plain(value: Any) -> str | int:
    if isinstance(value, list | tuple):
        return " ".join(str(part) for part in value)
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _arrays(folder: RunFolder, kind: str, record: Record) -> Iterator[Array]:
    found = folder.arrays(record.id)
    identity: Any = folder.manifest.get("identity") or {}
    for name in sorted(found):  # a file gives them in any order
        data = found.pop(name)
        axes = axes_of(kind, name, data.ndim, test=str(identity.get("test")))
        labels = [range(size) for size in data.shape]
        yield Array(name, axes, tuple(_labels(folder, record, axes, labels)), data)


def axes_of(kind: str, name: str, n_axes: int, *, test: str = "") -> tuple[str, ...]:
    """Names of the axes of a cell's array; ``test`` is that of an ablation."""
    if kind == "entropy":
        known: tuple[str, ...] = _AXES["entropy"][:n_axes]
    elif name == "edges":
        known = _AXES["edges"]
    elif kind == "attribution":
        heads = () if n_axes == 2 else ("kv_head",) if name in _KV else ("head",)
        known = ("layer", *heads, "position")
    elif kind == "inject":
        known = _INJECT.get(name, ())
    elif kind == "ablate":
        known = ablate_axes(test, name, n_axes)
    elif kind == "heads":
        known = heads_axes(name, n_axes)
    elif kind == "circuits":
        known = circuits_axes(name, n_axes)
    else:
        known = ()
    return known if len(known) == n_axes else tuple(f"axis_{n}" for n in range(n_axes))


def _labels(
    folder: RunFolder, record: Record, axes: Sequence[str], sizes: Sequence[range]
) -> Iterator[Sequence[str | int]]:
    identity: Any = folder.manifest.get("identity") or {}
    ends: Any = {"source": record.values.get("sources"), "target": record.values.get("targets")}
    for axis, size in zip(axes, sizes, strict=True):
        listed = identity.get(f"{axis}s") if axis in _LISTED else ends.get(axis)
        if isinstance(listed, list) and len(listed) == len(size):
            yield [_plain(one) for one in listed]
        else:
            yield size
