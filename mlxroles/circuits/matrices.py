"""The four matrices of every head, with the gains of the norms around them if wanted.

A head reads the stream through a norm (x - mean) / size * gain + bias. Its gain, and that the mean
is taken out, are linear and can be folded into W_Q, W_K and W_V; a norm between W_O and the stream
likewise into W_O, and gains of norms of queries and keys into W_Q and W_K. The size that a norm
divides by depends on the prompt and is left out everywhere, as are soft-caps and biases of values.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

from mlxroles.anatomy import PROBE, distance
from mlxroles.backend import mx, nn, number
from mlxroles.circuits.ends import folded, sized
from mlxroles.circuits.gains import Norm, norm_before, own_gain
from mlxroles.direct.norms import gain_of
from mlxroles.direct.structure import Writer, structure_of
from mlxroles.direct.witness import Leaf, Witness
from mlxroles.errors import ModelError
from mlxroles.forward import Network
from mlxroles.models import weights
from mlxroles.models.model import Model
from mlxroles.text import ranges

_ROWS = 4
"""Prompts of the run, each beginning with another token: norms of queries are told from gains."""


@dataclass(frozen=True, eq=False)
class Heads:
    """W_Q, W_K, W_V and W_O of one layer, float32; rows of the stream are multiplied from the left.

    Query head h reads kv head h // group. A head's attention score is (x_q W_Q) . (x_k W_K), but
    for RoPE and the layer's scale; what it writes is x_k W_V W_O.
    """

    layer: int
    q: mx.array
    """[head, d_model, d_head]."""
    k: mx.array
    """[kv_head, d_model, d_head]."""
    v: mx.array
    """[kv_head, d_model, d_value]."""
    o: mx.array
    """[head, d_value, d_model]."""
    q_bias: mx.array | None = None
    """[head, d_head], what is added to the queries whatever the stream; None where nothing is."""
    k_bias: mx.array | None = None
    """[kv_head, d_head]."""
    norm: Norm | None = None
    """The norm before the heads that is folded in, without its gain and bias."""
    notes: tuple[str, ...] = ()
    """What is in the computation and not in the matrices."""

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.q.shape[0] // self.k.shape[0]

    def shared(self, kv: mx.array) -> mx.array:
        """An array [kv_head, ...] once for every query head [head, ...]."""
        return mx.repeat(kv, self.group, axis=0) if self.group > 1 else kv

    def normed(self, rows: mx.array) -> mx.array:
        """Rows of the stream [row, d_model] as these matrices expect them.

        Where a norm is folded into them, that is what it makes of the rows but for its gain.
        """
        if self.norm is None:
            return rows
        return sized(rows, centred=self.norm.centred, epsilon=self.norm.epsilon)

    def queries(self, x: mx.array) -> mx.array:
        """Queries [head, row, d_head] of normed rows of the stream [row, d_model], before RoPE."""
        made = x @ self.q
        return made if self.q_bias is None else made + self.q_bias[:, None]

    def keys(self, x: mx.array) -> mx.array:
        """Keys of every query head [head, row, d_head], before RoPE."""
        made = x @ self.k
        return self.shared(made if self.k_bias is None else made + self.k_bias[:, None])


class _Look(NamedTuple):
    """One run of a few tokens in which every submodule of the blocks was noted."""

    witness: Witness
    writers: tuple[Writer | None, ...]
    why: str
    """Why there are no writers, or nothing."""


_KNOWN: "WeakKeyDictionary[Network, _Look]" = WeakKeyDictionary()


def heads_of(model: Model, layer: int, *, fold_norms: bool = True) -> Heads:
    """The matrices of the heads of a layer.

    Args:
        model: Any model that one process holds.
        layer: Layer.
        fold_norms: Whether gains and centring of norms are in the matrices.

    Raises:
        ModelError: the layer has no matrices that are verified to compute what the model does, or
            a norm before them that is none.
        ValueError: the layer does not exist.
    """
    network = model.network
    if not 0 <= layer < model.n_layers:
        raise ValueError(f"layer {layer} is outside 0..{model.n_layers - 1}")
    _check(network, layer)
    return _read(network, _look_at(network), layer, fold_norms=fold_norms)


def unturned(network: Network, layer: int) -> bool:
    """Whether queries reach the kernel as they were projected, but for a gain, at all positions."""
    look = _look_at(network)
    cuts = _cuts(look, layer)
    if cuts is None:
        return False
    seen, x = look.witness.seen["q", layer], look.witness.noted[layer, cuts["q"].path][0]
    matrix = _by_head(cuts["q"].weight, seen.shape[2])
    rows, taken = (a.reshape(-1, 1, *a.shape[2:]) for a in (seen, x))
    return own_gain(matrix, cuts["q"].bias, taken, rows) is not None


def readable(
    model: Model,
    *,
    fold_norms: bool,
    notes: list[str],
    layers: Sequence[int] | None = None,
) -> Iterator[Heads]:
    """Heads of all layers that have matrices, one layer at a time; ``notes`` tells of the others.

    Raises:
        ModelError: no layer has any, with the reason of the last one.
    """
    why: dict[str, list[int]] = {}
    last, found = None, False
    for layer in range(model.n_layers) if layers is None else layers:
        try:
            heads = heads_of(model, layer, fold_norms=fold_norms)
        except ModelError as error:
            last = error
            why.setdefault(str(error).partition(": ")[2], []).append(layer)
            continue
        found = True
        yield heads
        for note in heads.notes:
            why.setdefault(note, []).append(layer)
    if not found and last is not None:
        raise last
    notes += [f"layers {ranges(there)}: {reason}" for reason, there in why.items()]


def _check(network: Network, layer: int) -> None:
    block, why = network.block(layer), network.anatomy.refused
    if network.parts > 1:
        why = f"{network.parts} processes hold its heads together; load it in one"
    for site in "qkvz":
        why = why or block.missing.get(site)
    if why:
        raise ModelError(f"heads of layer {layer} of {network.architecture}: {why}")


def _look_at(network: Network) -> _Look:
    if network not in _KNOWN:
        _KNOWN[network] = _looked(network)
    return _KNOWN[network]


def _looked(network: Network) -> _Look:
    leaves: dict[Leaf, nn.Module] = {}
    for i, layer in enumerate(network.layers):
        leaves |= {(i, path): m for path, m in layer.named_modules() if path}
    sites = [
        (site, i)
        for i, block in enumerate(network.anatomy.blocks)
        for site in ("resid_pre", *"qkvz")
        if site not in block.missing
    ]
    rows = [PROBE[i:] + PROBE[:i] for i in range(_ROWS)]
    witness = Witness(network, sites, leaves)
    mx.eval(witness.run(mx.array(rows)), list(witness.seen.values()), list(witness.noted.values()))
    try:
        return _Look(witness, structure_of(network).writers, "")
    except ModelError as error:
        return _Look(witness, (None,) * len(network.layers), str(error).partition(": ")[2])


def _read(network: Network, look: _Look, layer: int, *, fold_norms: bool) -> Heads:
    witness, where = look.witness, f"layer {layer} of {network.architecture}"
    of = {site: witness.seen[site, layer] for site in "qkv"}
    cuts = _cuts(look, layer)
    if cuts is None:
        raise ModelError(
            f"heads of {where}: no matrix maps the block's normed input to its queries, keys and "
            "values"
        )
    x = witness.noted[layer, cuts["v"].path][0]
    matrices = {w: _by_head(cuts[w].weight, of[w].shape[2]) for w in "qkv"}
    bias = {w: _bias(cuts[w], of[w].shape[2:]) for w in "qkv"}
    o, notes = _output(network, look, layer, fold_norms=fold_norms)
    if bias["v"] is not None:
        notes.append("the bias of values is left out")
    for w in "qk":
        gain = own_gain(matrices[w], cuts[w].bias, x, of[w])
        if gain is None:
            notes.append(f"what stands between W_{w.upper()} and the kernel's {w} is left out")
        elif fold_norms and gain.shape:
            matrices[w] = matrices[w] * gain[:, None]
            own = bias[w]
            bias[w] = None if own is None else own * gain
            notes.append(
                f"the gain of a norm of {w} is in W_{w.upper()}, the size that it divides by is not"
            )
    norm = None
    if fold_norms:
        gain, shift, norm = _before(look, layer, x, where)
        for w in "qk":
            if number(mx.abs(shift).max()) > 0:
                moved, own = shift @ matrices[w], bias[w]
                bias[w] = moved if own is None else own + moved
        for w in "qkv":
            readers = matrices[w].swapaxes(1, 2)
            turned = folded(readers, gain, centred=norm is not None and norm.centred)
            matrices[w] = turned.swapaxes(1, 2)
    return Heads(
        layer,
        *(matrices[w] for w in "qkv"),
        o,
        q_bias=bias["q"],
        k_bias=bias["k"],
        norm=norm,
        notes=tuple(notes),
    )


def _bias(cut: weights.Cut, shape: tuple[int, ...]) -> mx.array | None:
    """What a projection adds [head, d_head]."""
    return None if cut.bias is None else cut.bias.astype(mx.float32).reshape(shape)


def _cuts(look: _Look, layer: int) -> dict[str, weights.Cut] | None:
    """Weights of q, k and v of a layer, if they are as many as its heads have elements."""
    witness = look.witness
    of = {site: witness.seen[site, layer] for site in "qkv"}
    entered: weights.Inputs = {
        path: (witness.leaves[i, path], x)
        for (i, path), (x, _) in witness.noted.items()
        if i == layer and _is_linear(witness.leaves[i, path])
    }
    cuts = weights.attention_cuts(entered, of)
    if cuts is None or any(cuts[w].weight.shape[0] != math.prod(of[w].shape[2:]) for w in "qkv"):
        return None
    return cuts


def _by_head(weight: mx.array, heads: int) -> mx.array:
    """A stored matrix [head * d_head, d_model] as [head, d_model, d_head]."""
    return weight.reshape(heads, -1, weight.shape[-1]).swapaxes(1, 2)


def _output(
    network: Network, look: _Look, layer: int, *, fold_norms: bool
) -> tuple[mx.array, list[str]]:
    """W_O [head, d_value, d_model] with all factors up to the stream, and what is not in it."""
    z, writer = look.witness.seen["z", layer], look.writers[layer]
    flat = z.reshape(*z.shape[:2], -1)
    path = next(
        (
            path
            for (i, path), (x, _) in look.witness.noted.items()
            if i == layer and x.shape == flat.shape and _is_handed(look, layer, path, flat)
        ),
        None,
    )
    if path is None:
        raise ModelError(
            f"heads of layer {layer} of {network.architecture}: something stands between them and "
            "the output projection"
        )
    o = weights.dense(look.witness.leaves[layer, path]).T.reshape(*z.shape[2:], -1)
    if writer is None or writer.path != path:
        return o, ["what stands between W_O and the stream could not be told and is left out"]
    o = o * (writer.scale * writer.after)
    if writer.norm is None or not fold_norms:
        return o, []
    module = look.witness.leaves[layer, writer.norm]
    known = gain_of(module, o.shape[-1])
    assert known is not None
    gain, _, centred = known
    o = (o - o.mean(axis=-1, keepdims=True) if centred else o) * gain
    return o, []


def _is_handed(look: _Look, layer: int, path: str, flat: mx.array) -> bool:
    x = look.witness.noted[layer, path][0]
    return _is_linear(look.witness.leaves[layer, path]) and distance(x, flat) == 0


def _before(
    look: _Look, layer: int, x: mx.array, where: str
) -> tuple[mx.array, mx.array, Norm | None]:
    """Gain and bias of the norm that made x of the stream, and the rest of it.

    Raises:
        ModelError: x is neither the stream nor what a norm makes of it.
    """
    leaves = look.witness.leaves
    calls = [
        (leaves[layer, path], taken, given)
        for (i, path), (taken, given) in look.witness.noted.items()
        if i == layer and not _is_linear(leaves[layer, path])
    ]
    found = norm_before(calls, look.witness.seen["resid_pre", layer], x)
    if found is None:
        raise ModelError(
            f"heads of {where}: no norm is found that makes their input of the stream; read them "
            "with --no-fold-norms"
        )
    return found


def _is_linear(module: nn.Module) -> bool:
    return "weight" in module and weights.is_linear(module)
