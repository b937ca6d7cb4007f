"""The computing half of the effects of ablations: cells in, numbers out.

Heads that are found by their scores are chosen here, once a model is loaded, from random ids that
are not those on which effects are measured; random sets are drawn here too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mlxroles.components.file import foreign
from mlxroles.detectors import HeadScores
from mlxroles.events import Cell
from mlxroles.models.model import Model
from mlxroles.probes import Targets
from mlxroles.runner import Result
from mlxroles.studies.ablate.ablation import Ablation, Head
from mlxroles.studies.ablate.conditions import random_sets
from mlxroles.studies.ablate.found_heads import refuse_none, scores_of
from mlxroles.studies.ablate.how import How, Method
from mlxroles.studies.ablate.parts import Parts
from mlxroles.studies.ablate.runs import Runs
from mlxroles.studies.encoded import Encoded
from mlxroles.studies.subject import Subject

RANDOM = 20
"""Random sets per ablation by default."""


@dataclass(frozen=True)
class Options:
    """How the ablations are made and held against chance."""

    test: Literal["effects", "joint"] = "effects"
    method: Method = "zero"
    factors: tuple[float, ...] = ()
    """Of ``scale``; the random sets are made with the one that is farthest from 1."""
    positions: str = "all"
    random: int = RANDOM
    seed: int = 0
    directions: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Layer -> direction [d_model], for an ablation of directions."""
    parts: Parts | None = None
    """For an ablation of components."""

    @property
    def steps(self) -> tuple[float, ...]:
        """Factors of the ablations: one, 0, but for ``scale``."""
        return self.factors if self.method == "scale" else (0.0,)

    @property
    def strongest(self) -> float:
        """The factor that is farthest from 1."""
        return max(self.steps, key=lambda factor: abs(factor - 1))


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int


@dataclass
class _Side:
    """What is known of a model while its cells are computed."""

    runs: Runs
    scores: HeadScores | None


