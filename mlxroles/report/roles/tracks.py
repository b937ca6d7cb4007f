"""Reads an entropy document: one metric of one model, or of their difference, layer by layer.

The document (schema ``mlxroles/entropy/1``) is plain JSON: a number that does not exist is
``null``. Here such numbers become NaN. Not here: statistics, and what the numbers mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlxroles.roles.heads import DIFFERENCE
from mlxroles.roles.metrics import DEFAULT_FORM
from mlxroles.roles.sampling import ALPHA
from mlxroles.roles.scales import SCALES

__all__ = ["ALPHA", "DIFFERENCE", "SCALES", "Track", "track"]

Doc = Mapping[str, Any]


@dataclass(frozen=True)
class Track:
    """One metric of one model, or of their difference, per layer."""

    layers: tuple[int, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    """Lower ends of the 95 % intervals."""
    high: tuple[float, ...]
    p: tuple[float, ...]
    """Permutation of the categories' labels."""
    q: tuple[float, ...]
    """The same after Benjamini-Hochberg over layers."""
    p_same: tuple[float, ...]
    """Permutation among prompts of equal length alone."""
    q_same: tuple[float, ...]
    significant: frozenset[int]
    """Layers that are not 0 after correction, as the document says."""
    same_length: frozenset[int]
    """Those of them that hold among prompts of equal length."""
    reversed: frozenset[int]
    """Those of them that have the other sign among prompts of equal length."""

    @cached_property
    def up(self) -> frozenset[int]:
        """Significant layers that are above 0."""
        return frozenset(layer for layer in self.significant if self.at(layer)[0] > 0)

    @property
    def down(self) -> frozenset[int]:
        """Significant layers that are below 0."""
        return self.significant - self.up

    @property
    def is_tested_same_length(self) -> bool:
        """Whether any layer has a test among prompts of equal length."""
        return any(not math.isnan(p) for p in self.p_same)

    @property
    def uncorrected(self) -> int:
        """Layers with p < .05 before correction."""
        return sum(p < ALPHA for p in self.p)

    @property
    def expected(self) -> float:
        """How many of those chance alone gives."""
        return ALPHA * sum(not math.isnan(p) for p in self.p)

    @property
    def mean(self) -> float:
        """The mean over the layers that have a number."""
        return mean(self.value)

    @property
    def excludes_zero(self) -> int:
        """Layers whose own interval excludes 0, without any correction."""
        return sum(low > 0 or high < 0 for low, high in zip(self.low, self.high, strict=True))

    def at(self, layer: int) -> tuple[float, float, float]:
        """Value and both ends of its interval."""
        index = self.layers.index(layer)
        return self.value[index], self.low[index], self.high[index]

    def largest(self, among: frozenset[int]) -> int | None:
        """The layer among these whose value is farthest from 0; the first on ties."""
        return max(sorted(among), key=lambda layer: abs(self.at(layer)[0]), default=None)


def track(
    doc: Doc, who: str, metric: str, *, scale: str = "raw", form: str = DEFAULT_FORM
) -> Track | None:
    """The track of a model or of the difference; None where the document has none.

    The tests, and what they say of a layer, are those of the default form.
    """
    source = _source(doc, who, scale)
    found = ((source.get(metric) or {}).get(form)) or {}
    values = _numbers(found.get("value"))
    if not values:
        return None
    length = len(values)
    ends = [pair or (None, None) for pair in found.get("ci") or [None] * length]
    layers = tuple(int(layer) for layer in doc.get("layers") or range(length))
    tested = label_test(doc, who, metric, scale) if form == DEFAULT_FORM else {}

    def tests(name: str) -> tuple[float, ...]:
        return _numbers(tested.get(name) or [None] * length)

    def flagged(name: str) -> frozenset[int]:
        flags = zip(layers, tested.get(name) or (), strict=False)
        return frozenset(layer for layer, flag in flags if flag)

    return Track(
        layers,
        values,
        low=_numbers([low for low, _ in ends]),
        high=_numbers([high for _, high in ends]),
        p=tests("p"),
        q=tests("q"),
        p_same=tests("p_same_length"),
        q_same=tests("q_same_length"),
        significant=flagged("significant"),
        same_length=flagged("holds_at_equal_length"),
        reversed=flagged("reverses_at_equal_length"),
    )


def label_test(doc: Doc, who: str, metric: str, scale: str = "raw") -> Mapping[str, Any]:
    """The permutation tests of a metric's layers; empty where there are none."""
    return _source(doc, who, scale).get(f"{metric}_test") or {}


def names(doc: Doc) -> list[str]:
    """The models, and the difference where there are two."""
    has_difference = any((doc.get(scale) or {}).get(DIFFERENCE) for scale in SCALES)
    return [*models(doc), *([DIFFERENCE] if has_difference else [])]


def models(doc: Doc) -> list[str]:
    """The models of the run: base and instruct, or one."""
    return [str(name) for name in doc.get("models") or []]


def null(doc: Doc, metric: str, scale: str = "raw") -> float:
    """What uniform attention over prompts of these lengths gives for RFC or RSI."""
    return number(((doc.get("null") or {}).get(scale) or {}).get(metric))


def category(doc: Doc, who: str, name: str, scale: str = "raw") -> tuple[float, ...]:
    """Mean entropy of a category per layer, in nats or as a share of uniform attention's."""
    found = (_source(doc, who, scale).get("category") or {}).get(name) or {}
    return _numbers(found.get("value"))


def heads(doc: Doc, who: str, scale: str = "normalised") -> Mapping[str, Any]:
    """What the tests of single heads say about a model or the difference."""
    what = (doc.get("heads") or {}).get("what") or {}
    return (what.get(who) or {}).get(scale) or {}


def contrast(doc: Doc) -> tuple[str, str, str | None] | None:
    """The focus, reference and confounder categories, where the run compares any."""
    found = doc.get("contrast")
    if not found:
        return None
    third = found.get("confounder")
    return str(found["focus"]), str(found["reference"]), None if third is None else str(third)


def confounder(doc: Doc) -> str | None:
    """The confounder category, without which there is no RSI."""
    found = contrast(doc)
    return None if found is None else found[2]


def number(value: object) -> float:
    """The value as a float; NaN where it is absent, null or not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def mean(values: Sequence[float]) -> float:
    """The mean of what is not NaN; NaN of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _source(doc: Doc, who: str, scale: str) -> Mapping[str, Any]:
    found = doc.get(scale) or {}
    if who == DIFFERENCE:
        return found.get(DIFFERENCE) or {}
    return (found.get("models") or {}).get(who) or {}


def _numbers(values: Sequence[object] | None) -> tuple[float, ...]:
    return tuple(number(value) for value in values or ())
