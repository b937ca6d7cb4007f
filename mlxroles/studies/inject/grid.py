"""What is done to each prompt: spots of a grid, and the edits that carry them out.

A spot is a layer with a strength, or with ``out``: the vector's direction projected out of every
layer at every position. The spot without a layer projects the directions of all layers out.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlxroles import vectors
from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.models.model import Model
from mlxroles.studies.inject.items import PROMPT, TOWARD, Item

OUT = "out"


@dataclass(frozen=True)
class Spot:
    """One thing that is done with a vector."""

    layer: int | None
    """Where the vector was taken from; None stands for those of all layers tested."""
    scale: float | None
    """What the vector is multiplied with and added; None where it is projected out."""

    @property
    def is_out(self) -> bool:
        """Whether directions are projected out."""
        return self.scale is None

    def document(self) -> dict[str, Any]:
        """As a table names it: layer, or ``all``, and scale, or ``out``."""
        return {
            "layer": "all" if self.layer is None else self.layer,
            "scale": OUT if self.scale is None else self.scale,
        }


@dataclass(frozen=True)
class Grid:
    """The spots of a run.

    Args:
        layers: Layers whose vectors are used.
        scales: What they are multiplied with.
        projects: Whether directions are also projected out.
    """

    layers: tuple[int, ...]
    scales: tuple[float, ...]
    projects: bool = False

    @property
    def directions(self) -> list[str]:
        """What is projected out, each in a run of its own: a layer's direction, or ``all``."""
        found = [str(layer) for layer in self.layers] if self.projects else []
        return [*found, "all"] if len(found) > 1 else found

    def spots(self, role: str) -> tuple[Spot, ...]:
        """What is done to prompts of a role.

        To those that do not show what the direction stands for it is added, from the others it
        is taken away.
        """
        adds = [Spot(layer, scale) for layer in self.layers for scale in self.scales]
        outs = [Spot(layer, None) for layer in self.layers]
        outs += [Spot(None, None)] if len(self.layers) > 1 else []
        if not self.projects:
            return tuple(adds)
        if role == TOWARD:
            return tuple(outs)
        return (*adds, *outs) if role == PROMPT else tuple(adds)


class Directions:
    """One vector at the tested layers beside random ones of its length.

    Args:
        found: The model's vectors at the tested layers.
        name: Which of them.
        count: Random vectors; those of a layer depend on name, layer and seed alone.
        seed: Of the random vectors.
    """

    def __init__(self, found: vectors.Vectors, name: str, count: int, seed: int) -> None:
        self.count = count
        self._key = [seed, zlib.crc32(name.encode("utf-8"))]
        self._at: dict[int, np.ndarray] = {}
        for layer in found.layers_of(name):
            own = found.at(name, layer)
            rng = np.random.default_rng([*self._key, layer])
            noise = vectors.matched_noise(own, count, rng)
            self._at[layer] = np.concatenate([own[None], noise])

    def at(self, layer: int) -> np.ndarray:
        """The vector of a layer and the random ones [1 + count, d_model]."""
        return self._at[layer]

    @cached_property
    def spans(self) -> np.ndarray:
        """Orthonormal directions [1 + count, direction, d_model] that span those of all layers.

        The first row is the vector's; each of the others spans as many random directions.
        """
        own = np.stack([drawn[0] for drawn in self._at.values()]).astype(np.float64)
        rng = np.random.default_rng([*self._key, 1 << 20])
        drawn = rng.standard_normal((self.count, *own.shape))
        rows = [np.linalg.qr(each.T)[0].T for each in (own, *drawn)]
        return np.stack(rows).astype(np.float32)


def edits(
    model: Model, item: Item, spot: Spot, directions: Directions, draw: int
) -> tuple[Edit, ...]:
    """The edits of one run.

    Args:
        model: The model.
        item: Where a vector is added.
        spot: What is done.
        directions: With which vectors.
        draw: 0 for the vector itself, the others are random.
    """
    if spot.scale is not None:
        assert spot.layer is not None
        value = mx.array(directions.at(spot.layer)[draw] * np.float32(spot.scale))
        return (Edit("resid_post", spot.layer, value, "add", item.where),)
    directed = directions.spans if spot.layer is None else directions.at(spot.layer)[:, None]
    out = directed[draw]
    rows = [mx.array(direction) for direction in out if np.linalg.norm(direction) > 0]
    places = [("resid_post", layer) for layer in range(model.n_layers)]
    if "resid_pre" not in model.network.block(0).missing:
        places.insert(0, ("resid_pre", 0))
    return tuple(Edit(site, layer, row, "project") for site, layer in places for row in rows)
