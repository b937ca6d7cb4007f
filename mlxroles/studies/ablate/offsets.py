"""The offset sweep: from how far back do heads bring what they bring to t?

As the redundancy test, with values zero at t-d for one d after the other. A head that reads the
token before t alone leaves all effects but that of d = 1 as they were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.models.model import Model
from mlxroles.studies.ablate import conditions, spread, wording
from mlxroles.studies.ablate.at_positions import AtPositions, Sample
from mlxroles.studies.ablate.conditions import Condition, Head, name_of
from mlxroles.studies.ablate.measures import change
from mlxroles.studies.ablate.redundancy import RANDOM, drawn_sets
from mlxroles.studies.subject import Subject

OFFSETS = 20
"""Offsets that are tried by default, where prompts are long enough."""

_CURVES = ("base - AB", "base - B")
_ALIKE = ("nip", "cosine")


@dataclass(frozen=True)
class Offsets:
    """The sweep of some heads over the offsets 1 to ``count``; ``random`` as in the test."""

    heads: tuple[Head, ...]
    count: int = OFFSETS
    random: tuple[tuple[Head, ...], ...] = ()
    name: str = field(default="offsets", init=False)

    @classmethod
    def of(
        cls,
        subject: Subject,
        heads: Sequence[Head],
        *,
        count: int = OFFSETS,
        n_random: int = RANDOM,
        seed: int = 0,
    ) -> "Offsets":
        """The sweep with random sets drawn.

        Raises:
            SpecError: no head, or one that the models do not have.
        """
        return cls(tuple(heads), count, drawn_sets(subject, heads, n_random, seed))

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the heads, which are those that are measured."""
        return tuple(sorted({layer for layer, _ in self.heads}))

    def rows(self, length: int) -> int:
        """Runs per position, of a prompt of this length."""
        return (2 + len(self.random)) * (1 + min(self.count, length - 1))

    def fresh(self, length: int) -> int:
        """Last positions that each run computes for itself."""
        return min(self.count + 1, length)

    def identity(self) -> dict[str, Any]:
        """Everything about the test that changes numbers."""
        return {
            "heads": [list(head) for head in self.heads],
            "layers": list(self.layers),
            "offsets": list(range(1, self.count + 1)),
            "curves": list(_CURVES),
            "random": [[list(head) for head in heads] for heads in self.random],
        }

    def conditions(self, length: int) -> list[Condition]:
        """Without heads, with A, with each random set: each alone, then with every offset."""
        every = tuple((layer, None) for layer in self.layers)
        return [
            condition
            for heads in ((), self.heads, *self.random)
            for condition in (
                Condition("alone", heads),
                *(
                    Condition(f"t-{d}", heads, values=every, offsets=(d,))
                    for d in range(1, min(self.count, length - 1) + 1)
                ),
            )
        ]

    def measure(
        self, model: Model, ids: Sequence[int]
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        """What each offset changes at t, the last position; NaN beyond the prompt's start.

        Arrays: ``heads_nip`` and ``heads_cosine`` [layer] of base - A; ``nip`` and ``cosine``
        [curve, layer, offset] of base - AB and base - B; ``moved`` [(base - B, A - AB, R - RB of
        each set), layer, offset], squared lengths of differences.
        """
        asked = self.conditions(len(ids))
        seen = conditions.run(model, ids, asked, ["attn_out"], self.layers, logits=False)
        n, sets = min(self.count, len(ids) - 1), 2 + len(self.random)
        alone = np.full((2, len(self.layers)), np.nan)
        curves = np.full((2, len(_CURVES), len(self.layers), self.count), np.nan)
        moved = np.full((sets, len(self.layers), self.count), np.nan)
        for m, layer in enumerate(self.layers):
            out = seen.sites["attn_out"][layer].reshape(sets, n + 1, -1)
            base = out[0, 0]
            alone[:, m] = change(base, out[1, 0])[:2]
            for d in range(n):
                curves[:, 0, m, d] = change(base, out[1, d + 1])[:2]
                curves[:, 1, m, d] = change(base, out[0, d + 1])[:2]
                moved[:, m, d] = [change(own[0], own[d + 1])[2] for own in out]
        return {"nip_base_A": float(alone[0, 0])}, {
            "heads_nip": alone[0],
            "heads_cosine": alone[1],
            "nip": curves[0],
            "cosine": curves[1],
            "moved": moved,
        }

    def summary(
        self, samples: Mapping[str, Sequence[Sample]], context: AtPositions
    ) -> dict[str, Any]:
        """Rows per offset, the level of the heads alone, and the sentence."""
        rows: list[dict[str, Any]] = []
        levels: list[dict[str, Any]] = []
        for model, found in samples.items():
            if found:
                levels += self._levels(model, found, context.seed)
                rows += self._rows(model, found, context.seed)
        rows = [row for row in rows if row["n"]]
        return {
            **self.identity(),
            "heads_alone": levels,
            "rows": rows,
            "sentence": self._sentence(rows, context),
        }

    def _levels(self, model: str, found: Sequence[Sample], seed: int) -> list[dict[str, Any]]:
        """What the heads alone change, per layer."""
        nip, cosine = (self._means(model, found, f"heads_{name}", seed) for name in _ALIKE)
        return [
            {"model": model, "layer": layer, "nip": nip.at(m), "cosine": cosine.at(m)}
            for m, layer in enumerate(self.layers)
        ]

    def _means(self, model: str, found: Sequence[Sample], name: str, seed: int) -> spread.Means:
        arrays = [s.arrays[name] for s in found]
        prompts = [s.prompt for s in found]
        return spread.means(arrays, prompts, spread.generator(seed, model, name))

    def _rows(self, model: str, found: Sequence[Sample], seed: int) -> list[dict[str, Any]]:
        """Curves of every layer and offset, and the share of the values' effect that remains."""
        prompts = [s.prompt for s in found]
        moved = np.stack([s.arrays["moved"] for s in found])
        nip, cosine = (self._means(model, found, name, seed) for name in _ALIKE)
        rows = []
        for m, layer in enumerate(self.layers):
            for d in range(self.count):
                own = moved[:, :, m, d]
                rng = spread.generator(seed, model, layer, d)
                share, ci = spread.ratio(own[:, 1], own[:, 0], prompts, rng)
                null = [spread.share(column, own[:, 0]) for column in own[:, 2:].T]
                row: dict[str, Any] = {"model": model, "layer": layer, "offset": d + 1}
                row["n"] = int(np.isfinite(own[:, 0]).sum())
                for c, curve in enumerate(_CURVES):
                    row[curve] = {"nip": nip.at(c, m, d), "cosine": cosine.at(c, m, d)}
                row |= {"share": share, "ci": ci}
                row["random"] = spread.against(share, null, smaller=True) | {"shares": null}
                rows.append(row)
        return rows

    def _sentence(self, rows: Sequence[Mapping[str, Any]], context: AtPositions) -> str:
        """Of which offset least remains, among those that at least half of the samples have."""
        told = []
        for model in context.subject.sides:
            for layer in self.layers:
                ours = [r for r in rows if (r["model"], r["layer"]) == (model, layer)]
                known = [r for r in ours if 2 * r["n"] >= ours[0]["n"] and np.isfinite(r["share"])]
                if known:
                    within = wording.within(model, context)
                    told.append(f"{within}{_least(known, layer)}")
        if not told:
            return "Nothing was measured."
        return f"Without {name_of(self.heads)} at t, {'; '.join(told)}."


def _least(rows: Sequence[Mapping[str, Any]], layer: int) -> str:
    """The offset of which least remains; random sets are taken at theirs, whichever it is."""
    least = min(rows, key=lambda r: r["share"])
    shares = [r["random"]["shares"] for r in rows]
    null = [min(own) for own in zip(*shares, strict=True)]
    beside = wording.beside(spread.against(least["share"], null, smaller=True), "at least ")
    return (
        f"{100 * least['share']:.0f} % of what values at t-{least['offset']} give to layer "
        f"{layer}'s attention output remains, the least of all offsets"
        f"{wording.bounds(least['ci'])}{beside}"
    )
