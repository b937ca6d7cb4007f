"""What a figure of one model is made from: its part of the document, and its table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles.plots import canvas
from mlxroles.plots.roles.looks import Look, category_looks
from mlxroles.roles.contrast import Contrast
from mlxroles.roles.table import Entropies, Reading

Numbers = NDArray[np.float64]
Doc = Mapping[str, Any]

_OF_THE_STUDY = ("self_referent", "neutral")
NAME_LIMIT = 24
"""Longest name of a category in a figure, in characters."""


class Estimate(NamedTuple):
    """Numbers along the layers with their 95 % interval; NaN where there is none."""

    values: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True, eq=False)
class Subject:
    """One model of a document."""

    doc: Doc
    model: str
    table: Entropies | None

    @cached_property
    def contrast(self) -> Contrast | None:
        """The document's contrast; ``None`` with a single category."""
        return contrast(self.doc)

    @cached_property
    def looks(self) -> dict[str, Look]:
        """The look of each category; those of the contrast are told apart first."""
        categories = self.doc["categories"]
        looks = category_looks(list(dict.fromkeys([*self.compared, *categories])))
        return {name: looks[name] for name in categories}

    @property
    def compared(self) -> tuple[str, ...]:
        """The categories of the contrast."""
        return self.contrast.names if self.contrast else ()

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers."""
        return [int(layer) for layer in self.doc["layers"]]

    @property
    def reading(self) -> Reading:
        """Which queries and keys count."""
        return Reading(**self.doc["reading"])

    @cached_property
    def per_head(self) -> Numbers | None:
        """Length-normalised E1 [prompt, layer, head]; ``None`` without a table."""
        if self.table is None:
            return None
        return self.table.per_head(self.reading, normalised=True).astype(np.float64)

    def members(self, category: str) -> NDArray[np.integer]:
        """Indices of a category's prompts in the table."""
        named = () if self.table is None else self.table.category
        return np.array([i for i, name in enumerate(named) if name == category], dtype=int)

    def scale(self, name: str) -> Doc:
        """The model's part of a scale of the document."""
        return self.doc[name]["models"][self.model]

    def about(self) -> str:
        """The second line of a title: model, prompts, reading and contrast unless the default."""
        return about(self.doc, self.model)


def about(doc: Doc, model: str) -> str:
    """The second line of a title: model, prompts, reading and contrast unless the default."""
    parts = [canvas.label(model, 20)] if model != "model" else []
    parts.append(canvas.counted(len(doc["prompts"]), "prompt"))
    said = {"no-first": "without query 0", "last": "last query only"}
    parts += [said[doc["reading"]["queries"]]] if doc["reading"]["queries"] in said else []
    parts += ["without the begin token"] if doc["reading"]["keys"] == "no-bos" else []
    compared = contrast(doc)
    if compared is not None and compared.names[:2] != _OF_THE_STUDY:
        focus, *others = (shown(name) for name in compared.names)
        parts.append(f"{focus} against {' and '.join(others)}")
    return ", ".join(parts)


def contrast(doc: Doc) -> Contrast | None:
    """The document's contrast; ``None`` with a single category."""
    found = doc.get("contrast")
    return None if found is None else Contrast(**found)


def shown(category: str) -> str:
    """The name of a category as it stands in a figure."""
    return canvas.label(category, NAME_LIMIT)


def numbers(values: Iterable[float | None]) -> Numbers:
    """A list of the document as numbers; ``null`` and infinities become NaN."""
    found = np.array([np.nan if each is None else each for each in values], dtype=np.float64)
    found[np.isinf(found)] = np.nan
    return found


def level(value: Any) -> float | None:
    """A single number of the document; ``None`` where there is none."""
    return None if value is None or not np.isfinite(value) else float(value)


def estimate(entry: Doc) -> Estimate:
    """The numbers of ``{"value": [...], "ci": [[low, high], ...]}``."""
    pairs = [(None, None) if each is None else each for each in entry["ci"]]
    return Estimate(
        numbers(entry["value"]),
        numbers([low for low, _ in pairs]),
        numbers([high for _, high in pairs]),
    )


def category_mean(values: Numbers, members: NDArray[np.integer]) -> Numbers:
    """Mean over a category's prompts of what is not NaN; NaN where nothing is left."""
    chosen = values[members]
    known = ~np.isnan(chosen)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, chosen, 0.0).sum(axis=0), np.nan) / np.maximum(
        count, 1
    )
