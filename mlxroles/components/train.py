"""Stochastic parameter decomposition: training components and their causal importance.

Bushnaq, Braun and Sharkey 2025. The components V U of each map, and a function that says from a
map's input which of them matter at a position, are trained so that the network still computes what
it does when everything unimportant is left out in any part, while as little as possible is
important. First, for ``Recipe.warmup`` steps, V U alone is brought close to the weights.

All that is random in a step follows from seed and step, and the state is small: a training that is
killed goes on from its last state to the same numbers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.optimizers as optimizers
import numpy as np

from mlxroles.backend import mx
from mlxroles.components import train_losses as losses
from mlxroles.components.importance import ALL, KINDS, before_sigmoid, lower_leaky, upper_leaky
from mlxroles.components.train_losses import Mask
from mlxroles.components.train_target import Parts, Target

TERMS = ("faithfulness", "minimality", "stochastic", "layerwise", "subset", "masked", "adversarial")
"""The losses of a recipe."""
IMPORTANCE = "importance/"
"""What the names of the importance function's parameters begin with."""
DECAY = 0.1
"""Weight decay of the warm-up."""

Parameters = dict[str, mx.array]


@dataclass(frozen=True)
class Recipe:
    """How components are trained. The loss is the sum of the terms times their coefficients.

    Raises:
        ValueError: a kind of importance function or of sampling that does not exist.
    """

    steps: int = 2000
    rate: float = 1e-3
    """Learning rate of Adam at the start; it falls to 0 along half a cosine."""
    warmup: int = 200
    """Steps on faithfulness alone before all others."""
    warmup_rate: float = 1e-2
    importance: str = "shared"
    """One of ``importance.KINDS``."""
    hidden: tuple[int, ...] = (64,)
    """Widths of the importance function's hidden layers."""
    faithfulness: float = 0.0
    minimality: float = 1e-3
    stochastic: float = 1.0
    """Reconstruction with stochastic masks on all maps at once."""
    layerwise: float = 1.0
    """The same with one map masked at a time, mean over maps."""
    layerwise_maps: int | None = None
    """How many maps are drawn for it in a step; None for all of them."""
    subset: float = 0.0
    """The same with each position sent through a random subset of the maps."""
    masked: float = 0.0
    """Reconstruction with the causal importances themselves as masks, nothing left over."""
    adversarial: float = 0.0
    """Reconstruction with the r that a few steps of ascent find."""
    ascents: int = 4
    ascent: float = 0.25
    """Size of a step of the ascent."""
    p: float = 1.0
    """Exponent of importance minimality at the start and, ``p_last``, at the end."""
    p_last: float = 1.0
    beta: float = 0.0
    sampling: str = "uniform"
    """One of ``train_losses.SAMPLINGS``."""

    def __post_init__(self) -> None:
        if self.importance not in KINDS:
            raise ValueError(f"importance {self.importance!r} is none of {', '.join(KINDS)}")
        if self.sampling not in losses.SAMPLINGS:
            raise ValueError(f"sampling {self.sampling!r} is none of {', '.join(losses.SAMPLINGS)}")

    @property
    def length(self) -> int:
        """Steps with the warm-up."""
        return self.warmup + self.steps


def random_key(*numbers: int) -> mx.array:
    """A random key that follows from some numbers."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return mx.random.key(int(state[0]) << 31 ^ int(state[1]))


def initial(target: Target, sizes: Mapping[str, int], recipe: Recipe, seed: int) -> Parameters:
    """Random components and importance function, by name: ``L3.q/V``, ``importance/L3.q.0.W``.

    Args:
        target: What is decomposed.
        sizes: Map -> number of its components.
        recipe: Says which importance function.
        seed: Of all numbers.
    """
    rng = np.random.default_rng([seed, 0])
    found: Parameters = {}

    def normal(name: str, shape: tuple[int, ...], scale: float) -> None:
        found[name] = mx.array((scale * rng.standard_normal(shape)).astype(np.float32))

    for key, n in sizes.items():
        d_out, d_in = target.leaves[key].weight.shape
        normal(f"{key}/V", (d_in, n), d_in**-0.5)
        normal(f"{key}/U", (n, d_out), n**-0.5)
    for owner, widths, n in _functions(target, sizes, recipe):
        for i, (wide, out) in enumerate(pairwise(widths)):
            gain = 2.0 if i < len(widths) - 2 else 1.0
            each = () if n is None else (n,)
            normal(f"{IMPORTANCE}{owner}.{i}.W", (*each, wide, out), (gain / wide) ** 0.5)
            found[f"{IMPORTANCE}{owner}.{i}.b"] = mx.zeros((*each, out))
    return found


def _functions(
    target: Target, sizes: Mapping[str, int], recipe: Recipe
) -> Iterable[tuple[str, tuple[int, ...], int | None]]:
    """Name, widths of the layers, and how many stand side by side, of each importance function."""
    widths = {key: target.leaves[key].weight.shape[1] for key in sizes}
    if recipe.importance == "global":
        yield ALL, (sum(widths.values()), *recipe.hidden, sum(sizes.values())), None
        return
    for key, n in sizes.items():
        if recipe.importance == "shared":
            yield key, (widths[key], *recipe.hidden, n), None
        else:
            wide = 1 if recipe.importance == "activation" else widths[key]
            yield key, (wide, *recipe.hidden, 1), n


def parts_of(parameters: Mapping[str, mx.array], keys: Iterable[str]) -> Parts:
    """``V`` and ``U`` of each map."""
    return {key: {name: parameters[f"{key}/{name}"] for name in "VU"} for key in keys}


class Seen(NamedTuple):
    """What a step is about."""

    batch: mx.array
    output: mx.array
    """The target's own."""
    x: dict[str, mx.array]
    """Map -> what enters it [..., d_in]."""
    key: mx.array
    """Of all that is random in the step."""


