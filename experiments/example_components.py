"""Does stochastic parameter decomposition find the parts that a map was made of?

Three toys whose parts are known. Their features are rare, each there once in ten times.

* ``orthonormal``: y = W x, where each of six features is read along a direction of its own and
  written along another, all orthonormal. All singular values are 1, so that W alone does not say
  which parts it was made of; any turned set would do. Only the inputs do.
* ``unequal``: the same with oblique directions, and strengths from 0.5 to 1.5.
* ``superposed``: y = relu(W^T W x + b), five features in two dimensions, tied weights: the toy
  model of superposition (Elhage et al. 2022). Both maps have more parts than their rank.

Training is a descent into one of several valleys, and not each start ends in the deepest. Of some
random starts the one with the lowest loss counts, which needs no knowledge of the parts; how many
starts found them is told. For each true part the largest cosine to any component, as matrices, is
the score; 1 is found. Beside it stand controls that should not reach it: the parts by singular
values, and the same training without importance minimality.

    python experiments/example_components.py [SEEDS] [orthonormal|unequal|superposed]

A seed takes seconds for the first toy, ten for the second, two minutes for the third.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlxroles.backend import mx, nn
from mlxroles.components.train import Recipe, Trainer
from mlxroles.components.train_target import Target

OFTEN = 0.1
"""How often a feature is there."""
LAST = 100
"""Steps at the end whose mean loss is a start's."""
RECIPE = Recipe(
    steps=600,
    rate=2e-2,
    warmup=100,
    importance="shared",
    hidden=(32,),
    minimality=3e-3,
    layerwise=0.0,
)
SUPERPOSED = replace(
    RECIPE,
    steps=1500,
    rate=1e-2,
    importance="activation",
    hidden=(8,),
    layerwise=1.0,
    faithfulness=1.0,
)

Directions = tuple[np.ndarray, np.ndarray]
"""Reading and writing directions of the true parts of a map [part, d]."""


class Line(nn.Module):
    """y = W x."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.map = nn.Linear(*weight.shape[::-1], bias=False)
        self.map.weight = mx.array(weight.astype(np.float32))

    def __call__(self, x: mx.array) -> mx.array:
        """Outputs [example, d]."""
        return self.map(x)


class Superposition(nn.Module):
    """y = relu(W^T W x + b)."""

    def __init__(self, weight: np.ndarray, bias: float) -> None:
        super().__init__()
        d, n = weight.shape
        self.read, self.write = nn.Linear(n, d, bias=False), nn.Linear(d, n)
        self.read.weight = mx.array(weight.astype(np.float32))
        self.write.weight = self.read.weight.T
        self.write.bias = mx.full((n,), bias)

    def __call__(self, x: mx.array) -> mx.array:
        """Outputs [example, feature]."""
        return nn.relu(self.write(self.read(x)))


@dataclass(frozen=True)
class Toy:
    """A network whose parts are known."""

    module: nn.Module
    parts: Mapping[str, Directions]
    """Of each map."""
    features: np.ndarray
    """Directions of the features in the input [feature, d]."""
    examples: int
    """In a batch."""
    components: int
    """Of each map."""
    recipe: Recipe
    starts: int

    @property
    def target(self) -> Target:
        """The network with its maps."""
        return Target.of_module(self.module, {name: name for name in self.parts})

    def batch(self, step: int) -> mx.array:
        """Examples of rare features [example, d]; the same ones for every start."""
        rng = np.random.default_rng([1, step])
        shape = (self.examples, len(self.features))
        size = (0.5 + 0.5 * rng.random(shape)) * (rng.random(shape) < OFTEN)
        return mx.array((size @ self.features).astype(np.float32))

    def by_singular_values(self) -> np.ndarray:
        """Scores of the parts that the weights' singular vectors make."""
        scores = []
        for name, weight in self.target.weights.items():
            left, values, right = np.linalg.svd(np.array(weight), full_matrices=False)
            scores.append(cosines(self.parts[name], right.T, (left * values).T))
        return np.concatenate(scores)