class AblateWork:
    """Computes the cells of a study.

    Args:
        subject: One model or a pair.
        prompts: As ids.
        ablations: By key.
        options: How.
        targets: What is measured after the last token of each prompt, or None.
        reference: Other prompts, and for each prompt which of them it is resampled from.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Encoded],
        ablations: Mapping[str, Ablation],
        options: Options,
        *,
        targets: Targets | None,
        reference: tuple[Sequence[Encoded], Sequence[int]],
    ) -> None:
        self.subject, self.prompts, self.options = subject, prompts, options
        self.by_key, self.targets, self.reference = ablations, targets, reference
        self._sides: dict[str, _Side] = {}
        self._n_tokens = sum(prompt.n_tokens for prompt in prompts)

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """One batch per cell, model by model."""
        order = list(self.subject.sides)
        return [_Batch((cell,), order.index(cell.coords["model"])) for cell in pending]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model of a group, and finds its heads where they are found by their scores.

        Raises:
            ModelError: there are none.
        """
        name = batches[0].cells[0].coords["model"]
        self._sides = {name: kept} if (kept := self._sides.get(name)) else {}
        model = self.subject.model(name)
        yield
        if name in self._sides:
            return
        runs = Runs(
            model,
            self.prompts,
            self.options.positions,
            self.targets,
            tokenizer=None if self.targets is None else self.subject.tokenizer,
            reference=self.reference,
            components=None if self.options.parts is None else self.options.parts.components,
        )
        self._note_origin(name, model)
        self.subject.notes += [f"{name}: {note}" for note in runs.notes]
        wanted = runs.is_repeated or any(ablation.slots for ablation in self.by_key.values())
        scores = None
        if wanted:
            scores = scores_of(self.subject, model, seed=self.options.seed)
            if any(ablation.slots for ablation in self.by_key.values()):
                refuse_none(self.subject, name, scores)
        self._sides[name] = _Side(runs, scores)

    def _note_origin(self, name: str, model: Model) -> None:
        """Says so where the components were made from other weights."""
        parts = self.options.parts
        other = None if parts is None else foreign(parts.components, model)
        if other is not None:
            self.subject.notes.append(f"{name}: {other}")

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """One ablation on all prompts."""
        cell = batch.cells[0]
        c, side = cell.coords, self._sides[cell.coords["model"]]
        if c["what"] == "baseline":
            yield self._baseline(cell, side)
            return
        ablation = self._resolved(self.by_key[c["what"]], side)
        if ablation is None:
            yield Result(cell, {"skipped": "there are no more heads of that kind"})
            return
        missing = self._missing(ablation, side)
        if missing:
            yield Result(cell, {"skipped": missing})
            return
        how = How(self.options.method, float(c.get("factor", 0.0)))
        if "random" in c:
            yield self._random(cell, side, ablation, how)
            return
        found = side.runs.measure(ablation, how, directions=self.options.directions)
        values: dict[str, Any] = _named(ablation)
        values |= {name: float(np.nanmean(row)) for name, row in found.measures.items()}
        arrays = dict(found.measures)
        if found.entropy is not None:
            arrays["entropy_change"] = found.entropy
        yield Result(cell, values, arrays, tokens=self._n_tokens)

    def _baseline(self, cell: Cell, side: _Side) -> Result:
        found = side.runs.baseline()
        values = {name: float(np.nanmean(row)) for name, row in found.items()}
        arrays = dict(found)
        if side.scores is not None:
            names = ("previous", "induction")
            arrays |= {f"score_{name}": side.scores.means(name) for name in names}
        return Result(cell, values, arrays, tokens=self._n_tokens)

    def _random(self, cell: Cell, side: _Side, ablation: Ablation, how: How) -> Result:
        """A random set in an ablation's place, or a random direction."""
        n = int(cell.coords["random"])
        if ablation.kind == "direction":
            found = side.runs.measure(
                ablation, how, directions=self._random_directions(n), is_watched=False
            )
        else:
            sets = self._sets(side, ablation)
            if n >= len(sets):
                return Result(cell, {"skipped": "there are no more sets of that kind"})
            drawn = self._drawn(ablation, sets[n])
            found = side.runs.measure(drawn, how, is_watched=False)
        values: dict[str, Any] = {}
        if ablation.kind != "direction":
            values = _named(drawn)
        values |= {name: float(np.nanmean(row)) for name, row in found.measures.items()}
        return Result(cell, values, tokens=self._n_tokens)

    def _random_directions(self, n: int) -> dict[int, np.ndarray]:
        """Random directions: one for all layers where the given one is the same in all."""
        given = self.options.directions
        arrays = list(given.values())
        same = all(np.array_equal(arrays[0], other) for other in arrays)
        rng = np.random.default_rng([self.options.seed, n])
        drawn = {i: rng.standard_normal(a.shape, dtype=np.float32) for i, a in given.items()}
        return dict.fromkeys(drawn, next(iter(drawn.values()))) if same else drawn

    @staticmethod
    def _drawn(ablation: Ablation, drawn: tuple[Any, ...]) -> Ablation:
        if ablation.kind == "components":
            return replace(ablation, components=drawn)
        return replace(ablation, heads=drawn)

    def _sets(self, side: _Side, ablation: Ablation) -> Sequence[tuple[Any, ...]]:
        """Different random sets of as many heads in the same layers, or components of the maps."""
        if ablation.kind == "components":
            parts, options = self.options.parts, self.options
            assert parts is not None
            return parts.random(ablation.components, options.random, options.seed)
        counts = {i: _heads_of(side, i, ablation.site) for i, _ in ablation.heads}
        rng = np.random.default_rng([self.options.seed, *ablation.key.encode()])
        return random_sets(ablation.heads, counts, self.options.random, rng)

    def _resolved(self, ablation: Ablation, side: _Side) -> Ablation | None:
        """The ablation with its heads; None where a rank is beyond the last one."""
        if not ablation.slots:
            return ablation
        assert side.scores is not None
        heads: list[Head] = []
        for kind, rank in ablation.slots:
            ranked = side.scores.marked(kind)
            if rank is None:
                heads += ranked
            elif rank < len(ranked):
                heads.append(ranked[rank])
            else:
                return None
        return replace(ablation, heads=tuple(dict.fromkeys(heads)))

    @staticmethod
    def _missing(ablation: Ablation, side: _Side) -> str:
        """Why there is nothing to ablate, for heads that the config promised."""
        for layer, head in ablation.heads:
            count = _heads_of(side, layer, ablation.site)
            if head >= count:
                return f"layer {layer} has {count or 'no'} heads"
        return ""


def _named(ablation: Ablation) -> dict[str, Any]:
    """The heads and components of an ablation, as they are stored."""
    named = {"components": list(ablation.components)} if ablation.components else {}
    return {"heads": [list(at) for at in ablation.heads], **named}


def _heads_of(side: _Side, layer: int, site: str) -> int:
    """Heads of a layer, of values those that hold them."""
    block = side.runs.model.network.block(layer)
    return (block.kv_heads or block.heads) if site == "v" else block.heads
