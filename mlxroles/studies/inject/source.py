"""Where the injected vectors come from: words, contrasting prompts, or the user's own files.

A source knows before any weights are loaded which layers it has vectors of; ``make`` then yields
them for one model, each at the layer that it was taken from.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mlxroles import vectors
from mlxroles.errors import PromptError
from mlxroles.models.model import Model
from mlxroles.prompts import Prompt
from mlxroles.studies.inject.items import Item
from mlxroles.studies.subject import Subject, stream_width
from mlxroles.text import safe_text
from mlxroles.vectors import Vectors
from mlxroles.vectors.extract import without
from mlxroles.vectors.vectors import is_name

NO_TOOLS = "no-tools"


class Source(Protocol):
    """What is injected."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the vectors."""
        ...

    @property
    def has(self) -> tuple[int, ...] | None:
        """Layers that there are vectors of; None for all of the model's."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that changes a number."""
        ...

    def passes(self) -> list[int]:
        """Lengths in tokens of the prompts that run to make the vectors of a model."""
        ...

    def make(self, model: Model, layers: Sequence[int], about: Mapping[str, Any]) -> Vectors:
        """The vectors of one model at these layers; ``about`` identifies it."""
        ...


@dataclass(frozen=True)
class Words:
    """One vector per word: its prompt less everyday words' (``vectors.concept``)."""

    names: tuple[str, ...]
    has: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len({name.casefold() for name in self.names}) < len(self.names):
            raise PromptError("a concept is named twice; name each once")
        bad = next((name for name in self.names if not is_name(name)), None)
        if bad is not None:
            shown = safe_text(bad, limit=40)
            raise PromptError(f"'{shown}' is no concept: give a word of one line, such as ocean")

    @property
    def rest(self) -> list[str]:
        """The everyday words that are none of the concepts."""
        return without(vectors.baseline(), self.names)

    def identity(self) -> dict[str, Any]:
        """Words and template."""
        rest = hashlib.sha256("\n".join(self.rest).encode()).hexdigest()
        return {"words": list(self.names), "baseline": rest, "template": vectors.TEMPLATE}

    def passes(self) -> list[int]:
        """Prompts of a dozen tokens or so."""
        return [16] * (len(self.names) + len(self.rest))

    def make(self, model: Model, layers: Sequence[int], about: Mapping[str, Any]) -> Vectors:
        """As the protocol says."""
        return vectors.concept(model, self.names, self.rest, layers=layers, identity=about)


@dataclass(frozen=True)
class Contrast:
    """Mean over prompts of one side less that of another, at their last tokens."""

    toward: tuple[Item, ...]
    away: tuple[Item, ...]
    names: tuple[str, ...] = ("contrast",)
    has: tuple[int, ...] | None = None

    def identity(self) -> dict[str, Any]:
        """Ids of both sides."""
        sides = {"toward": self.toward, "away": self.away}
        return {side: [item.digest for item in items] for side, items in sides.items()}

    def passes(self) -> list[int]:
        """All prompts of both sides."""
        return [len(item.ids) for item in (*self.toward, *self.away)]

    def make(self, model: Model, layers: Sequence[int], about: Mapping[str, Any]) -> Vectors:
        """As the protocol says."""
        toward, away = ([item.ids for item in side] for side in (self.toward, self.away))
        return vectors.contrast(model, toward, away, layers, name=self.names[0], identity=about)


@dataclass(frozen=True)
class Files:
    """Vectors that a user brings along."""

    found: Vectors

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the vectors."""
        return self.found.names

    @property
    def has(self) -> tuple[int, ...]:
        """Layers that every one of them was taken from.

        Raises:
            VectorError: a vector has none.
        """
        each = [set(self.found.layers_of(name)) for name in self.names]
        return tuple(sorted(set.intersection(*each)))

    def identity(self) -> dict[str, Any]:
        """The numbers themselves."""
        digest = hashlib.sha256(np.ascontiguousarray(self.found.array).tobytes()).hexdigest()
        return {"vectors": list(self.names), "layers": list(self.found.layers), "sha256": digest}

    def passes(self) -> list[int]:
        """None."""
        return []

    def make(self, model: Model, layers: Sequence[int], about: Mapping[str, Any]) -> Vectors:
        """As the protocol says."""
        del model, about
        return self.found.at_layers(layers)


def from_files(refs: Sequence[str], subject: Subject, layer: int | None) -> Files:
    """The vectors of some files, all of which act on what leaves a block.

    Args:
        refs: ``FILE`` or ``FILE#NAME``.
        subject: Its number of layers and width.
        layer: For files that do not say of which layer they are.

    Raises:
        VectorError: one cannot be read, or does not fit the models.
        PromptError: two have one name, or have no layer in common.
    """
    width = stream_width(subject)
    parts = [
        vectors.read(ref, n_layers=subject.n_layers, d_model=width, layer=layer) for ref in refs
    ]
    for ref, part in zip(refs, parts, strict=True):
        subject.note_origin(ref, part.model)
        if part.site != "resid_post":
            raise PromptError(
                f"{safe_text(ref, limit=80)} holds vectors of {part.site}; only those of "
                "resid_post can be injected"
            )
    names = [name for part in parts for name in part.names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PromptError(f"two vectors have the name '{safe_text(twice, limit=60)}'; give one")
    found = parts[0] if len(parts) == 1 else vectors.merge([_of(part) for part in parts])
    files = Files(found)
    if not files.has:
        raise PromptError("the vectors have no layer in common; inject them in runs of their own")
    return files


def _of(part: Vectors) -> Vectors:
    """Without the model, so that vectors of several origins can stand together."""
    from dataclasses import replace

    return replace(part, model=None)


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Every other prompt, the first one included, and the others: one half makes a direction.

    Raises:
        PromptError: there are fewer than four.
    """
    if len(prompts) < 4:
        raise PromptError(
            f"{len(prompts)} prompts cannot make a direction and be held out from it too; give at "
            "least 4, or name others to measure with --prompt"
        )
    return list(prompts[::2]), list(prompts[1::2])
