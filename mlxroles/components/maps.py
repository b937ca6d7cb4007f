"""The linear maps of a model that can be decomposed: where they are, and their weights.

A map is one of a layer's q, k, v and o projections or a linear leaf of its MLP. It is known by
``L3.q`` or, in an MLP, by its place in the block, ``L3.mlp.down_proj``. Where q, k and v lie in
one fused matrix a map is its rows. What the model does not verifiably compute is refused by name,
as for the weights per head (``models.weights``).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlxroles.anatomy import PROBE
from mlxroles.backend import mx, nn
from mlxroles.errors import ModelError
from mlxroles.forward import forward
from mlxroles.models import weights
from mlxroles.models.model import Model

ATTENTION = ("q", "k", "v", "o")
KINDS = (*ATTENTION, "mlp")
IN_MLP = ("mlp", "ff", "feed", "fc", "moe")
"""What is part of the name of an MLP in its block, whatever the architecture calls it."""


@dataclass(frozen=True, eq=False)
class Map:
    """One linear map W [d_out, d_in] of a layer; its bias is no part of it."""

    key: str
    """``L3.q``, ``L3.mlp.down_proj``."""
    layer: int
    kind: str
    """One of ``KINDS``."""
    path: str
    """The linear leaf in its block."""
    rows: np.ndarray | None = field(repr=False)
    """Places of the map's outputs in those of a fused leaf; None where the leaf has no others."""
    d_in: int
    d_out: int
    n_heads: int = 0
    """Heads of this map: query heads of q and o, key-value heads of k and v; 0 in an MLP."""
    d_head: int = 0

    def leaf(self, model: Model) -> nn.Module:
        """The linear module that holds the weight."""
        return dict(model.network.layers[self.layer].named_modules())[self.path]

    def weight(self, model: Model) -> np.ndarray:
        """W [d_out, d_in], dequantised to float32."""
        whole = np.array(weights.dense(self.leaf(model)))
        return whole if self.rows is None else whole[self.rows]


def decomposable(
    model: Model, kinds: Iterable[str] = KINDS, *, layers: Iterable[int] | None = None
) -> dict[str, Map]:
    """The maps of these kinds by key, layer by layer; layers without attention have none.

    Raises:
        ModelError: a map that the model does not have as a matrix of its own, naming it: experts,
            latent attention, gates between the heads and their output; or no map at all.
        ValueError: a kind or layer that does not exist.
    """
    wanted = tuple(dict.fromkeys(kinds))
    for kind in wanted:
        if kind not in KINDS:
            raise ValueError(f"map {kind!r} is none of {', '.join(KINDS)}")
    network, n = model.network, model.n_layers
    chosen = range(n) if layers is None else sorted({*layers})
    for layer in chosen:
        if not 0 <= layer < n:
            raise ValueError(f"layer {layer} is outside 0..{n - 1}")
    if network.ranks is not None or network.anatomy.refused:
        why = network.anatomy.refused or "several processes hold its weights together"
        raise ModelError(f"{model.architecture} has no maps to decompose: {why}")
    attended = [i for i in chosen if network.block(i).kind != "none"]
    if not attended:
        raise ModelError(f"{model.architecture} has no maps to decompose: no softmax attention")
    probe = mx.array([PROBE])
    entering = weights.inputs(network, attended, probe)
    found: dict[str, Map] = {}
    for layer in attended:
        for m in _of_layer(model, layer, entering[layer], wanted):
            found[m.key] = m
    return found


def inputs(model: Model, maps: Iterable[Map], tokens: mx.array) -> dict[str, mx.array]:
    """What enters each map in one run of tokens [batch, position]: x [batch, position, d_in].

    One array serves q, k and v of a layer. Evaluated; the model's dtype.
    """
    named = list(maps)
    entering = weights.inputs(model.network, sorted({m.layer for m in named}), tokens)
    found = {m.key: entering[m.layer][m.path][1] for m in named}
    mx.eval(list(found.values()))
    return found


