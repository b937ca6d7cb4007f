"""Pattern differences: where later heads look from t once some heads are gone.

A head that is zero keeps its own pattern; those of later layers change with what they read. The
offsets are counted back from the query t: offset d is the key at t-d. Moved is the total
variation distance between a head's pattern at t with and without the heads: the weight, between
0 and 1, that went to other keys (sinks included where a model has them).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles import stats
from mlxroles.errors import SpecError
from mlxroles.models.model import Model
from mlxroles.studies.ablate import conditions, spread, wording
from mlxroles.studies.ablate.at_positions import AtPositions, Sample
from mlxroles.studies.ablate.conditions import Condition, Head, name_of
from mlxroles.studies.ablate.redundancy import RANDOM, drawn_sets
from mlxroles.studies.subject import Subject

LAST_OFFSET = 20
LISTED = 12
"""Heads of each model that the document lists by offset, those that moved most."""


@dataclass(frozen=True)
class Patterns:
    """The differences that some heads make to the layers after the first of them.

    ``everywhere``: the heads are zero at all positions, so that keys change too; else at t alone.
    ``random`` as in the redundancy test.
    """

    heads: tuple[Head, ...]
    layers: tuple[int, ...]
    """Those that are read."""
    everywhere: bool = True
    last_offset: int = LAST_OFFSET
    random: tuple[tuple[Head, ...], ...] = ()
    name: str = field(default="patterns", init=False)

    @classmethod
    def of(
        cls,
        subject: Subject,
        heads: Sequence[Head],
        *,
        everywhere: bool = True,
        last_offset: int = LAST_OFFSET,
        n_random: int = RANDOM,
        seed: int = 0,
    ) -> "Patterns":
        """The test with random sets drawn.

        Raises:
            SpecError: no head, one that the models do not have, or none before the last layer.
        """
        drawn = drawn_sets(subject, heads, n_random, seed)
        first = min(layer for layer, _ in heads) + 1
        if first >= subject.n_layers:
            raise SpecError(
                f"{name_of(heads)} is in the last layer, after which no pattern can change; name "
                "heads of earlier layers"
            )
        layers = tuple(range(first, subject.n_layers))
        return cls(tuple(heads), layers, everywhere, last_offset, drawn)

    def rows(self, _: int) -> int:
        """Runs per position."""
        return 2 + len(self.random)

    def fresh(self, length: int) -> int:
        """Last positions that each run computes for itself."""
        return length

    def identity(self) -> dict[str, Any]:
        """Everything about the test that changes numbers."""
        return {
            "heads": [list(head) for head in self.heads],
            "everywhere": self.everywhere,
            "layers": list(self.layers),
            "offsets": list(range(self.last_offset + 1)),
            "random": [[list(head) for head in heads] for heads in self.random],
        }

    def measure(
        self, model: Model, ids: Sequence[int]
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """What later heads see from t, the last position; NaN where there is nothing.

        Arrays: ``pattern`` [(base, without), layer, head, offset]; ``moved`` [(the heads, each
        random set), layer, head]; ``shift`` [the same sets, layer, offset], differences of the
        means over heads.
        """
        sets = (self.heads, *self.random)
        asked = [Condition("base")]
        asked += [Condition("without", heads, self.everywhere) for heads in sets]
        layers = [i for i in self.layers if "pattern" not in model.network.block(i).missing]
        seen = conditions.run(model, ids, asked, ["pattern"], layers or self.layers, logits=False)
        kept = seen.sites["pattern"]
        heads, n = max(a.shape[1] for a in kept.values()), min(self.last_offset + 1, len(ids))
        pattern = np.full((2, len(self.layers), heads, self.last_offset + 1), np.nan, np.float32)
        moved = np.full((len(sets), len(self.layers), heads), np.nan, np.float32)
        shift = np.full((len(sets), len(self.layers), self.last_offset + 1), np.nan, np.float32)
        for m, layer in enumerate(self.layers):
            if layer not in kept:
                continue
            rows = kept[layer][:, :, ::-1]  # keys from t back
            own = rows.shape[1]
            pattern[:, m, :own, :n] = rows[:2, :, :n]
            moved[:, m, :own] = 0.5 * np.abs(rows[1:] - rows[:1]).sum(axis=-1)
            sinks = rows.sum(axis=-1)  # what is missing from 1 went to a sink
            moved[:, m, :own] += 0.5 * np.abs(sinks[1:] - sinks[:1])
            shift[:, m, :n] = (rows[1:] - rows[:1]).mean(axis=1)[:, :n]
        largest = float(np.nanmax(moved[0]))
        return {"moved_most": largest}, {"pattern": pattern, "moved": moved, "shift": shift}

    def summary(
        self, samples: Mapping[str, Sequence[Sample]], context: AtPositions
    ) -> dict[str, Any]:
        """How far each head's pattern moved, shifts per layer and offset, and the sentence."""
        rows: list[dict[str, Any]] = []
        profiles: list[dict[str, Any]] = []
        shifts: list[dict[str, Any]] = []
        for model, found in samples.items():
            if found:
                ours = sorted(self._rows(model, found, context.seed), key=lambda r: -r["moved"])
                rows += ours
                top = [(r["layer"], r["head"]) for r in ours[:LISTED]]
                profiles += self._profiles(model, found, top, context.seed)
                shifts += self._shifts(model, found, context.seed)
        return {
            **self.identity(),
            "rows": rows,
            "profiles": profiles,
            "shifts": shifts,
            "sentence": self._sentence(rows, context),
        }

    def _rows(self, model: str, found: Sequence[Sample], seed: int) -> list[dict[str, Any]]:
        """Every head's mean distance, beside those that random sets give.

        ``p_any`` compares with the farthest head under each random set, so that it holds for
        the largest of all heads too.
        """
        prompts = [s.prompt for s in found]
        moved = np.stack([s.arrays["moved"] for s in found]).astype(np.float64)
        means = moved.mean(axis=0)
        told = spread.means(moved[:, 0], prompts, spread.generator(seed, model, "moved"))
        farthest = [float(np.nanmax(means[1 + r])) for r in range(len(self.random))]
        rows = []
        for m, layer in enumerate(self.layers):
            for head in np.flatnonzero(np.isfinite(means[0, m])):
                here = told.at(m, int(head))
                value, null = here["mean"], means[1:, m, head].tolist()
                rows.append(
                    {"model": model, "layer": layer, "head": int(head), "moved": value}
                    | {"ci": here["ci"], "n": here["n"]}
                    | {"random": spread.against(value, null, smaller=False)}
                    | {"p_any": spread.against(value, farthest, smaller=False)["p"]}
                )
        return rows

    def _profiles(
        self, model: str, found: Sequence[Sample], top: Sequence[Head], seed: int
    ) -> list[dict[str, Any]]:
        """Patterns by offset of the heads that moved most: with, without, and the difference."""
        prompts = [s.prompt for s in found]
        made = []
        for layer, head in top:
            m = self.layers.index(layer)
            seen = np.stack([s.arrays["pattern"][:, m, head] for s in found]).astype(np.float64)
            rng = spread.generator(seed, model, layer, head, "profile")
            told = spread.means(seen[:, 1] - seen[:, 0], prompts, rng)
            curves = {
                "base": stats.nan_mean(seen[:, 0]).tolist(),
                "without": stats.nan_mean(seen[:, 1]).tolist(),
                "difference": told.mean.tolist(),
                "ci": np.stack([told.low, told.high], axis=-1).tolist(),
            }
            made.append({"model": model, "layer": layer, "head": head, **curves})
        return made

    def _shifts(self, model: str, found: Sequence[Sample], seed: int) -> list[dict[str, Any]]:
        """Per layer and offset how the mean over heads changed, beside random sets."""
        prompts = [s.prompt for s in found]
        shift = np.stack([s.arrays["shift"] for s in found]).astype(np.float64)
        told = spread.means(shift[:, 0], prompts, spread.generator(seed, model, "shift"))
        null = stats.nan_mean(shift[:, 1:])
        made = []
        for m, layer in enumerate(self.layers):
            for d in range(self.last_offset + 1):
                if told.n[m, d]:
                    known = null[:, m, d][np.isfinite(null[:, m, d])]
                    ends = [float(known.min()), float(known.max())] if len(known) else [np.nan] * 2
                    about = {"model": model, "layer": layer, "offset": d}
                    made.append(about | told.at(m, d) | {"random_range": ends})
        return made

    def _sentence(self, rows: Sequence[Mapping[str, Any]], context: AtPositions) -> str:
        """Which later head looks elsewhere, per model."""
        where = "" if self.everywhere else " at t"
        told = []
        for model in context.subject.sides:
            first = next((r for r in rows if r["model"] == model), None)
            if first is not None:
                told.append(
                    f"{wording.within(model, context)}L{first['layer']}H{first['head']} changes "
                    f"most: {100 * first['moved']:.0f} % of its attention at t goes elsewhere"
                    f"{wording.bounds(first['ci'])}{_null(first)}"
                )
        if not told:
            return "Nothing was measured."
        return f"Without {name_of(self.heads)}{where}, {'; '.join(told)}."


def _null(row: Mapping[str, Any]) -> str:
    """What random sets do to the same head, and how often any head goes as far under them."""
    null = row["random"]
    if not null["n"]:
        return ""
    low, high = null["range"]
    return (
        f"; random heads send {100 * low:.0f} to {100 * high:.0f} % of it "
        f"elsewhere (p = {row['p_any']:.2g} for any head to go as far)"
    )
