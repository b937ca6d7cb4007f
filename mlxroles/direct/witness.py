"""A run of which submodules of the blocks, and what comes after them, are noted too."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlxroles.anatomy import stream
from mlxroles.attribution.trace import Key, Trace
from mlxroles.backend import mx, nn
from mlxroles.edits import Edit
from mlxroles.forward import Network, Start
from mlxroles.forward.asked import at
from mlxroles.taps import LayerHook, ModuleCall

Leaf = tuple[int | None, str]
"""Layer and path inside of it; None for a path of the network outside all blocks."""


class Witness(Trace):
    """A run of one prompt whose noted arrays are cropped to the positions asked for.

    Args:
        network: What runs.
        watched: Sites whose arrays are noted.
        leaves: Submodules of which input and output are noted.
        read: Positions that are noted and at which logits are made; None for all.
        edits: Interventions.
        start: Where to begin, if not at the embedding.
        last: Last layer that is built; None for all of them, with the norm and the head.

    Raises:
        ModelError: a site that cannot be captured here.
    """

    def __init__(
        self,
        network: Network,
        watched: Collection[Key],
        leaves: Mapping[Leaf, nn.Module],
        *,
        read: Sequence[int] | None = None,
        edits: Sequence[Edit] = (),
        start: Start | None = None,
        last: int | None = None,
    ) -> None:
        super().__init__(
            network, {}, watched=watched, edits=edits, start=start, read=read, last=last
        )
        self.leaves = leaves
        self.noted: dict[Leaf, tuple[mx.array, mx.array]] = {}
        """Input and output of a leaf."""
        self.final: list[str] = []
        """Leaves outside the blocks that were handed the stream that left the last block."""

    def _pass(self, site: str, layer: int, array: mx.array) -> mx.array:
        array = super()._pass(site, layer, array)
        if (site, layer) in self.seen:
            self.seen[site, layer] = self.cropped(self.seen[site, layer])
        return array

    def cropped(self, array: mx.array) -> mx.array:
        """An array [1, position, ...] at the positions asked for, where it has more."""
        read = self.asked.read
        if read is None or array.shape[1] == len(read):
            return array
        return at(array, read) if array.ndim == 3 else array[:, mx.array([int(p) for p in read])]

    def module_hooks(self) -> list[tuple[nn.Module, LayerHook]]:
        """(submodule, callback) of all that is kept, edited or noted."""
        hooks = {id(module): (module, hook) for module, hook in super().module_hooks()}
        for leaf, module in self.leaves.items():
            inner = hooks.get(id(module))
            hooks[id(module)] = (module, self._noting(leaf, inner[1] if inner else None))
        return list(hooks.values())

    def _noting(self, leaf: Leaf, inner: LayerHook | None) -> LayerHook:
        def hook(call: ModuleCall) -> Any:
            out = call.run() if inner is None else inner(call)
            given = next((a for a in (*call.args, *call.kwargs.values()) if _is_array(a)), None)
            told = stream(out) if isinstance(out, (mx.array, tuple, list)) else None
            if given is None or not isinstance(told, mx.array) or given.ndim != 3:
                return out
            if leaf[0] is None and given is self.output:
                self.final.append(leaf[1])
            self.noted[leaf] = (self.cropped(given[...]), self.cropped(told[...]))
            return out

        return hook


def _is_array(value: Any) -> bool:
    return isinstance(value, mx.array)