def _of_layer(
    model: Model, layer: int, leaves: weights.Inputs, kinds: Sequence[str]
) -> Iterator[Map]:
    """The maps of one layer in the order of ``KINDS``."""
    taken = _attention(model, layer, leaves, kinds)
    yield from (m for m in taken.values() if m.kind in kinds)
    if "mlp" in kinds:
        yield from _mlp(model, layer, leaves)


def _attention(
    model: Model, layer: int, leaves: weights.Inputs, kinds: Sequence[str]
) -> dict[str, Map]:
    """Those of q, k, v and o that are wanted."""
    found: dict[str, Map] = {}
    if {*kinds} & {"q", "k", "v"}:
        of = _sites(model, layer, "qkv", kinds)
        cuts = weights.attention_cuts(leaves, of)
        for kind in "qkv":
            if kind not in kinds:
                continue
            heads, width = of[kind].shape[2:]
            cut = None if cuts is None else cuts[kind]
            if cut is None or cut.weight.shape[0] != heads * width or not _is_map(leaves, cut.path):
                why = "no matrix maps the normed stream to its heads"
                raise _refused(model, layer, kind, why, "qkv" if cuts is None else kind)
            found[kind] = _cut_map(layer, kind, cut, heads, width)
    if "o" in kinds:
        z = _sites(model, layer, "z", kinds)["z"]
        path = weights.output_leaf(leaves, z)
        if path is None or not _is_map(leaves, path):
            raise _refused(
                model, layer, "o", "something stands between its heads and the output matrix"
            )
        (heads, width), (d_out, d_in) = z.shape[2:], _shape(leaves[path][0], leaves[path][1])
        found["o"] = Map(f"L{layer}.o", layer, "o", path, None, d_in, d_out, heads, width)
    return found


def _sites(model: Model, layer: int, names: str, kinds: Sequence[str]) -> Mapping[str, mx.array]:
    missing = model.network.block(layer).missing
    absent = next((s for s in names if s in missing), None)
    if absent is not None:
        kind = next(k for k in kinds if k in ("o" if absent == "z" else names))
        raise _refused(model, layer, kind, missing[absent])
    run = forward(model.network, mx.array([PROBE]), keep=list(names), layers=[layer], logits=False)
    return {name: run[name, layer] for name in names}


def _cut_map(layer: int, kind: str, cut: weights.Cut, heads: int, width: int) -> Map:
    rows = None if cut.rows is None else np.array(cut.rows)
    d_out, d_in = cut.weight.shape
    return Map(f"L{layer}.{kind}", layer, kind, cut.path, rows, d_in, d_out, heads, width)


def _mlp(model: Model, layer: int, leaves: weights.Inputs) -> Iterator[Map]:
    """The linear leaves of the layer's MLP, in the order in which they run."""
    named = {
        path: module
        for path, module in model.network.layers[layer].named_modules()
        if "weight" in module and any(part in path.split(".")[0] for part in IN_MLP)
    }
    if any(module["weight"].ndim == 3 for module in named.values()):
        raise _refused(model, layer, "mlp", "it sends positions to experts")
    chosen = [path for path in leaves if path in named]
    if not chosen or not all(_is_map(leaves, path) for path in chosen):
        raise _refused(model, layer, "mlp", "no linear matrices of an MLP are found in it")
    for path in chosen:
        d_out, d_in = _shape(*leaves[path])
        yield Map(f"L{layer}.{path}", layer, "mlp", path, None, d_in, d_out)


def _is_map(leaves: weights.Inputs, path: str) -> bool:
    """Whether a leaf maps every position by its own weight alone."""
    module, x = leaves[path]
    return x.shape[:-1] == (1, len(PROBE)) and weights.is_plain_map(module, x)


def _shape(module: nn.Module, x: mx.array) -> tuple[int, int]:
    """(d_out, d_in) of a linear leaf, also a quantised one, by what enters it."""
    return module["weight"].shape[0], x.shape[-1]


def _refused(model: Model, layer: int, kind: str, why: str, alike: str = "") -> ModelError:
    """The refusal of a kind of map; ``alike`` are further ones that would be refused too."""
    others = ",".join(k for k in KINDS if k != kind and k not in alike)
    return ModelError(
        f"{kind} of layer {layer} of {model.architecture} cannot be decomposed: {why}; name other "
        f"maps, of {others}"
    )
