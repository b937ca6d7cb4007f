"""Edits at linear leaves of a block: which leaves, whether they fit, and beside other callbacks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxroles.edits import LINEAR, Edit, LowRank
from mlxroles.errors import ModelError
from mlxroles.forward.network import Network
from mlxroles.taps import LayerHook, ModuleCall


def check_map(network: Network, edit: Edit) -> None:
    """Refuses an edit at ``LINEAR`` that its leaf cannot take; other edits pass.

    Raises:
        ModelError: several processes hold the leaf's weight together.
        ValueError: there is no such leaf, or the map has other sizes.
    """
    low = edit.value
    if not isinstance(low, LowRank):
        return
    if network.ranks is not None:
        raise ModelError(
            f"{low.leaf} of layer {edit.layer} cannot be edited: {network.parts} processes hold "
            "its weight together; run the model in one"
        )
    module = dict(network.layers[edit.layer].named_modules()).get(low.leaf)
    if module is None or "weight" not in module or module["weight"].ndim != 2:
        raise ValueError(f"layer {edit.layer} of {network.architecture} has no leaf {low.leaf}")
    wanted = list(module["weight"].shape)
    if "scales" in module:
        wanted[1] = module["scales"].shape[1] * module.group_size
    given = [low.U.shape[1], low.V.shape[0]]
    if given != wanted:
        raise ValueError(
            f"a map of {given[1]} to {given[0]} does not fit {low.leaf} of layer {edit.layer}, "
            f"which maps {wanted[1]} to {wanted[0]}"
        )


def leaf_paths(edits: Mapping[tuple[str, int], Iterable[Edit]]) -> list[tuple[int, str]]:
    """Layer and path of every leaf that is edited, of edits by site and layer."""
    found = {
        (layer, edit.value.leaf): None
        for (site, layer), some in edits.items()
        if site == LINEAR
        for edit in some
        if isinstance(edit.value, LowRank)
    }
    return list(found)


@dataclass
class _Nested(ModuleCall):
    """A call whose own run is another callback's."""

    inner: LayerHook

    def run(self) -> Any:
        """What the inner callback makes of the call as it stands."""
        return self.inner(ModuleCall(self.module, self.cls, self.args, self.kwargs, self.frame))


def nested(outer: LayerHook, inner: LayerHook) -> LayerHook:
    """A callback that hands ``outer`` a call of which ``inner`` is the module."""

    def hook(call: ModuleCall) -> Any:
        return outer(_Nested(call.module, call.cls, call.args, call.kwargs, call.frame, inner))

    return hook
