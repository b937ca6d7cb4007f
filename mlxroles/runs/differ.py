"""What differs between two stored runs: in what was asked for, and in every number found.

Cells are matched by their coordinates, prompts by name, so that runs over other layers or prompts
are compared where they overlap. Single numbers are compared, never means.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlxroles.runs.cells import Array, Number, Row, Source

if TYPE_CHECKING:
    import numpy as np

TOLERANCE = 1e-6
"""Absolute difference beyond which numbers are counted."""
_NAMED = 20
"""Cells of one run alone that are named, at most."""
_LABELS = (".id", ".ids")
"""Ends of measures that name a token: they are the same or not, and nothing in between."""

Key = tuple[tuple[str, str], ...]


@dataclass
class Measure:
    """How one measure, or array, differs over all shared places."""

    name: str
    numbers: int = 0
    """Numbers that both runs have."""
    differing: int = 0
    beyond: int = 0
    """Differences larger than :data:`TOLERANCE`, or with NaN on one side."""
    one_side: int = 0
    """Numbers that one of the runs alone has, in cells that both have."""
    largest: float | None = None
    """The largest absolute difference; None without any that is a number."""
    where: str | None = None
    """Cell and place of it."""
    values: tuple[Any, Any] | None = None

    def add(self, here: Any, there: Any, where: str) -> None:
        """Compares one value."""
        self.numbers += 1
        if here == there or (_is_nan(here) and _is_nan(there)):
            return
        self.differing += 1
        difference = math.inf if self.name.endswith(_LABELS) else _difference(here, there)
        self.beyond += not difference <= TOLERANCE  # NaN is beyond
        if self.where is None or (difference > (self.largest or 0.0)):
            self.largest = difference if math.isfinite(difference) else self.largest
            self.where, self.values = where, (here, there)

    def add_array(self, here: Array, there: Array, where: str) -> None:
        """Compares two arrays where their labels agree."""
        import numpy as np

        pair = _aligned(here, there)
        if pair is None:
            self.one_side += here.data.size + there.data.size
            return
        one, other, labels = pair
        self.one_side += here.data.size + there.data.size - 2 * one.size
        self.numbers += one.size
        if not one.size:
            return
        one, other = np.asarray(one, "f8"), np.asarray(other, "f8")
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        if np.all(same):
            return
        with np.errstate(invalid="ignore"):
            size = np.where(same, 0.0, np.abs(one - other))
        self.differing += int(np.sum(~same))
        self.beyond += int(np.sum(~(size <= TOLERANCE)))
        finite = np.where(np.isfinite(size), size, -1.0)
        at = np.unravel_index(int(np.argmax(finite)), size.shape)
        difference = float(finite[at])
        if difference < 0:  # NaN or infinity on one side everywhere
            at = np.unravel_index(int(np.argmin(same)), size.shape)
        if self.where is None or difference > (self.largest or 0.0):
            self.largest = difference if difference >= 0 else self.largest
            place = ", ".join(
                f"{axis} {values[int(n)]}"
                for axis, values, n in zip(here.axes, labels, at, strict=True)
            )
            self.where = f"{where}: {place}" if place else where
            self.values = float(one[at]), float(other[at])


@dataclass
class Difference:
    """What two runs do not share."""

    spec: list[dict[str, Any]] = field(default_factory=list)
    """Fields of the identity that differ: field, first, second."""
    environment: list[dict[str, Any]] = field(default_factory=list)
    """The same of versions and device, which belong to no identity."""
    shared: int = 0
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    coordinates: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    """By coordinate, what the first run has alone and what the second has."""
    other_tokens: list[str] = field(default_factory=list)
    """Prompts of one name whose tokens differ."""
    measures: dict[str, Measure] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """Numbers that were compared."""
        return sum(measure.numbers for measure in self.measures.values())

    @property
    def differing(self) -> int:
        """Numbers that are not the same to the last bit."""
        return sum(measure.differing for measure in self.measures.values())

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "spec": self.spec,
            "environment": self.environment,
            "cells": {
                "shared": self.shared,
                "only_first": len(self.only_first),
                "only_second": len(self.only_second),
                "only_first_ids": self.only_first[:_NAMED],
                "only_second_ids": self.only_second[:_NAMED],
            },
            "coordinates": [
                {"coordinate": axis, "only_first": list(one), "only_second": list(other)}
                for axis, (one, other) in self.coordinates.items()
            ],
            "prompts_with_other_tokens": self.other_tokens,
            "numbers": self.numbers,
            "differing": self.differing,
            "tolerance": TOLERANCE,
            "measures": [dict(vars(measure)) for measure in self.measures.values()],
        }


def differ(first: Source, second: Source) -> Difference:
    """What differs between two runs.

    Raises:
        StoreError: the cells or arrays of one cannot be read.
    """
    found = Difference()
    one, other = _manifest(first), _manifest(second)
    found.spec = list(fields(one.get("identity"), other.get("identity")))
    for name in ("plan_version", "versions", "device"):
        found.environment += fields(one.get(name), other.get(name), name)
    found.other_tokens = _other_tokens(one.get("token_ids"), other.get("token_ids"))
    # the rows of the second run are looked up, those of the first come one by one
    known = {_key(row): row for row in second.rows()}
    here: dict[str, dict[str, None]] = {}
    there: dict[str, dict[str, None]] = {}
    for row in known.values():
        _collect(there, row)
    for row in first.rows():
        _collect(here, row)
        match = known.pop(_key(row), None)
        if match is None:
            found.only_first.append(row.id)
            continue
        found.shared += 1
        _numbers(found, row, match)
        _arrays(found, row, match)
    found.only_second = [row.id for row in known.values()]
    for axis in [*here, *(axis for axis in there if axis not in here)]:
        mine, theirs = here.get(axis, {}), there.get(axis, {})
        if mine.keys() != theirs.keys():
            alone = [v for v in mine if v not in theirs], [v for v in theirs if v not in mine]
            found.coordinates[axis] = alone
    return found


def _collect(values: dict[str, dict[str, None]], row: Row) -> None:
    """Takes in what a row has along each coordinate."""
    for axis, value in row.coords.items():
        values.setdefault(axis, {})[str(value)] = None


def fields(here: Any, there: Any, name: str = "") -> Iterator[dict[str, Any]]:
    """The fields in which two documents differ, nested ones with dots; lists are one value."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in [*here, *(key for key in there if key not in here)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from fields(here.get(key), there.get(key), inner)
    elif json.dumps(here) != json.dumps(there):
        yield {"field": name or "identity", "first": here, "second": there}


