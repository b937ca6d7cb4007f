"""A class for every head, or "none": what stands out of its nulls when all heads are looked at.

A head is marked by a detector when the score is above both its nulls, uniform attention and the
control, with bounds that hold for all heads and detectors at once (Student's t over rows at level
0.95, Bonferroni over all pairs of a head and a detector that were looked at), and its own 95 %
bound is above the threshold and above twice each null: the first says that there is something,
the second that it is large. The threshold alone would not, as on short rows even a head without a
preference is above 0.1. Scores are compared with their nulls row by row. Works from stored arrays
alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles import notebook
from mlxroles.detectors.catalogue import DETECTORS, Detector
from mlxroles.detectors.detect import Scores
from mlxroles.detectors.places import Numbers
from mlxroles.heads import head_name

LEVEL = 0.95
NONE = "none"
ANTI = "anti_copying"
"""The class of heads that make what they attend to less likely: no detector of its own."""
TWICE = 2.0
"""How often a score must hold each of its nulls to be large."""

Marks = NDArray[np.bool_]


class Tails(NamedTuple):
    """Probabilities with which a bound is missed: one alone, and each of all together."""

    one: float
    all: float


@dataclass(frozen=True, eq=False, repr=False)
class Classes:
    """What is marked, and the classes that follow."""

    primary: list[list[str]]
    """Class of each head [layer][head]; ``none`` where nothing holds."""
    also: list[list[list[str]]]
    """Its other classes, the strongest first."""
    marked: dict[str, Marks]
    """Detector (and ``anti_copying``) -> heads that it marks [layer, head]."""
    low: dict[str, Numbers]
    """Lower bounds of the mean scores, 95 % for each head alone [layer, head]."""
    high: dict[str, Numbers]
    tests: int
    """Pairs of a head and a detector among which the level is divided."""

    def heads(self, name: str) -> list[tuple[int, int]]:
        """Heads (layer, head) of a class, as first or as another one."""
        return [
            (layer, head)
            for layer, row in enumerate(self.primary)
            for head, first in enumerate(row)
            if name in (first, *self.also[layer][head])
        ]

    @property
    def names(self) -> list[str]:
        """Classes that some head has, in the order of ``DETECTORS``."""
        known = [*dict.fromkeys(d.class_name for d in DETECTORS.values()), ANTI]
        return [name for name in known if self.heads(name)]

    def __repr__(self) -> str:
        """The heads of each class; those that have another class first come in brackets."""
        return "\n".join(["Classes", *(f"  {name:<13} {told}" for name, told in self._told())])

    def _repr_html_(self) -> str:
        return notebook.table("Heads of each class", ("class", "heads"), self._told())

    def _told(self) -> list[tuple[str, str]]:
        found = []
        for name in self.names:
            first = {at for at in self.heads(name) if self.primary[at[0]][at[1]] == name}
            heads = [(head_name(*at), at in first) for at in self.heads(name)]
            found.append((name, ", ".join(text if own else f"({text})" for text, own in heads)))
        none = sum(row.count(NONE) for row in self.primary)
        return [*found, (NONE, f"{none} heads")]


def classify(scores: Mapping[str, Scores], *, level: float = LEVEL) -> Classes:
    """Classes of all heads from the scores of ``detect``, or from stored ones.

    A head with several classes is first of all what it looks for (the largest distance between
    score and null decides), then delimiters and copying, and only then where it rests when it
    finds nothing: position 0 and itself.

    Args:
        scores: Detector -> scores; detectors that are missing mark nothing.
        level: That no head is marked wrongly, together.
    """
    tests = sum(int(np.isfinite(s.mean).sum()) for s in scores.values())
    tails = Tails((1 - level) / 2, (1 - level) / (2 * max(tests, 1)))
    low, high, marked, margin = {}, {}, {}, {}
    for name, own in scores.items():
        detector = DETECTORS[name]
        low[name], high[name] = bounds(own.score, tails.one)
        marked[name] = _marks(detector, own, tails)
        margin[name] = own.mean - own.null
        if name == "copying":
            turned = Scores(-own.score, -own.uniform, -own.control)
            marked[ANTI] = _marks(detector, turned, tails)
            margin[ANTI] = -margin[name]
    primary, also = _named(scores, marked, margin)
    return Classes(primary, also, marked, low, high, tests)


def bounds(values: Numbers, tail: float) -> tuple[Numbers, Numbers]:
    """Bounds of the mean over rows [layer, head], each missed with probability ``tail``.

    Student's t: mean -+ t s / sqrt(n). NaN rows are left out; NaN with fewer than two.
    """
    from scipy.special import stdtrit

    known = np.isfinite(values)
    n = known.sum(axis=0)
    size = np.maximum(n, 1)
    mean = np.where(known, values, 0).sum(axis=0) / size
    squares = np.where(known, (values - mean) ** 2, 0).sum(axis=0)
    error = np.sqrt(squares / np.maximum(n - 1, 1) / size)
    half = stdtrit(np.maximum(n - 1, 1), 1 - tail) * error
    return np.where(n > 1, mean - half, np.nan), np.where(n > 1, mean + half, np.nan)


def _marks(detector: Detector, own: Scores, tails: Tails) -> Marks:
    """Heads that one detector marks."""

    def above(first: Numbers, second: Numbers | float, tail: float = tails.all) -> Marks:
        return bounds(first - second, tail)[0] > 0

    marks = above(own.score, own.uniform) & above(own.score, own.control)
    if detector.test == "ratio":
        return marks & above(own.score, detector.threshold * own.uniform, tails.one)
    if detector.test == "signal":
        return marks & above(own.score - own.control, detector.threshold, tails.one)
    marks &= above(own.score, detector.threshold, tails.one)
    for null in (own.uniform, own.control):
        marks &= above(own.score, TWICE * null, tails.one)
    if detector.test != "s_inhibition":
        return marks
    for order in ("abba", "baba"):
        if order in own.more:
            marks &= above(own.more[order], own.control)
    if "copy" not in own.more:
        return np.zeros_like(marks)
    copy = own.more["copy"]
    return marks & above(-copy, 0.0) & above(own.more["copy_other"], copy)


def _named(
    scores: Mapping[str, Scores], marked: Mapping[str, Marks], margin: Mapping[str, Numbers]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    layers, heads = next(iter(scores.values())).score.shape[1:]
    primary = [[NONE] * heads for _ in range(layers)]
    also: list[list[list[str]]] = [[[] for _ in range(heads)] for _ in range(layers)]
    for layer, head in np.ndindex(layers, heads):
        found = sorted(
            (_rank(name), -float(margin[name][layer, head]), _label(name))
            for name, marks in marked.items()
            if marks[layer, head] and not _is_previous(name, scores, layer, head)
        )
        names = list(dict.fromkeys(label for _, _, label in found))
        if names:
            primary[layer][head], also[layer][head] = names[0], names[1:]
    return primary, also


def _label(name: str) -> str:
    return ANTI if name == ANTI else DETECTORS[name].class_name


def _rank(name: str) -> int:
    return DETECTORS["copying" if name == ANTI else name].rank


def _is_previous(name: str, scores: Mapping[str, Scores], layer: int, head: int) -> bool:
    """Whether a positional head is one of the offset 1, which has a class of its own."""
    return name == "positional" and scores[name].more["offset"][0, layer, head] == 1
