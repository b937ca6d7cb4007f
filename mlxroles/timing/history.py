"""What finished runs took beside what was predicted: the machine's own correction.

A record holds seconds, predicted and actual, of each part of a run. The runs most like a planned
one correct its prediction: of the same kind of study, then with the same size of model, then of
about the same length. Their scatter is the uncertainty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from mlxroles import cache
from mlxroles.timing.prediction import Parts

SUBJECT = "runs"
"""Name of the cache's file."""

KEPT = 24
"""Records per machine and kind of study, the last ones."""
TAKEN = 5
"""Records that correct a prediction."""
UNKNOWN = 3.0
"""Factor either way where nothing was learned yet."""
FOREIGN = 2.0
"""The least factor where all that is known comes from models of other sizes."""
LEAST = 1.2
"""The least factor: the machine has other things to do, too."""
MOST_RATIO = 1e3
"""A ratio beyond this comes from a broken clock or a damaged file."""


@dataclass(frozen=True)
class Record:
    """One finished run."""

    size: str
    """Kind of model, from ``Kind.size``."""
    predicted: Parts
    """Before any correction."""
    actual: Parts

    def document(self) -> dict[str, Any]:
        """As plain data."""
        parts = {
            name: [getattr(self.predicted, name), getattr(self.actual, name)] for name in PARTS
        }
        return {"size": self.size, **parts}

    @classmethod
    def read(cls, found: object) -> "Record | None":
        """A record from plain data; None where it makes no sense."""
        if not isinstance(found, dict) or not isinstance(found.get("size"), str):
            return None
        predicted, actual = [], []
        for name in PARTS:
            pair = found.get(name)
            if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_time, pair)):
                return None
            predicted.append(float(pair[0]))
            actual.append(float(pair[1]))
        return cls(found["size"], Parts(*predicted), Parts(*actual))


PARTS = ("start", "cells", "results")


class Ratio(NamedTuple):
    """What predictions are multiplied by."""

    factors: Parts
    spread: float
    """Factor either way that covers what was seen."""
    runs: int
    """Runs that it comes from."""
    same_size: bool
    """Whether they had models of the same size."""


def recall(machine: str, study: str) -> list[Record]:
    """The records of a kind of study on a machine, oldest first; damaged ones are left out."""
    found = cache.read(SUBJECT).get(f"{machine} {study}")
    records = [Record.read(one) for one in found] if isinstance(found, list) else []
    return [one for one in records if one is not None]


def record(machine: str, study: str, run: Record) -> None:
    """Remembers a finished run."""
    kept = [*recall(machine, study), run][-KEPT:]
    cache.remember(SUBJECT, f"{machine} {study}", [one.document() for one in kept])


def forget(machine: str) -> None:
    """Lets go of all records of a machine, whose predictions were made at other rates."""
    for key in cache.read(SUBJECT):
        if key.startswith(f"{machine} "):
            cache.remember(SUBJECT, key, [])


def learned(records: Sequence[Record], size: str, predicted: Parts) -> Ratio:
    """The correction for a prediction, from runs of the same kind of study.

    Args:
        records: From ``recall``.
        size: Kind of model that is planned, from ``Kind.size``.
        predicted: Its prediction, uncorrected.
    """
    alike = [one for one in records if one.size == size]
    chosen = alike or list(records)
    if not chosen:
        return Ratio(Parts(1.0, 1.0, 1.0), UNKNOWN, 0, same_size=False)
    newest = list(reversed(chosen))
    newest.sort(key=lambda one: abs(math.log(_positive(one.predicted.cells, predicted.cells))))
    taken = newest[:TAKEN]
    factors = Parts(
        *(
            median([_positive(getattr(r.actual, n), getattr(r.predicted, n)) for r in taken])
            for n in PARTS
        )
    )
    off = [_positive(r.actual.total, (r.predicted * factors).total) for r in taken]
    widest = max(abs(math.log(one)) for one in off)
    # few runs show less scatter than there is
    spread = math.exp(widest * (1 + 2 / len(taken))) if len(taken) > 1 else FOREIGN
    least = LEAST if alike else FOREIGN
    return Ratio(factors, min(UNKNOWN, max(least, spread)), len(taken), bool(alike))


def _positive(actual: float, predicted: float) -> float:
    """The ratio of two times, kept from extremes; 1 where a part takes no time."""
    if predicted < 1e-3:
        return 1.0
    return min(MOST_RATIO, max(1 / MOST_RATIO, actual / predicted))


def _is_time(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0
