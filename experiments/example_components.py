"""Does stochastic parameter decomposition find the parts that a map was made of?

A toy whose parts are known: y = W x, where each of six features f_i is read along a direction of
its own and written along another, u_i: W is the sum of the rank-one matrices u_i f_i^T. All are
orthonormal, so all singular values are 1 and W alone does not say which parts it was made of; any
turned set would do. Only the inputs do: features are rare, each there once in ten times.

Twelve components are trained. For each true part the largest cosine to any component, as matrices,
is the score; 1 is found. Beside it stand controls that should not reach it: the same training
without importance minimality, the parts by singular values, and the random start.

    python experiments/example_components.py [SEEDS]
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlxroles.backend import mx, nn
from mlxroles.components.train import Recipe, Trainer
from mlxroles.components.train_target import Target

FEATURES, COMPONENTS, EXAMPLES = 6, 12, 128
OFTEN = 0.1
"""How often a feature is there."""
RECIPE = Recipe(
    steps=600,
    rate=2e-2,
    warmup=100,
    importance="activation",
    hidden=(4,),
    minimality=3e-3,
    layerwise=0.0,
)


class Toy(nn.Module):
    """y = W x."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.map = nn.Linear(*weight.shape, bias=False)
        self.map.weight = mx.array(weight.astype(np.float32))

    def __call__(self, x: mx.array) -> mx.array:
        """Outputs [example, FEATURES]."""
        return self.map(x)


def found(true: tuple[np.ndarray, np.ndarray], V: np.ndarray, U: np.ndarray) -> np.ndarray:
    """Largest cosine of each true part to a component, as matrices: [part].

    Args:
        true: Reading and writing directions of the parts [part, d], of length 1.
        V: Reading directions of the components [d, component].
        U: Writing directions [component, d].
    """
    read = true[0] @ V / np.maximum(np.linalg.norm(V, axis=0), 1e-12)
    written = true[1] @ U.T / np.maximum(np.linalg.norm(U, axis=1), 1e-12)
    return (read * written).max(axis=1)


def decompose(seed: int, recipe: Recipe = RECIPE) -> dict[str, np.ndarray | float]:
    """Scores of one toy: of the trained components, by singular values, and at the start."""
    rng = np.random.default_rng(seed)
    f, u = (np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0] for _ in range(2))
    weight = u.T @ f  # rows of f and u are the directions
    trainer = Trainer(
        Target.of_module(Toy(weight), {"map": "map"}), {"map": COMPONENTS}, recipe, seed
    )

    def examples(step: int) -> mx.array:
        rng = np.random.default_rng([seed, 1, step])
        size = (0.5 + 0.5 * rng.random((EXAMPLES, FEATURES))) * (
            rng.random((EXAMPLES, FEATURES)) < OFTEN
        )
        return mx.array((size @ f).astype(np.float32))

    def parts() -> tuple[np.ndarray, np.ndarray]:
        return np.array(trainer.parameters["map/V"]), np.array(trainer.parameters["map/U"])

    start = found((f, u), *parts())
    said: dict[str, float] = {}
    while trainer.step < recipe.length:
        said = trainer.advance(examples)
    left, values, right = np.linalg.svd(weight)
    return {
        "trained": found((f, u), *parts()),
        "singular values": found((f, u), right.T, (left * values).T),
        "start": start,
        "active": said["active"],
    }


def main(seeds: str | int = 3) -> dict[str, list[float]]:
    """Prints the answer and returns the mean of the largest cosines by seed."""
    from dataclasses import replace

    free = replace(RECIPE, minimality=0.0)
    means: dict[str, list[float]] = {}
    for seed in range(int(seeds)):
        own = decompose(seed)
        table = {name: own[name] for name in ("trained", "singular values", "start")}
        if not seed:
            table["trained without minimality"] = decompose(seed, free)["trained"]
        for name, scores in table.items():
            means.setdefault(name, []).append(float(np.mean(scores)))
        print(
            f"toy {seed}: {own['active']:.2f} components important at a time "
            f"({FEATURES * OFTEN:.2f} features are there)"
        )
    print("mean over parts of the largest cosine to a component:")
    for name, values in means.items():
        print(f"  {name:<28} {'  '.join(f'{value:.4f}' for value in values)}")
    return means


if __name__ == "__main__":
    main(*sys.argv[1:2])
