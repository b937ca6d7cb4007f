"""The computing half of a study of heads: all detectors of a model, then its heads at zero.

Which heads are zeroed follows from the scores of the same model; where those are stored already,
they are taken again, which gives the same numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxroles import detectors
from mlxroles.detectors import Detection, Material, classify
from mlxroles.events import Cell
from mlxroles.heads import head_name
from mlxroles.runner import Result
from mlxroles.studies.heads import stored
from mlxroles.studies.heads.behaviours import BEHAVIOURS, LOSS, tasks
from mlxroles.studies.heads.causal import ENOUGH, RANDOM, Head, Zeroing, of_set, unmarked_sets
from mlxroles.studies.subject import Subject

EXAMPLES, SHOWN = 12, 128
"""Heads whose pattern of one row is kept, at most, and positions of it."""


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int


@dataclass
class _Side:
    """What is known of a model while its cells are computed."""

    detection: Detection | None = None
    marked: dict[str, list[Head]] | None = None
    zeroing: Zeroing | None = None


class HeadsWork:
    """Computes the cells of a study.

    Args:
        subject: One model or a pair.
        material: On which heads are scored.
        held_out: On which they are zeroed; None where they are not.
        seed: Of random sets.
    """

    def __init__(
        self, subject: Subject, material: Material, held_out: Material | None, *, seed: int
    ) -> None:
        self.subject, self.material, self.held_out = subject, material, held_out
        self.seed = seed
        self._sides: dict[str, _Side] = {}

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """One batch per cell, model by model."""
        order = list(self.subject.sides)
        return [_Batch((cell,), order.index(cell.coords["model"])) for cell in pending]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model of a group."""
        name = batches[0].cells[0].coords["model"]
        self._sides = {name: self._sides.get(name) or _Side()}
        self.subject.model(name)
        yield

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """The scores of a model, or what zeroing a set of its heads changes."""
        cell = batch.cells[0]
        side = self._sides[cell.coords["model"]]
        model = self.subject.model(cell.coords["model"])
        what = cell.coords.get("what")
        if what == "scores":
            side.detection = self._detected(cell.coords["model"])
            yield self._scores(cell, side.detection)
            return
        if side.zeroing is None:
            assert self.held_out is not None
            side.zeroing = Zeroing(model, tasks(self.held_out))
        if side.marked is None:
            side.detection = side.detection or self._detected(cell.coords["model"])
            side.marked = stored.by_class(side.detection, classify(side.detection.scores))
        yield self._zeroed(cell, side.zeroing, side.marked)

    def _detected(self, side: str) -> Detection:
        """All scores of a model, as they are stored."""
        found = detectors.detect(
            self.subject.model(side),
            self.material,
            on_set=lambda name: self.subject.on_load(
                f"{side}: attention on {name.replace('_', ' ')}"
            ),
        )
        for note in found.notes:
            if note not in self.material.notes:
                self.subject.notes.append(f"{side}: {note}")
        return stored.detection_of(stored.arrays_of(found))

    def _scores(self, cell: Cell, detection: Detection) -> Result:
        """Every score of every row, and the patterns of the best heads."""
        arrays = stored.arrays_of(detection)
        shown = stored.best(detection, EXAMPLES)
        model = self.subject.model(cell.coords["model"])
        examples: dict[str, Any] = {}
        for (layer, head, detector), one in detectors.patterns(model, self.material, shown).items():
            name = head_name(layer, head)
            arrays[f"pattern_{name}"] = one.pattern[:SHOWN, :SHOWN]
            examples[name] = {"set": one.set, "detector": detector}
        n_tokens = sum(len(row) for of in self.material.sets.values() for row in of.ids)
        return Result(cell, {"examples": examples}, arrays, tokens=n_tokens)

    def _zeroed(self, cell: Cell, zeroing: Zeroing, marked: dict[str, list[Head]]) -> Result:
        """One set of heads at zero, beside random sets."""
        name, which = cell.coords["class"], cell.coords["set"]
        heads = of_set(marked.get(name, []), which)
        if not heads:
            return Result(cell, {"skipped": "the model has no more such heads"})
        behaviour = BEHAVIOURS.get(name, LOSS)
        alike = [at for c, rows in marked.items() for at in rows if _alike(c, name)]
        drawn: list[tuple[Head, ...]] = []
        for banned in (alike, marked[name]):
            rng = np.random.default_rng([self.seed, *f"{name} {which}".encode()])
            drawn = unmarked_sets(heads, banned, zeroing.n_heads, rng, count=RANDOM)
            if len(drawn) >= ENOUGH:
                break
        values: dict[str, Any] = {"heads": [list(at) for at in heads]}
        values["random_heads"] = [" ".join(head_name(*at) for at in one) for one in drawn]
        arrays: dict[str, np.ndarray] = {}
        n_tokens = 0
        for measure in zeroing.measures(behaviour):
            n_tokens += (1 + len(drawn)) * sum(p.n_tokens for p in zeroing.tasks[measure].prompts)
            found = zeroing.change(heads, measure, drawn)
            values[f"mean_{measure}"] = float(np.mean(found.change))
            arrays |= {f"clean_{measure}": found.clean, measure: found.change}
            arrays[f"random_{measure}"] = found.random
        return Result(cell, values, arrays, tokens=n_tokens)


def _alike(first: str, second: str) -> bool:
    """Whether two classes are held to one measure."""
    return BEHAVIOURS.get(first, LOSS).measure == BEHAVIOURS.get(second, LOSS).measure