class Found(NamedTuple):
    """What one start came to."""

    scores: np.ndarray
    """Largest cosine of each true part to a component [part of each map]."""
    loss: float


def orthonormal(seed: int) -> Toy:
    """Six orthonormal parts, all alike."""
    rng = np.random.default_rng(seed)
    read, written = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
    return Toy(Line(written.T @ read), {"map": (read, written)}, read, 128, 24, RECIPE, 1)


def unequal(seed: int) -> Toy:
    """Six oblique parts of different strengths."""
    rng = np.random.default_rng(seed)
    written, features = rng.standard_normal((6, 6)), np.linalg.qr(rng.standard_normal((6, 6)))[0]
    features += 0.35 * rng.standard_normal((6, 6)) / 6**0.5
    features, written = _unit(features), _unit(written)
    read = np.linalg.inv(features).T  # blind to all features but its own
    weight = (written * np.linspace(0.5, 1.5, 6)[:, None]).T @ read
    return Toy(Line(weight), {"map": (_unit(read), written)}, features, 128, 24, RECIPE, 6)


def superposed(seed: int) -> Toy:
    """Five features at equal angles in a plane, read and written along the same directions."""
    angles = 2 * np.pi * (np.arange(5) / 5 + np.random.default_rng(seed).random())
    inside, outside = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.eye(5)
    parts = {"read": (outside, inside), "write": (inside, outside)}
    return Toy(Superposition(inside.T, -0.3), parts, outside, 512, 20, SUPERPOSED, 4)


TOYS: Mapping[str, Callable[[int], Toy]] = {
    "orthonormal": orthonormal,
    "unequal": unequal,
    "superposed": superposed,
}


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cosines(true: Directions, V: np.ndarray, U: np.ndarray) -> np.ndarray:
    """Largest cosine of each true part to a component, as matrices: [part].

    Args:
        true: Directions of the parts, of length 1.
        V: Reading directions of the components [d, component].
        U: Writing directions [component, d].
    """
    read = true[0] @ V / np.maximum(np.linalg.norm(V, axis=0), 1e-12)
    written = true[1] @ U.T / np.maximum(np.linalg.norm(U, axis=1), 1e-12)
    return (read * written).max(axis=1)


def decompose(toy: Toy, seed: int, recipe: Recipe | None = None) -> Found:
    """What training from one random start finds."""
    sizes = dict.fromkeys(toy.parts, toy.components)
    trainer = Trainer(toy.target, sizes, recipe or toy.recipe, seed)
    losses = []
    while trainer.step < trainer.recipe.length:
        losses.append(trainer.advance(toy.batch)["loss"])
    own = {name: np.array(value) for name, value in trainer.parameters.items()}
    scores = [cosines(true, own[f"{key}/V"], own[f"{key}/U"]) for key, true in toy.parts.items()]
    return Found(np.concatenate(scores), float(np.mean(losses[-LAST:])))


def main(seeds: str | int = 3, name: str = "orthonormal") -> list[float]:
    """Prints the answer and returns the mean of the largest cosines by seed."""
    if name not in TOYS:
        sys.exit(f"{name} is none of {', '.join(TOYS)}")
    means = []
    print(f"toy {name}: mean over parts of the largest cosine to a component")
    for seed in range(int(seeds)):
        toy = TOYS[name](seed)
        starts = [decompose(toy, 100 * seed + n) for n in range(toy.starts)]
        best = min(starts, key=lambda found: found.loss)
        free = decompose(toy, 100 * seed, replace(toy.recipe, minimality=0.0))
        hits = sum(bool(found.scores.mean() >= 0.99) for found in starts)
        means.append(float(best.scores.mean()))
        print(
            f"  seed {seed}: trained {means[-1]:.4f} ({hits} of {toy.starts} starts reach .99)   "
            f"singular values {toy.by_singular_values().mean():.4f}   "
            f"without minimality {free.scores.mean():.4f}",
            flush=True,
        )
    return means


if __name__ == "__main__":
    main(*sys.argv[1:3])