def _manifest(source: Source) -> Mapping[str, Any]:
    return {} if source.folder is None else source.folder.manifest


def _other_tokens(here: Any, there: Any) -> list[str]:
    if not isinstance(here, Mapping) or not isinstance(there, Mapping):
        return []
    return [str(name) for name in here if name in there and here[name] != there[name]]


def _key(row: Row) -> Key:
    return tuple(sorted((axis, str(value)) for axis, value in row.coords.items()))


def _at(number: Number) -> Key:
    return tuple((axis, str(value)) for axis, value in number.at.items())


def _numbers(found: Difference, row: Row, match: Row) -> None:
    there = {(n.measure, _at(n)): n for n in match.numbers}
    for number in row.numbers:
        measure = found.measures.setdefault(number.measure, Measure(number.measure))
        other = there.pop((number.measure, _at(number)), None)
        if other is None:
            measure.one_side += 1
            continue
        place = ", ".join(f"{axis} {value}" for axis, value in number.at.items())
        measure.add(number.value, other.value, f"{row.id}: {place}" if place else row.id)
    for number in there.values():
        found.measures.setdefault(number.measure, Measure(number.measure)).one_side += 1


def _arrays(found: Difference, row: Row, match: Row) -> None:
    here, there = _by_name(row), _by_name(match)
    for key in [*here, *(key for key in there if key not in here)]:
        name = key[0]
        measure = found.measures.setdefault(f"{name} [array]", Measure(f"{name} [array]"))
        if key in here and key in there:
            measure.add_array(here[key], there[key], row.id)
        else:
            measure.one_side += (here if key in here else there)[key].data.size


def _by_name(row: Row) -> dict[tuple[str, str], Array]:
    """The arrays of a row; those of a capture come layer by layer and are known by it as well."""
    is_capture = row.coords.keys() == {"prompt"}
    found = {}
    for array in row.arrays():
        by_layer = is_capture and array.axes[:1] == ("layer",)
        found[array.name, str(array.labels[0][0]) if by_layer else ""] = array
    return found


def _aligned(
    here: Array, there: Array
) -> "tuple[np.ndarray, np.ndarray, list[Sequence[str | int]]] | None":
    """The parts of two arrays that have the same labels, and these."""
    import numpy as np

    if here.axes != there.axes:
        return None
    one, other, labels = here.data, there.data, []
    for axis, (mine, theirs) in enumerate(zip(here.labels, there.labels, strict=True)):
        if list(mine) != list(theirs):
            at = {label: n for n, label in enumerate(theirs)}
            shared = [label for label in mine if label in at]
            one = np.take(one, [n for n, label in enumerate(mine) if label in at], axis=axis)
            other = np.take(other, [at[label] for label in shared], axis=axis)
            labels.append(shared)
        else:
            labels.append(mine)
    return one, other, labels


def _difference(here: Any, there: Any) -> float:
    if isinstance(here, str) or isinstance(there, str):
        return math.inf
    return abs(float(here) - float(there))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
