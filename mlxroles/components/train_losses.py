"""The losses and random masks of stochastic parameter decomposition, as pure functions of arrays.

A map y = W x + b is replaced by y = ((x V) * m) U + m_D D x + b with the left-over D = W - (V U)^T
(:func:`masked_output`). The mask of a component with causal importance g is m = g + (1 - g) r with
r in [0, 1]: what is important is always there, and whatever is not may be left out in any part
without the model noticing. Formulas are those of Bushnaq et al. 2025 and their program.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mlxroles.backend import mx

Arrays = Mapping[str, mx.array]
SAMPLINGS = ("uniform", "bernoulli", "binomial")
"""How r is drawn: from [0, 1); 0 or 1; or 0 or 1 with the importance drawn a little, too."""
TINY = 1e-12


class Mask(NamedTuple):
    """What is left of one map at each position [...]."""

    components: mx.array
    """Of the components [..., component]."""
    rest: mx.array | None = None
    """Of the left-over D [...]; None leaves it out."""
    route: mx.array | None = None
    """Where the map is replaced at all [...], bool; None for everywhere."""


def masked_output(x: mx.array, y: mx.array, part: Arrays, mask: Mask, bias: mx.array) -> mx.array:
    """Output of a map under a mask: [..., d_out] in float32.

    Args:
        x: What enters the map [..., d_in].
        y: The map's own output W x + b [..., d_out], from which D x is what V U leaves.
        part: ``V`` [d_in, component] and ``U`` [component, d_out].
        mask: What is left.
        bias: b [d_out], or 0.
    """
    x, own = x.astype(mx.float32), y.astype(mx.float32)
    a = x @ part["V"]
    if mask.rest is None:
        out = (a * mask.components) @ part["U"] + bias
    else:
        rest = mask.rest[..., None]
        out = (a * (mask.components - rest)) @ part["U"] + rest * own + (1 - rest) * bias
    return out if mask.route is None else mx.where(mask.route[..., None], out, own)


def sampled_importance(before: mx.array, sampling: str, key: mx.array) -> mx.array:
    """What goes into the lower leaky sigmoid: 1.05 x - .05 u for ``binomial``, else x."""
    if sampling != "binomial":
        return before
    return 1.05 * before - 0.05 * mx.random.uniform(shape=before.shape, key=key)


def sources(shape: Sequence[int], sampling: str, key: mx.array) -> mx.array:
    """The r of the mask: uniform in [0, 1), or 0 and 1 with equal chances."""
    if sampling == "uniform":
        return mx.random.uniform(shape=shape, key=key)
    return mx.random.bernoulli(0.5, shape=shape, key=key).astype(mx.float32)


def between(g: mx.array, r: mx.array) -> mx.array:
    """The mask g + (1 - g) r."""
    return g + (1 - g) * r


def stochastic(g: Arrays, sampling: str, key: mx.array) -> dict[str, Mask]:
    """Masks of all maps, the left-over's drawn evenly from [0, 1)."""
    found = {}
    for own, (name, value) in zip(mx.random.split(key, len(g)), g.items(), strict=True):
        first, second = mx.random.split(own)
        rest = mx.random.uniform(shape=value.shape[:-1], key=second)
        found[name] = Mask(between(value, sources(value.shape, sampling, first)), rest)
    return found


def routed(masks: Mapping[str, Mask], key: mx.array) -> dict[str, Mask]:
    """The same masks, each position of them sent through a random subset of the maps.

    The number of maps is drawn evenly from 1 to all of them, position by position.
    """
    shape = next(iter(masks.values())).components.shape[:-1]
    first, second = mx.random.split(key)
    n = mx.random.randint(1, len(masks) + 1, shape=shape, key=first)
    noise = mx.random.uniform(shape=(len(masks), *shape), key=second)
    ranks = mx.argsort(mx.argsort(noise, axis=0), axis=0)
    return {key: m._replace(route=ranks[i] < n) for i, (key, m) in enumerate(masks.items())}


def faithfulness(weights: Arrays, parts: Mapping[str, Arrays]) -> mx.array:
    """Sum of squares of W - (V U)^T over all maps, per parameter of W.

    Args:
        weights: Map -> W [d_out, d_in].
        parts: Map -> ``V`` and ``U``.
    """
    left = [((w - (parts[key]["V"] @ parts[key]["U"]).T) ** 2).sum() for key, w in weights.items()]
    return mx.stack(left).sum() / sum(w.size for w in weights.values())


def minimality(upper: Arrays, p: float, beta: float) -> mx.array:
    """Importance minimality: what it costs that components are important.

    Sum over maps and components of mean[(g + 1e-12)^p] (1 + beta log2(1 + sum[(g + 1e-12)^p])),
    mean and sum over positions, g through the upper leaky sigmoid.
    """
    total = mx.array(0.0)
    for g in upper.values():
        powers = ((g + TINY) ** p).reshape(-1, g.shape[-1])
        often = 1 + beta * mx.log2(1 + powers.sum(axis=0)) if beta else 1
        total = total + (powers.mean(axis=0) * often).sum()
    return total


def squared_error(output: mx.array, target: mx.array) -> mx.array:
    """Mean squared difference over all numbers."""
    return ((output - target) ** 2).mean()


def divergence(output: mx.array, target: mx.array) -> mx.array:
    """KL(target || output) in nats of the next token, mean over positions; logits [..., vocab]."""
    output, target = output.astype(mx.float32), target.astype(mx.float32)
    log_q = output - mx.logsumexp(output, axis=-1, keepdims=True)
    log_p = target - mx.logsumexp(target, axis=-1, keepdims=True)
    return (mx.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()


def annealed(first: float, last: float, fraction: float) -> float:
    """Value that goes evenly from ``first`` to ``last`` in the course of training."""
    return first + (last - first) * min(1.0, max(0.0, fraction))


def cosine(rate: float, fraction: float) -> float:
    """Learning rate that falls from ``rate`` to 0 along half a cosine."""
    return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, fraction))))
