"""What a decomposition has learned, measured on batches that it was not trained on."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mlxroles.backend import mx, number
from mlxroles.components import train_losses as losses
from mlxroles.components.train import Trainer, parts_of
from mlxroles.components.train_losses import Mask

DISTANCES = {
    "unmasked": "all components, nothing left over",
    "masked": "components weighted by their causal importance",
    "largest": "the same importances on the components with the largest outputs",
    "shuffled": "the same importances on components drawn at random",
    "stochastic": "what is not important left out in random parts",
    "none": "no components",
}
"""How far the output is from the target's own, by what is left of the maps."""


class Measures(NamedTuple):
    """Of one batch."""

    distances: dict[str, float]
    """By ``DISTANCES``: KL in nats a token, or mean squared error of a toy."""
    active: dict[str, float]
    """Map -> components with g > 0 at a position, mean (L0)."""
    importance: dict[str, np.ndarray]
    """Map -> mean g over positions [component]."""


def measure(trainer: Trainer, batch: mx.array, key: mx.array) -> Measures:
    """How well a batch is reconstructed, with how many components.

    ``shuffled`` and ``largest`` are the nulls of ``masked``: at each position and in each map the
    same importances lie on components drawn at random, or in the order of |a_c| ||U_c||, which
    needs no trained function.
    """
    output, x = trainer.target.watched(batch)
    before = trainer.importances(trainer.parameters, x)
    g = {name: mx.clip(value, 0, 1) for name, value in before.items()}
    parts = parts_of(trainer.parameters, trainer.sizes)
    first, second = mx.random.split(key)
    outputs = {
        name: mx.abs(x[name] @ part["V"]) * mx.linalg.norm(part["U"], axis=-1)
        for name, part in parts.items()
    }
    noise = {
        name: mx.random.uniform(shape=value.shape, key=own)
        for own, (name, value) in zip(mx.random.split(second, len(g)), g.items(), strict=True)
    }
    masks: Mapping[str, Mapping[str, Mask]] = {
        "unmasked": {name: Mask(mx.ones_like(value)) for name, value in g.items()},
        "masked": {name: Mask(value) for name, value in g.items()},
        "largest": {name: Mask(_by(outputs[name], value)) for name, value in g.items()},
        "shuffled": {name: Mask(_by(noise[name], value)) for name, value in g.items()},
        "stochastic": losses.stochastic(g, "uniform", first),
        "none": {name: Mask(mx.zeros_like(value)) for name, value in g.items()},
    }
    distances = {
        name: number(
            trainer.target.distance(trainer.target.masked(batch, parts, masks[name]), output)
        )
        for name in DISTANCES
    }
    flat = {name: value.reshape(-1, value.shape[-1]) for name, value in g.items()}
    return Measures(
        distances,
        {name: number((value > 0).sum(axis=-1).mean()) for name, value in flat.items()},
        {name: np.array(value.mean(axis=0)) for name, value in flat.items()},
    )


def _by(order: mx.array, values: mx.array) -> mx.array:
    """The same values [..., component], the larger ones where ``order`` is larger."""
    ranks = mx.argsort(mx.argsort(order, axis=-1), axis=-1)
    return mx.take_along_axis(mx.sort(values, axis=-1), ranks, axis=-1)


def missing(trainer: Trainer) -> dict[str, float]:
    """Map -> share of the weight's squares that the sum of its components leaves out."""
    parts = parts_of(trainer.parameters, trainer.sizes)
    found = {}
    for name, weight in trainer.target.weights.items():
        left = weight - (parts[name]["V"] @ parts[name]["U"]).T
        found[name] = number((left**2).sum() / mx.maximum((weight**2).sum(), losses.TINY))
    return found