@dataclass(eq=False)
class Trainer:
    """A training: where it stands, and how to go a step on."""

    target: Target
    sizes: Mapping[str, int]
    """Map -> number of its components."""
    recipe: Recipe
    seed: int = 0
    step: int = 0
    """Steps done, the warm-up's first."""
    parameters: Parameters = field(default_factory=dict)
    optimizer: optimizers.Adam = field(init=False)

    def __post_init__(self) -> None:
        if not self.parameters:
            self.parameters = initial(self.target, self.sizes, self.recipe, self.seed)
        self.optimizer = self._optimizer()
        self._gradient = mx.value_and_grad(self._loss)
        self._warm_gradient = mx.value_and_grad(self._unfaithful)

    # --- a step -------------------------------------------------------------------------------

    def advance(self, batch: Callable[[int], mx.array]) -> dict[str, float]:
        """One step; its loss, the terms, and how many components are important at a position.

        Args:
            batch: The batch [row, ...] of a step, by its number; not asked in the warm-up.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        warm = self.step < self.recipe.warmup
        said = self._warm() if warm else self._go(batch(self.step - self.recipe.warmup))
        mx.eval(self.parameters, self.optimizer.state, said)
        self.step += 1
        if warm and self.step == self.recipe.warmup:
            self.optimizer = self._optimizer()
        values = {name: float(np.array(value)) for name, value in said.items()}
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss of step {self.step} is {values['loss']}; use a lower learning rate"
            )
        return values

    def _optimizer(self) -> optimizers.Adam:
        if self.step < self.recipe.warmup:
            made: optimizers.Adam = optimizers.AdamW(
                self.recipe.warmup_rate, weight_decay=DECAY, bias_correction=True
            )
            made.init(self._of_components())
        else:
            made = optimizers.Adam(self.recipe.rate, bias_correction=True)
            made.init(self.parameters)
        return made

    def _of_components(self) -> Parameters:
        return {k: v for k, v in self.parameters.items() if not k.startswith(IMPORTANCE)}

    def _unfaithful(self, parameters: Parameters) -> mx.array:
        return losses.faithfulness(self.target.weights, parts_of(parameters, self.sizes))

    def _warm(self) -> dict[str, mx.array]:
        own = self._of_components()
        loss, gradients = self._warm_gradient(own)
        self.parameters |= self.optimizer.apply_gradients(gradients, own)
        return {"loss": loss, "faithfulness": loss}

    def _go(self, batch: mx.array) -> dict[str, mx.array]:
        at = (self.step - self.recipe.warmup) / self.recipe.steps
        self.optimizer.learning_rate = losses.cosine(self.recipe.rate, at)
        seen = Seen(batch, *self.target.watched(batch), random_key(self.seed, 1, self.step))
        worst = self._adversary(seen) if self.recipe.adversarial else {}
        (_, said), gradients = self._gradient(self.parameters, seen, worst, at)
        self.parameters = self.optimizer.apply_gradients(gradients, self.parameters)
        return said

    # --- losses -------------------------------------------------------------------------------

    def importances(self, parameters: Parameters, x: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """What the importance function says before its sigmoid: map -> [..., component]."""
        a = {key: x[key] @ parameters[f"{key}/V"] for key in self.sizes}
        start = len(IMPORTANCE)
        own = {k[start:]: v for k, v in parameters.items() if k.startswith(IMPORTANCE)}
        return before_sigmoid(self.recipe.importance, own, x, a, self.sizes)

    def _loss(
        self, parameters: Parameters, seen: Seen, worst: Mapping[str, mx.array], at: float
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """The loss, and what is told of the step."""
        recipe, keys = self.recipe, mx.random.split(seen.key, 8)
        before = self.importances(parameters, seen.x)
        g: dict[str, mx.array] = {}
        for n, (name, value) in enumerate(before.items()):
            own = mx.random.split(keys[0], len(before))[n]
            g[name] = lower_leaky(losses.sampled_importance(value, recipe.sampling, own))
        upper = {name: upper_leaky(value) for name, value in before.items()}
        parts = parts_of(parameters, self.sizes)

        def apart(masks: Mapping[str, Mask]) -> mx.array:
            return self.target.distance(self.target.masked(seen.batch, parts, masks), seen.output)

        def masks(n: int) -> dict[str, Mask]:
            return losses.stochastic(g, recipe.sampling, keys[n])

        p = losses.annealed(recipe.p, recipe.p_last, at)
        terms = {
            "faithfulness": lambda: self._unfaithful(parameters),
            "minimality": lambda: losses.minimality(upper, p, recipe.beta),
            "stochastic": lambda: apart(masks(1)),
            "layerwise": lambda: self._layerwise(apart, masks(2), keys[3]),
            "subset": lambda: apart(losses.routed(masks(4), keys[5])),
            "masked": lambda: apart({k: Mask(v) for k, v in g.items()}),
            "adversarial": lambda: apart(_adversarial(g, worst)),
        }
        said = {n: make() for n, make in terms.items() if getattr(recipe, n)}
        total = mx.stack([getattr(recipe, name) * value for name, value in said.items()]).sum()
        said.setdefault("faithfulness", self._unfaithful(parameters))
        active = [(value > 0).sum(axis=-1).mean() for value in before.values()]
        return total, {"loss": total, **said, "active": mx.stack(active).sum()}

    def _layerwise(
        self, apart: Callable[[dict[str, Mask]], mx.array], masks: dict[str, Mask], key: mx.array
    ) -> mx.array:
        names = list(masks)
        n = self.recipe.layerwise_maps
        if n is not None and n < len(names):
            order: Any = mx.random.permutation(len(names), key=key).tolist()
            names = [names[i] for i in sorted(order[:n])]
        return mx.stack([apart({name: masks[name]}) for name in names]).mean()

    def _adversary(self, seen: Seen) -> dict[str, mx.array]:
        """Each map's worst r [..., component + 1], the last one that of what is left over.

        Found by signed steps up the error, held in [0, 1], from a random start.
        """
        before = self.importances(self.parameters, seen.x)
        g = {name: mx.clip(value, 0, 1) for name, value in before.items()}
        parts = parts_of(self.parameters, self.sizes)

        def apart(r: dict[str, mx.array]) -> mx.array:
            output = self.target.masked(seen.batch, parts, _adversarial(g, r))
            return self.target.distance(output, seen.output)

        starts = mx.random.split(mx.random.split(seen.key)[1], len(g))
        r = {
            name: mx.random.uniform(shape=(*value.shape[:-1], value.shape[-1] + 1), key=own)
            for own, (name, value) in zip(starts, g.items(), strict=True)
        }
        climb = mx.grad(apart)
        for _ in range(self.recipe.ascents):
            up = climb(r)
            r = {n: mx.clip(v + self.recipe.ascent * mx.sign(up[n]), 0, 1) for n, v in r.items()}
            mx.eval(r)
        return r

    # --- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Everything that going on takes, by name; ``restored`` reads it."""
        found = {f"value/{name}": value for name, value in self.parameters.items()}
        for name, moments in self.optimizer.state.items():
            if isinstance(moments, dict):
                found |= {f"{kind}/{name}": value for kind, value in moments.items()}
        at = {"step": self.step, "updates": int(self.optimizer.step.item())}
        counts = {name: np.array([value], dtype=np.int64) for name, value in at.items()}
        return {name: np.array(value) for name, value in found.items()} | counts

    def restored(self, state: Mapping[str, np.ndarray]) -> "Trainer":
        """The training at the point at which its ``state`` was taken.

        Raises:
            KeyError: it is the state of another training.
        """
        values = {name: mx.array(state[f"value/{name}"]) for name in self.parameters}
        made = replace(self, step=int(state["step"][0]), parameters=values)
        for name, moments in made.optimizer.state.items():
            if isinstance(moments, dict):
                for kind in moments:
                    moments[kind] = mx.array(state[f"{kind}/{name}"])
        made.optimizer.state["step"] = mx.array(int(state["updates"][0]), dtype=mx.uint64)
        return made


def _adversarial(g: Mapping[str, mx.array], r: Mapping[str, mx.array]) -> dict[str, Mask]:
    return {
        name: Mask(losses.between(value, r[name][..., :-1]), r[name][..., -1])
        for name, value in g.items()
    }
