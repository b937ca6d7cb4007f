"""What turns the final stream into a logit: the norm with its scale held, and the head."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxroles.anatomy import stream
from mlxroles.attribution.trace import Trace
from mlxroles.backend import mx, nn, number
from mlxroles.direct.norms import frozen
from mlxroles.direct.structure import Structure
from mlxroles.errors import ModelError
from mlxroles.forward import Network, Start
from mlxroles.taps import LayerHook, ModuleCall

CLOSE = {mx.float32: 1e-4, mx.float16: 2e-2}
"""Largest difference of the model's logits from ours, as a share of the largest; bfloat16: 0.1."""
_LINEAR = 1e-5
"""Largest share by which twice the answer to half a vector may miss the answer to all of it."""
_CHECKED = 4
"""Positions at which all logits are compared with the model's own."""


@dataclass(frozen=True, eq=False)
class Readout:
    """The logit (or difference) before a soft-cap as a sum: stream . reader + constants."""

    reader: mx.array
    """[position, d_model], float32: the norm's scale at each position is in it."""
    norm_bias: float
    """What the final norm's bias writes to the logit."""
    head_bias: float
    cap: float | None
    """The model's logit is cap * tanh(this one / cap); None without."""


class Head(Trace):
    """A run in which something else reaches the head than the model's own final norm made."""

    def __init__(self, network: Network, structure: Structure, y: mx.array) -> None:
        n, size = len(network.layers), (1, y.shape[1], network.anatomy.d_model)
        start = Start(n, mx.zeros(size)) if network.anatomy.resumable else None
        super().__init__(network, {}, start=start)
        self.structure, self.y = structure, y

    def module_hooks(self) -> list[tuple[nn.Module, LayerHook]]:
        """(submodule, callback): what reads the final stream, and what it does instead."""
        module = dict(self.network.module.named_modules())[self.structure.final]
        return [(module, self._instead)]

    def _instead(self, call: ModuleCall) -> Any:
        if self.structure.is_norm:
            return self.y
        call.args = (self.y, *call.args[1:])
        return call.run()


def readout(
    network: Network,
    structure: Structure,
    final: mx.array,
    normed: mx.array,
    *,
    logits: mx.array,
    weights: mx.array,
) -> Readout:
    """How the final stream is read for a weighted sum of logits.

    Args:
        network: The network.
        structure: Its structure.
        final: Stream that entered the final norm [position, d_model].
        normed: What the norm made of it.
        logits: The model's own [position, vocab].
        weights: Of every logit in the sum [vocab].

    Raises:
        ModelError: the head is not what it would be if it were linear, up to a soft-cap.
    """
    norm = dict(network.module.named_modules())[structure.final] if structure.is_norm else None
    held = frozen(norm, final, normed)
    if held is None:
        raise ModelError(
            f"{network.architecture} has no direct logit attribution: its final norm is not a "
            "scale per position on this prompt"
        )

    def head(y: mx.array) -> mx.array:
        run = Head(network, structure, y)
        return stream(run.run(mx.zeros(y.shape[:2], dtype=mx.int32))).astype(mx.float32)

    at_zero, (reader,) = mx.vjp(head, [mx.zeros((1, 1, final.shape[-1]))], [weights[None, None]])
    some = held.gain[None] * _centred(final[:_CHECKED], held.centred) * held.scale[:_CHECKED]
    y = (some + held.bias)[None]
    cap = _cap(network, head, y, logits[:_CHECKED])
    flat = reader.reshape(-1)
    used = mx.where(weights != 0, at_zero[0].reshape(-1) * weights, 0.0)
    return Readout(
        held.pulled_back(flat[None]), number((held.bias * flat).sum()), number(used.sum()), cap
    )


def _centred(x: mx.array, centred: bool) -> mx.array:
    x = x.astype(mx.float32)
    return x - x.mean(axis=-1, keepdims=True) if centred else x


def _cap(
    network: Network, head: Callable[[mx.array], mx.array], y: mx.array, logits: mx.array
) -> float | None:
    """The soft-cap of a head [1, position, d_model] -> logits, None where it is linear.

    Raises:
        ModelError: the head is neither, or does not give the model's own logits.
    """
    bound = CLOSE.get(network.anatomy.dtype, 0.1)
    zero, half, whole = head(mx.zeros(y.shape))[0], head(y / 2)[0], head(y)[0]
    if _apart(whole, logits) <= bound:
        if _apart(2 * half - zero, whole) <= _LINEAR:
            return None
        _, (moved,) = mx.jvp(head, [mx.zeros(y.shape)], [y])
        linear = (zero + moved[0]).reshape(-1)
        at = int(number(mx.argmax(mx.abs(linear))))
        cap = _solved(abs(number(linear[at])), abs(number(whole.reshape(-1)[at])))
        if cap and _apart(cap * mx.tanh(linear / cap), whole.reshape(-1)) <= CLOSE[mx.float32]:
            return cap
    raise ModelError(
        f"{network.architecture} has no direct logit attribution: its logits are not those of a "
        "linear head, with or without a soft-cap"
    )


def _apart(a: mx.array, b: mx.array) -> float:
    """Largest difference of two arrays where both are finite, as a share of the largest number."""
    finite = mx.isfinite(a) & mx.isfinite(b)
    a, b = (mx.where(finite, x.astype(mx.float32), 0.0) for x in (a, b))
    return number(mx.abs(a - b).max() / mx.maximum(mx.abs(b).max(), 1e-30))


def _solved(linear: float, capped: float) -> float | None:
    """The cap with cap * tanh(linear / cap) = capped, or None."""
    if not 0 < capped < linear:
        return None
    low, high = capped * (1 + 1e-9), 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (
            (middle, high) if middle * math.tanh(linear / middle) < capped else (low, middle)
        )
    return float(f"{high:.3g}")  # caps are round numbers


def spread(vocab: int, plus: Sequence[int], minus: Sequence[int]) -> mx.array:
    """Weights [vocab] of the mean logit of some ids less the mean of others."""
    out = mx.zeros(vocab)
    for ids, sign in ((plus, 1.0), (minus, -1.0)):
        for i in ids:
            out[i] = out[i] + sign / len(ids)
    return out
