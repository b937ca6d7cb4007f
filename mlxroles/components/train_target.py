"""What is decomposed: a network whose linear maps can be replaced by masked components.

The network's own forward runs, with a tap on the linear leaves. Any ``nn.Module`` will do (a toy),
with the paths of its leaves; of a model of mlx_lm the maps are those of ``maps``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlxroles.backend import mx, nn
from mlxroles.components.maps import Map
from mlxroles.components.train_losses import Mask, divergence, masked_output, squared_error
from mlxroles.models import weights
from mlxroles.models.model import Model
from mlxroles.taps import LayerHook, ModuleCall, Tap

Parts = Mapping[str, Mapping[str, mx.array]]
"""Map -> ``V`` [d_in, component] and ``U`` [component, d_out]."""


class Leaf(NamedTuple):
    """Where a map lies in the network."""

    module: nn.Module
    weight: mx.array
    """[d_out, d_in], float32."""
    rows: mx.array | None = None
    """Places of the map's outputs in those of a fused leaf; None where there are no others."""

    @property
    def bias(self) -> mx.array:
        """[d_out], or 0."""
        bias = self.module.get("bias")
        if bias is None:
            return mx.array(0.0)
        return (bias if self.rows is None else bias[self.rows]).astype(mx.float32)


@dataclass(frozen=True, eq=False)
class Target:
    """A network that stays as it is, and its maps."""

    forward: Callable[[mx.array], mx.array]
    """From a batch to what is to be reconstructed: outputs [..., d] or logits [..., vocab]."""
    leaves: Mapping[str, Leaf]
    """By the name of the map, in the order in which they run."""
    distance: Callable[[mx.array, mx.array], mx.array]
    """Of an output to the target's own: ``squared_error`` or ``divergence``."""

    @classmethod
    def of_module(cls, module: nn.Module, paths: Mapping[str, str]) -> "Target":
        """A module whose outputs are numbers; ``paths`` are those of its linear leaves by name."""
        named = dict(module.named_modules())
        leaves = {key: Leaf(named[p], weights.dense(named[p])) for key, p in paths.items()}
        return cls(module, leaves, squared_error)

    @classmethod
    def of_model(cls, model: Model, maps: Mapping[str, Map]) -> "Target":
        """A language model, whose next-token distribution is to be reconstructed."""
        leaves = {
            key: Leaf(
                m.leaf(model),
                mx.array(m.weight(model)),
                None if m.rows is None else mx.array(m.rows),
            )
            for key, m in maps.items()
        }

        def logits(tokens: mx.array) -> mx.array:
            return model.module(tokens).astype(mx.float32)

        return cls(logits, leaves, divergence)

    @property
    def weights(self) -> dict[str, mx.array]:
        """Map -> W [d_out, d_in]."""
        return {key: leaf.weight for key, leaf in self.leaves.items()}

    def watched(self, batch: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        """The network's own output, and what enters each map [..., d_in] in float32."""
        entered: dict[int, mx.array] = {}

        def watch(call: ModuleCall) -> Any:
            entered[id(call.module)] = call.args[0].astype(mx.float32)
            return call.run()

        with self._tap(watch):
            output = self.forward(batch)
        return output, {key: entered[id(leaf.module)] for key, leaf in self.leaves.items()}

    def masked(self, batch: mx.array, parts: Parts, masks: Mapping[str, Mask]) -> mx.array:
        """The output with some maps replaced by masked components."""
        own = {key: leaf for key, leaf in self.leaves.items() if key in masks}

        def replace(call: ModuleCall) -> Any:
            x, y = call.args[0], call.run()
            out = y
            for key, leaf in own.items():
                if leaf.module is not call.module:
                    continue
                before = y if leaf.rows is None else y[..., leaf.rows]
                new = masked_output(x, before, parts[key], masks[key], leaf.bias).astype(y.dtype)
                out = new if leaf.rows is None else _set(out, leaf.rows, new)
            return out

        with self._tap(replace):
            return self.forward(batch)

    def _tap(self, hook: LayerHook) -> Tap:
        modules = {id(leaf.module): leaf.module for leaf in self.leaves.values()}
        return Tap((), modules=[(module, hook) for module in modules.values()])


def _set(array: mx.array, rows: mx.array, values: mx.array) -> mx.array:
    """The array [..., d] with values [..., row] at some places of its last axis."""
    changed = array[...]
    changed[..., rows] = values
    return changed
