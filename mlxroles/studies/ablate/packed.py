"""``run.h5`` of an ablation run: every number of every cell, with named axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.schema import Variable
from mlxroles.studies.ablate.axes import LISTED, axes_of, placed

Arrays = Mapping[str, np.ndarray]


def pack_run(folder: RunFolder) -> None:
    """Packs what the run has stored; nothing is written where that is nothing.

    Cells of a test at single positions stand along ``case``, a prompt and a position of it. Means
    of random sets are variables of their own, ``random_`` before the name.

    Raises:
        StoreError: something cannot be read or written.
    """
    identity: Any = folder.manifest["identity"]
    test = str(identity["test"])
    records = [
        placed(identity, record)
        for record in folder.records().values()
        if record.status == "ok" and "skipped" not in record.values
    ]
    if not records:
        return
    arrays = {one.id: folder.arrays(one.id) if one.arrays else {} for one in records}
    variables = [
        *_of_arrays(test, records, arrays),
        *_of_numbers([record for record in records if "random" in record.coords]),
    ]
    sizes = _sizes(variables, arrays)
    coords: dict[str, Sequence[str | int] | int] = {}
    for axis in dict.fromkeys(axis for variable in variables for axis in variable.axes):
        listed = identity.get(f"{axis}s") if axis in LISTED else None
        if axis == "prompt":
            coords[axis] = [str(prompt[0]) for prompt in identity["prompts"]]
        elif isinstance(listed, list) and len(listed) == sizes.get(axis):
            coords[axis] = [n if isinstance(n, int) else str(n) for n in listed]
        elif axis in sizes:
            coords[axis] = sizes[axis]
        else:
            found = dict.fromkeys(record.coords.get(axis) for record in records)
            coords[axis] = [n if isinstance(n, int) else str(n) for n in found if n is not None]
    pack(folder, variables, coords, records=records)


def _of_arrays(
    test: str, records: Sequence[Record], arrays: Mapping[str, Arrays]
) -> list[Variable]:
    found: dict[str, Variable] = {}
    for record in records:
        for name, array in arrays[record.id].items():
            own = axes_of(test, name, array.ndim)
            kind = "i4" if array.dtype.kind in "iu" else "f4"
            found.setdefault(name, Variable(name, (*record.coords, *own), kind))
    return list(found.values())


def _of_numbers(records: Sequence[Record]) -> list[Variable]:
    axes = {name: tuple(record.coords) for record in records for name in record.values}
    return [Variable(name, of) for name, of in axes.items()]


def _sizes(variables: Sequence[Variable], arrays: Mapping[str, Arrays]) -> dict[str, int]:
    """The longest that each axis of an array is in any cell."""
    axes = {variable.name: variable.axes for variable in variables}
    found: dict[str, int] = {}
    for of in arrays.values():
        for name, array in of.items():
            for axis, size in zip(axes[name][-array.ndim :], array.shape, strict=True):
                found[axis] = max(size, found.get(axis, 0))
    return found
